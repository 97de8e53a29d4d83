"""Networks that a caller brings: they are known by a name in every process that was given them."""

import copy
import hashlib
from dataclasses import dataclass

from torch import nn

from distributed_autolora.errors import UserError

PREFIX = "own/"


@dataclass(frozen=True)
class OwnBackbone:
    """A caller's network and the name of its classification layer; None: the network is used as it is."""

    module: nn.Module
    head: str | None


OWN: dict[str, OwnBackbone] = {}
"""{name: network}; a worker is given those that it needs."""


def register_backbone(module: nn.Module, head: str | None) -> str:
    """Makes a network available under a name, "own/CLASS-DIGEST", and returns the name.

    Args:
        head: name of its last layer inside `module`, an `nn.Linear`, such as "fc"; None: the network is complete.

    Raises:
        UserError: when there is no such layer.
    """
    if head is not None and not isinstance(dict(module.named_modules()).get(head), nn.Linear):
        linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
        known = f"its nn.Linear layers are {', '.join(linear[-5:])}" if linear else "it has no nn.Linear layer"
        raise UserError(
            f'The network {type(module).__name__} has no nn.Linear layer "{head}": {known}. Give head=NAME.'
        )
    shapes = [(name, tuple(value.shape)) for name, value in module.state_dict().items()]
    digest = hashlib.sha256(repr((str(module), shapes, head)).encode()).hexdigest()[:8]
    name = f"{PREFIX}{type(module).__name__}-{digest}"
    OWN[name] = OwnBackbone(copy.deepcopy(module).cpu(), head)
    return name


def own_backbone(name: str, num_classes: int) -> tuple[nn.Module, str]:
    """Returns a copy of a registered network with a fresh head of so many classes, and the name of the head.

    Raises:
        UserError: for a name that this process was not given.
    """
    if name not in OWN:
        raise UserError(
            f'The backbone "{name}" is a network of the program that started the run: start it from there, by '
            "finetune(backbone=MODULE, head=NAME)."
        )
    own = OWN[name]
    network = copy.deepcopy(own.module)
    if own.head is None:
        return network, ""
    parent, _, last = own.head.rpartition(".")
    layer = network.get_submodule(own.head)
    assert isinstance(layer, nn.Linear)
    setattr(network.get_submodule(parent), last, nn.Linear(layer.in_features, num_classes))
    return network, own.head
