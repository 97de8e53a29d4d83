"""Keys of an epoch's record that more than one layer reads. Imports nothing, so that reports may use it as well."""

from __future__ import annotations

MASKING_STRONGER = "val/robust_accuracy_stronger"
"""Accuracy on the checked images under the evaluation attack and the stronger one."""
MASKING_GAP = "val/masking_gap"
"""Share of the checked images that only the evaluation attack leaves right."""
MASKING_IMAGES = "val/masking_images"
"""How many validation images were checked."""
