"""Weights in files: read strictly, written whole."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from distributed_autolora.errors import UserError


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads a state dict from a .safetensors file, or from a torch file without executing pickled code.

    Raises:
        UserError: when the file is missing, unreadable, no state dict, or holds NaN or infinite values.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"Weights: there is no file {path}. Give model.weights an existing file.")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"Weights: {path} cannot be read ({reason}). Is the file complete, and a safetensors or torch state dict?"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"Weights: {path} does not hold a plain state dict of tensors.")
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(
            f"Weights: {path} holds NaN or infinite values in {len(broken)} tensors, first {broken[0]}: "
            "use a checkpoint from before the run diverged."
        )
    return state


def load_backbone(network: nn.Module, path: str | Path, *, head: str) -> None:
    """Loads every weight of `network` but the head from a file, strictly.

    Args:
        network: the backbone with its head.
        path: file for `read_weights`; names as in `network`; a head in it is ignored.
        head: name of the head.

    Raises:
        UserError: when a weight is missing, left over, or of another shape.
    """
    state = {name: value for name, value in read_weights(path).items() if not name.startswith(f"{head}.")}
    own = {name: value for name, value in network.state_dict().items() if not name.startswith(f"{head}.")}
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    reshaped = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or unexpected or reshaped:
        first = (
            f"{reshaped[0]} is {list(state[reshaped[0]].shape)}, not {list(own[reshaped[0]].shape)}"
            if reshaped
            else f"missing {missing[0]}"
            if missing
            else f"unexpected {unexpected[0]}"
        )
        raise UserError(
            f"Weights: {path} is a checkpoint of another architecture ({len(missing)} tensors missing, "
            f"{len(unexpected)} unexpected, {len(reshaped)} of another shape; {first}). "
            "Give the matching model.backbone."
        )
    network.load_state_dict(state, strict=False)


def save_weights(state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a state dict as safetensors, whole or not at all.

    Raises:
        OSError: when the folder cannot be written.
    """
    whole = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    safetensors.torch.save_file(whole, unfinished, metadata=metadata)
    os.replace(unfinished, path)
