"""A few images, and what the attack does to them.

The figure is built without pyplot, so that nothing global changes and no display is needed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from distributed_autolora.reporting.drawn_text import class_label
from distributed_autolora.reporting.format import pixel_fraction

_RIGHT, _WRONG = "#1a7f37", "#b2182b"


def samples_figure(samples: dict[str, Any], class_names: Sequence[str], epsilon: float, norm: str = "linf") -> Figure:
    """Returns up to eight test images, their perturbations and the adversarial images, with the predictions.

    Args:
        samples: x uint8 [n, C, H, W]; x_adv float [n, C, H, W] in [0, 1]; label, natural_prediction and
            adversarial_prediction [n]; C is 1 or 3.
    """
    columns = min(8, len(samples["x"]))
    names = [class_label(name, label) for label, name in enumerate(class_names)]
    x = samples["x"][:columns].astype(np.float64) / 255
    x_adv = samples["x_adv"][:columns].astype(np.float64)
    limit = epsilon if norm == "linf" else float(np.abs(x_adv - x).max())
    gain = 1 / (2 * limit) if limit > 0 else 1.0
    rows = (x, np.clip(0.5 + gain * (x_adv - x), 0, 1), x_adv)
    scale = f"(black -{pixel_fraction(limit)}, white +{pixel_fraction(limit)})"
    labels = ("natural", f"perturbation x {gain:.3g}\n{scale}", "adversarial")
    figure = Figure(figsize=(max(1.6 + 1.5 * columns, 7.5), 6.4), dpi=100, layout="constrained")
    figure.suptitle("Test images under attack: predictions in green are right, in red wrong", fontsize=13)
    grid = figure.subplots(3, columns, squeeze=False)
    for row, (images, label) in enumerate(zip(rows, labels, strict=True)):
        grid[row, 0].set_ylabel(label, fontsize=10)
        for column in range(columns):
            image = images[column][0] if len(images[column]) == 1 else np.moveaxis(images[column], 0, -1)
            grid[row, column].imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            grid[row, column].set(xticks=[], yticks=[])
    for column in range(columns):
        label_index = int(samples["label"][column])
        grid[0, column].set_title(f"label: {names[label_index]}", fontsize=9)
        for row, key in ((0, "natural_prediction"), (2, "adversarial_prediction")):
            prediction = int(samples[key][column])
            colour = _RIGHT if prediction == label_index else _WRONG
            grid[row, column].set_xlabel(f"seen as {names[prediction]}", color=colour, fontsize=9)
    return figure
