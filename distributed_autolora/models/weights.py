"""Weights of networks: loaded strictly, written atomically."""

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from distributed_autolora.errors import UserError, some
from distributed_autolora.files import atomic_write
from distributed_autolora.models.checkpoint_formats import taken_out
from distributed_autolora.models.weight_files import read_checkpoint

_COUNTER = "num_batches_tracked"
"""Buffer of a batch norm that files from before PyTorch 0.4.1 lack, and that is not used here."""


def load_backbone(
    network: nn.Module,
    location: str | Path,
    *,
    head: str,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    digest: str | None = None,
    allow_pickle: bool = False,
) -> None:
    """Loads every weight of `network` but the head from a file, strictly.

    Args:
        location: file for `read_checkpoint`, like `digest` and `allow_pickle`; a head in it is ignored.
        head: name of the head in `network`.
        mean: per-channel mean of the input of `network`; None: not compared with the file's. So `std`.

    Raises:
        UserError: when a weight is missing, left over, or of another shape, or the file states another normalisation.
    """
    checkpoint = read_checkpoint(location, digest=digest, allow_pickle=allow_pickle)
    for what, stated, used in (("mean", checkpoint.mean, mean), ("std", checkpoint.std, std)):
        if stated is not None and used is not None:
            _check_normalisation(location, what, stated, used)
    load_strictly(network, checkpoint.state, str(location), fresh=head, advice="Give the matching model.backbone.")


def load_strictly(
    network: nn.Module, state: dict[str, Tensor], where: str, *, fresh: str | None = None, advice: str
) -> None:
    """Loads a state dict that must match the network in every name and shape.

    The layer `fresh` keeps its values, and is not compared. Messages begin with the file, `where`.

    Raises:
        UserError: when a tensor is missing, left over, or of another shape; names the first three.
    """
    needed = [name for name in network.state_dict() if not name.endswith(_COUNTER)]
    state = taken_out(where, state, [name for name in needed if fresh is None or not name.startswith(f"{fresh}.")])
    own, given = (
        {name: value for name, value in tensors.items() if fresh is None or not name.startswith(f"{fresh}.")}
        for tensors in (network.state_dict(), state)
    )
    given = {name: value for name, value in own.items() if name.endswith(f".{_COUNTER}")} | given
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    reshaped = [name for name in own if name in given and own[name].shape != given[name].shape]
    if missing or unexpected or reshaped:
        details = [f"{name} is {list(given[name].shape)}, not {list(own[name].shape)}" for name in reshaped]
        details += [f"missing {name}" for name in missing] + [f"unexpected {name}" for name in unexpected]
        raise UserError(
            f"Weights: {where} is a checkpoint of another architecture ({len(missing)} tensors missing, "
            f"{len(unexpected)} unexpected, {len(reshaped)} of another shape; {'; '.join(details[:3])}). Its tensors "
            f"are called {some(list(state))}. {advice}"
        )
    network.load_state_dict(given, strict=fresh is None)


def save_weights(state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a state dict as safetensors, atomically.

    Raises:
        StorageError: when it cannot be written.
    """
    whole: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        # safetensors refuses tensors that share their memory, as tied weights do.
        whole[name] = tensor.clone() if tensor.data_ptr() in written else tensor
        written.add(tensor.data_ptr())
    with atomic_write(path, SafetensorError) as unfinished:
        safetensors.torch.save_file(whole, unfinished, metadata=metadata)


def _check_normalisation(location: str | Path, what: str, stated: tuple[float, ...], used: tuple[float, ...]) -> None:
    wide = stated * len(used) if len(stated) == 1 else stated
    if len(wide) != len(used) or not torch.allclose(torch.tensor(wide), torch.tensor(used), atol=5e-4):
        shown = " ".join(f"{value:g}" for value in wide)
        raise UserError(
            f"Weights: {location} was trained on images with {what} {shown}, but model.{what} is "
            f"{' '.join(f'{value:g}' for value in used)}. Give --model.{what} {shown}."
        )
