"""Common corruptions (Hendrycks and Dietterich, 2019): read from a folder, or made by the package imagecorruptions."""

import hashlib
import importlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.guard import preserve_state

COMMON = (
    *(
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "defocus_blur",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
        "snow",
    ),
    *("frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The 15 corruptions of the benchmarks; their four further ones are for validation."""
COLUMN = "corrupted/"
"""Columns of the outcomes: corrupted/NAME/SEVERITY, whether the corrupted image is classified correctly."""
_LABELS = "labels"
_SEVERITIES = 5
_PACKAGE = "imagecorruptions-imaug"
_SMALLEST = 32
_OWN_SEED = ("impulse_noise", "glass_blur")
"""They take their random numbers from a seed that they are given, the others from numpy's global generator."""


@dataclass(frozen=True, kw_only=True)
class Corruptions:
    """Corrupted variants of test images.

    Attributes:
        folder: with NAME.npy, uint8 [severities * n, H, W(, C)], the first n images of severity 1; None: made here.
        total: number n of test images.
        digest: SHA-256 of the files; else version of the package and seed.
    """

    folder: str | None
    names: tuple[str, ...]
    severities: int
    total: int
    seed: int
    digest: str

    def images(self, name: str, severity: int, rows: Sequence[int], x: Tensor) -> Tensor:
        """Returns uint8 [n, C, H, W], the corrupted variants of `x`, rows of the test table."""
        if self.folder is None:
            pairs = zip(rows, x.permute(0, 2, 3, 1).numpy(), strict=True)
            return torch.from_numpy(
                np.stack([_corrupted(image, name, severity, self.seed, row) for row, image in pairs])
            )
        file = np.load(Path(self.folder, f"{name}.npy"), mmap_mode="r")
        images = torch.from_numpy(file[(severity - 1) * self.total + np.array(rows, dtype=np.int64)])
        return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)

    def outcomes(self, model: nn.Module, rows: Sequence[int], x: Tensor, y: Tensor) -> dict[str, NDArray[Any]]:
        """Returns for each corruption and severity whether `model` classifies each image correctly, [n] bool.

        Args:
            x: uint8 [n, C, H, W] on the CPU, rows of the test table; n is at least 1. y: [n] labels.
        """
        columns = {}
        with preserve_state(model) as device, torch.no_grad():
            for name in self.names:
                for severity in range(1, self.severities + 1):
                    images = self.images(name, severity, rows, x).to(device).float() / 255
                    columns[f"{COLUMN}{name}/{severity}"] = (model(images).argmax(1) == y.to(device)).cpu().numpy()
        return columns


def find_corruptions(folder: str | None, labels: Tensor, shape: Sequence[int], seed: int) -> Corruptions:
    """Finds corrupted variants of a test split.

    Args:
        folder: in the layout of CIFAR-10-C: NAME.npy and labels.npy; None: the package imagecorruptions makes them.
        labels: [n] of all test images, in the order of the files; shape: C, H, W of an image.

    Raises:
        UserError: for a folder of other images, a missing package, or one that cannot make them.
    """
    if folder is None:
        return _made(len(labels), shape, seed)
    path = Path(folder).expanduser().absolute()
    files = {file.stem: file for file in sorted(path.glob("*.npy")) if file.stem != _LABELS}
    names = tuple(name for name in COMMON if name in files) or tuple(files)
    if not names or not (path / f"{_LABELS}.npy").is_file():
        raise UserError(f"Corruptions: {path} has no NAME.npy and {_LABELS}.npy: give a folder such as CIFAR-10-C.")
    try:
        arrays = {name: np.load(files[name], mmap_mode="r") for name in names}
        stated = np.load(path / f"{_LABELS}.npy")
    except (OSError, ValueError) as error:
        raise UserError(f"Corruptions: a file in {path} cannot be read ({error}). Restore it.") from None
    total, expected = len(labels), tuple(shape[1:]) if shape[0] == 1 else (*shape[1:], shape[0])
    severities = {len(array) / total for array in arrays.values()}
    fits = all(
        array.dtype == np.uint8 and array.shape[1:] in (expected, (*shape[1:], shape[0])) for array in arrays.values()
    )
    if (
        len(severities) != 1
        or not (count := severities.pop()).is_integer()
        or not 1 <= count <= _SEVERITIES
        or not fits
    ):
        raise UserError(
            f"Corruptions: the files in {path} are not 1 to {_SEVERITIES} times {total} uint8 images of "
            f"{' x '.join(map(str, expected))}: give corrupted variants of these very test images."
        )
    if len(stated) < total or not np.array_equal(stated[:total], labels.numpy()):
        raise UserError(f"Corruptions: {path}/{_LABELS}.npy is not the order of the test images: give theirs.")
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + hashlib.sha256(files[name].read_bytes()).digest())
    return Corruptions(
        folder=str(path), names=names, severities=int(count), total=total, seed=seed, digest=digest.hexdigest()
    )


def _made(total: int, shape: Sequence[int], seed: int) -> Corruptions:
    try:
        importlib.import_module("imagecorruptions")
        version = importlib.metadata.version(_PACKAGE)
    except ImportError as error:
        raise UserError(
            f"Corruptions: the package {_PACKAGE} cannot be imported ({error}): pip install "
            "'distributed-autolora[corruptions]', or give --corruptions a folder such as CIFAR-10-C."
        ) from None
    if shape[0] not in (1, 3):
        raise UserError(f"Corruptions: {_PACKAGE} takes images with 1 or 3 channels, not {shape[0]}: give a folder.")
    digest = f"{_PACKAGE} {version}, seed {seed}"
    return Corruptions(folder=None, names=COMMON, severities=_SEVERITIES, total=total, seed=seed, digest=digest)


def _corrupted(image: NDArray[np.uint8], name: str, severity: int, seed: int, row: int) -> NDArray[np.uint8]:
    """Returns one corrupted image [C, H, W]; its random numbers depend on seed, corruption, severity and row alone."""
    corrupt = importlib.import_module("imagecorruptions").corrupt
    height, width, channels = image.shape
    # The package takes no smaller images: these are continued by their edges, and cut again.
    margins = [(max(0, _SMALLEST - side + 1) // 2, max(0, _SMALLEST - side) // 2) for side in (height, width)]
    padded = np.pad(image, [*margins, (0, 0)], mode="edge")
    key = f"{seed} {name} {severity} {row}".encode()
    own = int.from_bytes(hashlib.sha256(key).digest()[:4], "big")
    state = np.random.get_state()
    np.random.seed(own)
    try:
        seeded = {"seed": own} if name in _OWN_SEED else {}
        found = corrupt(padded, corruption_name=name, severity=severity, **seeded)
    finally:
        np.random.set_state(state)
    (top, _), (left, _) = margins
    cut = found[top : top + height, left : left + width]
    grey = np.rint(cut.mean(-1, keepdims=True)).astype(np.uint8) if channels == 1 else cut
    return np.ascontiguousarray(grey.transpose(2, 0, 1))
