"""What the paper's two large tables would cost, from the images a second that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAIN_IMAGES = {
    "CIFAR-10": 50_000,
    "CIFAR-100": 50_000,
    "DTD": 3_760,
    "Stanford Dogs": 12_000,
    "CUB-200": 5_994,
    "Caltech-256": 38_550,
}
"""Images of an epoch as the paper's programs train: DTD's are train and validation of its first split, Caltech-256's
the entries of the list that the released code draws."""
TABLES = {"resnet18": "Table 1", "resnet50": "Table 2"}
METHODS, SEEDS, EPOCHS = 3, 3, 60
ASSUMPTIONS = (
    "one run a method, task and seed (AutoLoRa, TWINS, vanilla RFT), without the search for the baselines' settings",
    f"{SEEDS} seeds, {EPOCHS} epochs each: no run stops early",
    "a step of every method costs AutoLoRa's; all of them pass an image as often through the network",
    "the 5 % of the images that validate count as if they trained",
    "not counted: the accuracy of the natural branch, reading and decoding, the test split, AutoAttack",
    "every task at the side that was measured, CIFAR too: it is up-sampled inside the model",
)


def gpu_hours(images_per_second: Mapping[str, float]) -> dict[str, Any]:
    """Returns the hours on one such device of each table whose network was measured.

    Args:
        images_per_second: of the fastest whole training step, by network.
    """
    images = sum(TRAIN_IMAGES.values()) * METHODS * SEEDS * EPOCHS
    return {
        "train_images": TRAIN_IMAGES,
        "images_in_all": images,
        "hours": {
            f"{TABLES[network]} ({network})": images / rate / 3600
            for network, rate in images_per_second.items()
            if network in TABLES
        },
        "assumptions": ASSUMPTIONS,
    }
