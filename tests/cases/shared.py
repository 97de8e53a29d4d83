"""Small inputs for the cases, and the flags of a run of seconds."""

from pathlib import Path

import numpy as np
from PIL import Image

TINY = (
    *("--optimization.epochs", "1", "--data.train-images", "60", "--evaluate", "none", "--scaling.num-workers", "1"),
    *("--train-attack.num-steps", "1", "--eval-attack.num-steps", "1"),
)
"""One epoch on 60 of the shipped images."""

OWN = (
    *("--optimization.epochs", "1", "--model.weights", "None", "--data.train-images", "None", "--evaluate", "none"),
    *("--scaling.num-workers", "1", "--train-attack.num-steps", "1", "--eval-attack.num-steps", "1"),
    *("--model.mean", ".5", ".5", ".5", "--model.std", ".25", ".25", ".25"),
)
"""One epoch on images in colour, from random weights."""


def folder(root: Path, count: int, *class_names: str) -> Path:
    """Writes `count` random PNG files of 28 x 28 pixels a class, and returns the folder."""
    random = np.random.default_rng(0)
    for label, name in enumerate(class_names):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 120, (28, 28, 3), dtype=np.uint8)
            pixels[..., label % 3] += 120
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root
