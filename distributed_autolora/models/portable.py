"""A model that travels between processes and machines: a network by its name and weights, or an exported graph."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distributed_autolora.errors import UserError, first_line
from distributed_autolora.models.classifier import Classifier, build
from distributed_autolora.models.graph_safety import refuse_code, tensors_only

_AGAIN = "Export the model again."


@dataclass(frozen=True, kw_only=True)
class NetworkDescription:
    """What a state dict belongs to."""

    backbone: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int | None = None

    def build(self) -> Classifier:
        """Returns the network with random weights.

        Raises:
            UserError: for an unknown backbone, or channels that it does not take.
        """
        return build(self.backbone, self.num_classes, mean=self.mean, std=self.std, input_size=self.input_size)

    def metadata(self) -> dict[str, str]:
        """Returns what a .safetensors file says about itself; `from_metadata` inverts it."""
        values = asdict(self)
        return {key: value if key == "backbone" else json.dumps(value) for key, value in values.items()}

    @classmethod
    def from_metadata(cls, texts: dict[str, str]) -> Self | None:
        """Returns the description in a file's metadata, or None where it has none."""
        try:
            values: dict[str, Any] = {key: json.loads(texts[key]) for key in ("num_classes", "mean", "std")}
            values["input_size"] = json.loads(texts.get("input_size", "null"))
            values |= {"mean": tuple(values["mean"]), "std": tuple(values["std"])}
            return cls(backbone=texts["backbone"], **values)
        except (KeyError, ValueError, TypeError):
            return None


@dataclass(frozen=True)
class PortableModel:
    """One model, complete.

    Attributes:
        description: the network that `weights` belong to; None for an exported graph.
        weights: state dict of the network with its head; empty for an exported graph.
        graph: a file of torch.export; empty for a network.
    """

    description: NetworkDescription | None
    weights: dict[str, Tensor]
    graph: bytes = b""

    def digest(self) -> str:
        """Returns the SHA-256 of all that determines the model's outputs."""
        digest = hashlib.sha256(self.graph)
        if self.description is not None:
            digest.update(json.dumps(asdict(self.description), sort_keys=True).encode())
        for name, value in sorted(self.weights.items()):
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}:".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def build(self, device: torch.device | str = "cpu") -> nn.Module:
        """Returns the model on a device, in eval mode and float32; it takes images in [0, 1].

        Raises:
            UserError: for weights that do not fit, or a damaged graph.
        """
        if self.description is None:
            return _graph_module(self.graph, torch.device(device))
        classifier = self.description.build()
        load_strictly(classifier.backbone, self.weights)
        return classifier.float().eval().to(device)

    def channels(self) -> int:
        """Returns the number of channels of the images that the model takes.

        Raises:
            UserError: for a graph that takes no images.
        """
        if self.description is not None:
            return len(self.description.mean)
        shape = _graph_input_shape(self.graph)
        if len(shape) != 4:
            raise UserError(
                f"The exported graph takes inputs of {len(shape)} dimensions, not images [n, C, H, W]. {_AGAIN}"
            )
        return int(shape[1])


def file_description(path: Path) -> NetworkDescription | None:
    """Returns what a .safetensors file says that it is; None where it says nothing, and for other files.

    Raises:
        UserError: for a file that cannot be read.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return NetworkDescription.from_metadata(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"Weights: {path} cannot be read ({error}). Is the file complete?") from None


def load_strictly(network: nn.Module, state: dict[str, Tensor], where: str = "the weights") -> None:
    """Loads a state dict that has to fit to the last tensor.

    Raises:
        UserError: when a tensor is missing, left over, or of another shape; names the first.
    """
    own = network.state_dict()
    # Files from before PyTorch 0.4.1 lack these counters, which decide nothing here.
    state = {name: value for name, value in own.items() if name.endswith(".num_batches_tracked")} | state
    missing = [f"missing {name}" for name in own if name not in state]
    unexpected = [f"unexpected {name}" for name in state if name not in own]
    reshaped = [
        f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if wrong := [*reshaped, *missing, *unexpected]:
        raise UserError(
            f"Weights: {where} belong to another network ({len(missing)} tensors missing, {len(unexpected)} "
            f"unexpected, {len(reshaped)} of another shape; {wrong[0]}). Give the matching --backbone, --num-classes "
            "and --mean."
        )
    network.load_state_dict(state)


def read_graph(path: Path) -> bytes:
    """Reads a file of torch.export, and checks that it can be loaded.

    Raises:
        UserError: for a missing or damaged file.
    """
    try:
        graph = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}). Give another file, or the right to read it."
        ) from None
    try:
        _graph_input_shape(graph)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return graph


def _load_program(graph: bytes) -> torch.export.ExportedProgram:
    if not zipfile.is_zipfile(io.BytesIO(graph)):
        # torch would log a stack trace of its own first.
        raise UserError(f"This is no complete file of torch.export. {_AGAIN}")
    try:
        refuse_code(graph)
        with warnings.catch_warnings(), tensors_only():
            warnings.simplefilter("ignore")
            return torch.export.load(io.BytesIO(graph))
    except (RuntimeError, ValueError, KeyError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise UserError(f"This is no complete file of torch.export ({first_line(error)}). {_AGAIN}") from None


def _graph_input_shape(graph: bytes) -> tuple[Any, ...]:
    program = _load_program(graph)
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(nodes) != 1:
        raise UserError(f"The exported graph takes {len(nodes)} inputs, not one batch of images. {_AGAIN}")
    return tuple(nodes[0].meta["val"].shape)


def _graph_module(graph: bytes, device: torch.device) -> nn.Module:
    program = _load_program(graph)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return program.module()
