"""Weights files as Python objects: checked by digest, and read without executing pickled code."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.fs
import safetensors.torch
import torch
from safetensors import SafetensorError

from distributed_autolora.errors import UserError, kind_of
from distributed_autolora.models.published import SHA256

_DAMAGED = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
)
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


@dataclass(frozen=True)
class WeightsFile:
    """The content of a file, and the text fields of a safetensors file."""

    content: Any
    metadata: dict[str, str]


def open_weights(
    location: str | Path,
    *,
    digest: str | None = None,
    allow_pickle: bool = False,
    pickle_advice: str = TENSORS_OR_TRUST,
) -> WeightsFile:
    """Reads a .safetensors or torch file from a local path or a pyarrow URI such as s3://bucket/weights.pt.

    Args:
        location: the file. One with a published name must have the published bytes, unless `digest` is given.
        digest: SHA-256 that the file must have; None: any.
        allow_pickle: execute a pickle that cannot be read otherwise, if its digest is given or published.
        pickle_advice: advice about such a pickle where it is not allowed.

    Raises:
        UserError: when the file is missing, damaged, not the one that its digest or name states, or needs its code run.
    """
    where = str(location)
    data = _read(where)
    found = hashlib.sha256(data).hexdigest()
    _check_digest(where, found, digest)
    if _name(where).endswith(".safetensors"):
        return WeightsFile(*_safetensors(where, data))
    trusted = found in ((digest or "").lower(), *SHA256.values())
    return WeightsFile(_torch(where, data, trusted, allow_pickle, pickle_advice), {})


def absolute_location(location: str) -> str:
    """Returns a local path as an absolute one, a URI as it is."""
    return location if "://" in location else str(Path(location).expanduser().absolute())


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
