"""A checkpoint holds everything that a run needs to resume: tensors as safetensors, the rest as JSON; no pickle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from distributed_autolora.errors import UserError, kind_of
from distributed_autolora.files import atomic_write
from distributed_autolora.models import save_weights
from distributed_autolora.records import EpochRecord, history_from_json, history_to_json
from distributed_autolora.training.checkpoint_integrity import TENSORS, VALUES, broken_part, fingerprint, read_values

_BY_IMAGE = {"outcomes": "validation outcomes", "newly_broken": "validation images newly broken by the stronger attack"}
"""Names of the tensors by epoch and validation image, in a `TrainingState` and in a file."""


@dataclass
class TrainingState:
    """The state of a run, at the start of an epoch or within one.

    Attributes:
        model: state of the objective: backbone, head, factors, every batch norm buffer.
        best: the same of the epoch chosen so far.
        momentum: SGD's momentum buffers by parameter name.
        progress: of the epoch that follows the records (`EpochProgress.state`); None at its start.
        history: one record an epoch; the schedules are replayed from it.
        identity: what must be equal for a resume: config digest, seed, split digest.
        outcomes: bool [epochs, validation images]: robust to the evaluation attack after each epoch.
        newly_broken: bool [epochs, validation images]: of these, broken by the stronger attack of a check.
    """

    model: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    momentum: Mapping[str, Tensor]
    history: list[EpochRecord]
    identity: dict[str, Any]
    progress: dict[str, Any] | None = None
    outcomes: Tensor = field(default_factory=lambda: torch.empty((0, 0), dtype=torch.bool))
    newly_broken: Tensor = field(default_factory=lambda: torch.empty((0, 0), dtype=torch.bool))

    @property
    def step(self) -> int:
        """Training steps since the last record: 0 after an epoch, more within one."""
        return 0 if self.progress is None else int(self.progress["step"])

    def save(self, folder: Path) -> None:
        """Writes the state into an existing folder, each file atomically.

        Raises:
            StorageError: when a file cannot be written.
        """
        parts = {"model": self.model, "best": self.best, "momentum": self.momentum}
        tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        tensors |= {stored: getattr(self, name) for name, stored in _BY_IMAGE.items()}
        save_weights(tensors, folder / TENSORS)
        own = {"history": history_to_json(self.history), "identity": self.identity, "progress": self.progress}
        with atomic_write(folder / VALUES) as unfinished:
            unfinished.write_text(json.dumps({**own, "tensors": fingerprint(folder / TENSORS)}))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            UserError: when a file cannot be read, or is corrupt.
        """
        try:
            broken = broken_part(folder)
            if broken is not None:
                raise UserError(
                    f"Checkpoint {folder} cannot be read ({broken}). The same command resumes from the one before; "
                    "where that cannot be read either, start the run afresh with --fresh."
                )
            tensors = safetensors.torch.load_file(folder / TENSORS)
            values = read_values(folder)
            history = history_from_json(values["history"], f"Checkpoint {folder}")
            by_image = _taken_by_image(tensors, history, folder)
            parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "momentum": {}}
            for full_name, value in tensors.items():
                part, name = full_name.split("/", 1)
                parts[part][name] = value
            stand = (history, values["identity"], values.get("progress"))
            return cls(parts["model"], parts["best"], parts["momentum"], *stand, *by_image.values())
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise kind_of(error)(
                f"Checkpoint {folder} cannot be read ({error}). If it stays so, start the run afresh with --fresh."
            ) from None


def _taken_by_image(tensors: dict[str, Tensor], history: list[EpochRecord], folder: Path) -> dict[str, Tensor]:
    taken = {name: tensors.pop(stored) for name, stored in _BY_IMAGE.items() if stored in tensors}
    if len(taken) < len(_BY_IMAGE):
        raise UserError(
            f"Checkpoint {folder} was written by an earlier version of this program, which kept less by "
            "validation image, so the run cannot resume from it: start it afresh with --fresh."
        )
    for name, value in taken.items():
        if len(value) != len(history):
            raise UserError(
                f"Checkpoint {folder} holds the {_BY_IMAGE[name]} of {len(value)} epochs and the records of "
                f"{len(history)}, so the run cannot resume from it: start it afresh with --fresh."
            )
    return taken


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of the module's state that later steps do not change."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def momentum_buffers(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns SGD's momentum buffers by parameter name; parameters that have none yet are left out."""
    return {
        name: optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in module.named_parameters()
        if optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
    }


def restore_momentum(module: nn.Module, optimizer: torch.optim.Optimizer, buffers: Mapping[str, Tensor]) -> None:
    """Puts momentum buffers back, in the memory layout of their parameters: a file keeps none, fused SGD needs it."""
    for name, parameter in module.named_parameters():
        if name in buffers:
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter.detach()).copy_(buffers[name])
