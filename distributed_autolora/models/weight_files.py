"""Weights files: checked by digest, and read without executing pickled code."""

import argparse
import hashlib
import io
import json
import pickle
import re
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.fs
import safetensors.torch
import torch
from safetensors import SafetensorError

from distributed_autolora import hub
from distributed_autolora.errors import UserError, kind_of
from distributed_autolora.models.checkpoint_formats import Checkpoint, checkpoint_of

SHA256 = {
    "resnet18_linf_eps0.5.ckpt": "48d5e933d4ec99b390a0b7c628a4303343f9517a46245cbd7d2f2c034cbd93ee",
    "resnet18_linf_eps1.0.ckpt": "b49800111d38197deefb0c236055fbdd9d91a0607e55d6cc0bce15504adc9582",
    "resnet18_linf_eps2.0.ckpt": "bf2611291cc5f792c7f8f17ff6f841f9a0ede32dbe575cbd5bc57233139ae8bd",
    "resnet18_linf_eps4.0.ckpt": "6f8ccef1ae4958c381617081e9e0fb5f50e7cccd4965192d1caa452fd6c5cd1e",
    "resnet50_linf_eps0.ckpt": "b924222a75d02bbde9ac0cde0cc1f41afcbf2b6755c9b0b73ed7a0449e7bb6b9",
    "resnet50_linf_eps0.5.ckpt": "9612d8096ef5378b4a32746072f72fedcb02c7ff4b747bc7163274f7ec2f0fd8",
    "resnet50_linf_eps2.0.ckpt": "59f28de783a049cb4d91ba1c0a09c314db2cc4bb1e859566e023f842b02772ac",
    "resnet50_linf_eps4.0.ckpt": "9e62216975c111b8081481533b6142dec34be69abe5d90b54d7f860015c263db",
    "resnet50_linf_eps8.0.ckpt": "b907957f8e3ce209816813d8811c682e965a1b0f48455def828d35a4cc2953dc",
}
"""SHA-256 of published robust ImageNet checkpoints; epsilon counts in 1/255. Others have no known digest.

By Salman et al. 2020, "Do Adversarially Robust ImageNet Models Transfer Better?"; in the Hugging Face repository
madrylab/robust-imagenet-models.
"""
_DAMAGED: tuple[type[Exception], ...] = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError)
_DAMAGED += (ValueError, LookupError, TypeError, AttributeError, AssertionError, MemoryError)
"""What readers of damaged files raise: a flipped byte can request any attribute, type or amount of memory."""
TENSORS_OR_TRUST = (
    "Take a file of tensors only; or, if you trust its publisher, give model.allow_pickle and model.weights_digest."
)
"""Advice about a file that needs its code run, for programs with these two flags."""
_FOREIGN = re.compile(r"(?:Unsupported (?:global: GLOBAL|class)|Trying to (?:load|call reduce for)) ?(\S+)?")
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
# Numbers and settings that training programs store beside the weights; building them runs no code of the file's.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    _NUMPY_SCALAR,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
]


def read_checkpoint(
    location: str | Path,
    *,
    digest: str | None = None,
    allow_pickle: bool = False,
    pickle_advice: str = TENSORS_OR_TRUST,
) -> Checkpoint:
    """Reads a classifier's weights, and the input normalisation that the file states, from any known layout.

    Args:
        location: a .safetensors or torch file, by path or pyarrow URI such as s3://bucket/weights.pt. One with a
            published name must have the published bytes, unless `digest` is given.
        digest: SHA-256 that the file must have; None: any.
        allow_pickle: execute a pickle that cannot be read otherwise, if its digest is given or published.
        pickle_advice: advice about such a pickle where it is not allowed.

    Raises:
        UserError: when the file is missing, damaged, in no known layout, not the one that its digest or name states,
            needs its code run, or holds NaN or infinite values.
    """
    where = str(location)
    data = _read(where)
    found = hashlib.sha256(data).hexdigest()
    _check_digest(where, found, digest)
    if _name(where).endswith(".safetensors"):
        return checkpoint_of(where, *_safetensors(where, data))
    trusted = found in ((digest or "").lower(), *SHA256.values())
    return checkpoint_of(where, _torch(where, data, trusted, allow_pickle, pickle_advice), {})


def read_weights(location: str | Path) -> dict[str, torch.Tensor]:
    """Returns `read_checkpoint(location).state`."""
    return read_checkpoint(location).state


def weights_digest(location: str | Path, expected: str | None = None) -> str:
    """Returns the SHA-256 of a weights file.

    Raises:
        UserError: when the file is missing, or not the `expected` or the published one.
    """
    found = hashlib.sha256(_read(str(location))).hexdigest()
    _check_digest(str(location), found, expected)
    return found


def _name(where: str) -> str:
    return PurePosixPath(where.partition("?")[0] if "://" in where else Path(where).as_posix()).name


def _read(where: str) -> bytes:
    try:
        if where.startswith(hub.SCHEME):
            return hub.local_copy(where).read_bytes()
        if "://" in where:
            filesystem, path = pyarrow.fs.FileSystem.from_uri(where)
            with filesystem.open_input_file(path) as file:
                return bytes(file.read())
        path = Path(where).expanduser()
        if not path.is_file():
            raise UserError(f"Weights: there is no file {path}. Give model.weights an existing file.")
        return path.read_bytes()
    # pyarrow's own errors are OSError, ValueError and NotImplementedError as well.
    except (OSError, ValueError, NotImplementedError) as error:
        raise kind_of(error)(f"Weights: {where} cannot be read ({_reason(error)}). Check the path or URI.") from None


def _check_digest(where: str, found: str, given: str | None) -> None:
    if given is not None:
        if found != given.lower():
            raise UserError(
                f"Weights: {where} has SHA-256 {found[:12]}..., not {given[:12]}... as model.weights_digest says. "
                "Give the original file, or remove the digest."
            )
        return
    name = _name(where)
    if SHA256.get(name, found) != found:
        raise UserError(
            f"Weights: {where} is not the published {name} (SHA-256 {found[:12]}..., not {SHA256[name][:12]}...). "
            "Download it again, or rename it if it is meant to be another file."
        )


def _safetensors(where: str, data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        state = safetensors.torch.load(data)
    except _DAMAGED as error:
        raise _damaged(where, error) from None
    size = int.from_bytes(data[:8], "little")
    return state, json.loads(data[8 : 8 + size]).get("__metadata__", {})


def _torch(where: str, data: bytes, trusted: bool, allow_pickle: bool, pickle_advice: str) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        foreign = _FOREIGN.search(str(error))
        if foreign is None:
            raise _damaged(where, error) from None
        asked = (foreign[1] or "an object").rstrip(".,")
    if not allow_pickle:
        raise UserError(
            f"Weights: {where} cannot be read without executing code from it (it asks for {asked}). {pickle_advice}"
        )
    if not trusted:
        raise UserError(
            f"Weights: {where} needs its code executed (it asks for {asked}), and is not verified: give "
            "model.weights_digest, the SHA-256 that its publisher states."
        )
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    except ImportError as error:
        raise UserError(f"Weights: {where} needs a package that is not installed ({error}). Install it.") from None
    except _DAMAGED as error:
        raise _damaged(where, error) from None


def _damaged(where: str, error: BaseException) -> UserError:
    return UserError(
        f"Weights: {where} cannot be read ({_reason(error)}). "
        "Is the file complete, and a safetensors or torch state dict?"
    )


def _reason(error: BaseException) -> str:
    # PyTorch's message begins with the advice to execute the file.
    lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
