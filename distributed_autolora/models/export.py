"""The deployable model as files that do not need this package, checked by reloading them."""

import io
import itertools
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from distributed_autolora.core.lora import LowRankBranch
from distributed_autolora.errors import RunFailedError
from distributed_autolora.files import atomic_write, writing
from distributed_autolora.models.portable import PortableModel, read_model
from distributed_autolora.models.weights import save_weights

TOLERANCE = torch.finfo(torch.float32).eps ** 0.5
"""Largest difference of a logit between a model and its reloaded export, as a share of the largest logit.

Half of the digits of float32: other kernels cost a digit or two, another weight or layer changes the first ones.
"""
WEIGHTS_FILE, PROGRAM_FILE = "model.safetensors", "model.pt2"


def export_model(model: PortableModel, folder: Path, batches: Iterable[Tensor]) -> dict[str, float]:
    """Writes the model as safetensors and as a torch.export program, reloads both, and compares their logits.

    The program takes float32 images [n, C, H, W] in [0, 1], n at least 1. Files whose logits differ are removed.

    The batches are images in [0, 1], at least one. Returns the largest absolute difference of a logit by file name.

    Raises:
        RunFailedError: when a reloaded model computes something else, or a file cannot be written.
    """
    images = iter(batches)
    first = next(images)
    with writing(folder):
        unfinished = tempfile.TemporaryDirectory(prefix=".export-", dir=folder, ignore_cleanup_errors=True)
    with unfinished as place:
        program, weights = Path(place, PROGRAM_FILE), Path(place, WEIGHTS_FILE)
        about = {"input": "float32 images [n, C, H, W] in [0, 1], normalised with mean and std"}
        save_weights(model.weights, weights, model.metadata() | about)
        export_program(model.build(), first, program)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.export.load(program).module()
        reloaded = {WEIGHTS_FILE: read_model(weights).build(), PROGRAM_FILE: loaded}
        own, differences = model.build(), dict.fromkeys(reloaded, 0.0)
        for x in itertools.chain([first], images):  # one pass: a test set may be larger than the memory
            for name, copy in reloaded.items():
                differences[name] = max(differences[name], largest_difference(own, copy, x, folder / name))
        for name in reloaded:
            with writing(folder / name):
                Path(place, name).replace(folder / name)
    return differences


def export_program(model: nn.Module, example: Tensor, path: Path) -> None:
    """Writes a model, in eval mode, as a torch.export program that takes batches of any size.

    The example is at least one image [n, C, H, W]; its C, H and W become those of the program.

    Raises:
        ValueError: for a model that still has a low-rank branch.
    """
    if any(isinstance(module, LowRankBranch) for module in model.modules()):
        raise ValueError("the model still has its low-rank branch")
    # With a batch of 1 the program would be specialised to it.
    pair = torch.cat([example[:1], example[:1]])
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model.eval(), (pair,), dynamic_shapes=((({0: batch}),)))
        content = io.BytesIO()
        torch.export.save(program, content)
    with atomic_write(path) as file:
        file.write_bytes(content.getvalue())


def largest_difference(model: nn.Module, copy: nn.Module, x: Tensor, what: Path) -> float:
    """Returns the largest absolute difference of a logit of the model and of its copy, reloaded from `what`.

    Raises:
        RunFailedError: when a difference is above `TOLERANCE` * the largest |logit|, or not a number.
    """
    with torch.no_grad():
        expected, found = model(x), copy(x)
    difference = (expected - found).abs()
    allowed = TOLERANCE * float(expected.abs().max())
    if not bool((difference <= allowed).all()):
        raise RunFailedError(
            f"{what} is not exported: reloaded, its logits differ from the model's by up to "
            f"{difference.max().item():.2g}, and {allowed:.2g} is allowed. --no-export evaluates without an export."
        )
    return float(difference.max())
