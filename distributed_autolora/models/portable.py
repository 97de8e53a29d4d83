"""A model that travels between processes and machines: a network by its description and its weights."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from distributed_autolora.config import ModelConfig
from distributed_autolora.errors import UserError
from distributed_autolora.models.checkpoint_formats import channels, stated
from distributed_autolora.models.classifier import Classifier, build
from distributed_autolora.models.own_backbone import OWN, OwnBackbone
from distributed_autolora.models.weight_files import read_checkpoint
from distributed_autolora.models.weights import load_strictly


@dataclass(frozen=True, kw_only=True)
class NetworkDescription:
    """The network that a state dict belongs to."""

    backbone: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int | None = None

    @classmethod
    def of(cls, model: ModelConfig, num_classes: int) -> Self:
        """Returns the description of a run's network."""
        mean, std = tuple(model.mean), tuple(model.std)
        return cls(backbone=model.backbone, num_classes=num_classes, mean=mean, std=std, input_size=model.input_size)

    def build(self) -> Classifier:
        """Returns the network with random weights.

        Raises:
            UserError: for an unknown backbone, or a number of channels that it does not take.
        """
        return build(self.backbone, self.num_classes, mean=self.mean, std=self.std, input_size=self.input_size)

    def metadata(self) -> dict[str, str]:
        """Returns the metadata of a .safetensors file; `from_metadata` inverts it."""
        values = asdict(self)
        return {key: value if key == "backbone" else json.dumps(value) for key, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self | None:
        """Returns the description in a file's metadata; None where a value is missing or of another type."""
        mean, std = (channels(stated(metadata, key)) for key in ("mean", "std"))
        classes, size = (stated(metadata, key) for key in ("num_classes", "input_size"))
        are_counts = all(type(value) is int and value >= 1 for value in (classes, 1 if size is None else size))
        if "backbone" not in metadata or mean is None or std is None or not are_counts:
            return None
        return cls(backbone=metadata["backbone"], num_classes=classes, mean=mean, std=std, input_size=size)


@dataclass(frozen=True)
class PortableModel:
    """One model, complete: its network, and the state dict of the network with its head."""

    description: NetworkDescription
    weights: dict[str, Tensor]
    class_names: tuple[str, ...] = ()
    """Of the outputs, in their order; empty: unknown. They change no output, so the digest leaves them out."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (OWN.get(self.description.backbone), self.description, self.weights, self.class_names)

    def digest(self) -> str:
        """Returns the SHA-256 of all that determines the model's outputs."""
        digest = hashlib.sha256(json.dumps(asdict(self.description), sort_keys=True).encode())
        for name, value in sorted(self.weights.items()):
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}:".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def metadata(self) -> dict[str, str]:
        """Returns the metadata of its .safetensors file: the description, and the class names if they are known."""
        names = {"class_names": json.dumps(self.class_names)} if self.class_names else {}
        return self.description.metadata() | names

    def build(self, device: torch.device | str = "cpu", where: str = "the file") -> Classifier:
        """Returns the model on a device, in eval mode and float32; it takes images in [0, 1].

        Raises:
            UserError: for weights that do not fit the description; names `where` they come from.
        """
        classifier = self.description.build()
        advice = "Give the matching --backbone, --num-classes and --mean."
        load_strictly(classifier.backbone, self.weights, where, advice=advice)
        return classifier.float().eval().to(device)


def _unpickled(own: OwnBackbone | None, description: NetworkDescription, *rest: Any) -> PortableModel:
    if own is not None:
        OWN[description.backbone] = own
    return PortableModel(description, *rest)


def read_model(path: Path) -> PortableModel:
    """Reads a .safetensors file of this package, which describes its network.

    Raises:
        UserError: for a damaged file, or one without a description.
    """
    checkpoint = read_checkpoint(path)
    description = NetworkDescription.from_metadata(checkpoint.metadata)
    if description is None:
        raise UserError(f"{path} does not say which network it belongs to: give a run's model.safetensors.")
    return PortableModel(description, checkpoint.state, stated_classes(checkpoint.metadata))


def stated_classes(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the class names in a file's metadata; empty where they are missing or of another type."""
    names = stated(metadata, "class_names")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list else ()
