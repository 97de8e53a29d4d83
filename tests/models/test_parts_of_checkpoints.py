"""A network is taken out of a checkpoint that holds more than it, by the names of its tensors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distributed_autolora.errors import UserError
from distributed_autolora.models import load_backbone, read_checkpoint
from distributed_autolora.models.checkpoint_formats import taken_out
from distributed_autolora.models.small_resnet import SmallResNet
from distributed_autolora.models.weights import load_strictly

State = dict[str, Tensor]


def small() -> SmallResNet:
    return SmallResNet(3, 9)


def behind(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def split(state: State) -> State:
    return {("head." if name.startswith("fc") else "backbone.") + name: value for name, value in state.items()}


LAYOUTS: dict[str, Callable[[State], object]] = {
    "a loss with weights": lambda state: {"state_dict": behind("model.", state) | {"criterion.weight": torch.ones(9)}},
    "an averaged model": lambda state: {"n_averaged": torch.tensor(5), **behind("module.", state)},
    "backbone and head": lambda state: {"state_dict": split(state)},
    "a loss with weights in the head": lambda state: split(state) | {"head.loss.weight": torch.ones(9)},
    "a deep prefix": lambda state: behind("learner.model.net.", state) | {"learner.step": torch.tensor(1)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_network_is_found_behind_its_prefix(tmp_path: Path, layout: str) -> None:
    source = small()
    torch.save(LAYOUTS[layout](source.state_dict()), tmp_path / "w.pt")
    tuned, evaluated = small(), small()
    fresh = tuned.fc.weight.clone()
    load_backbone(tuned, tmp_path / "w.pt", head="fc")
    load_strictly(evaluated, read_checkpoint(tmp_path / "w.pt").state, "w.pt", advice="")
    for name, value in source.state_dict().items():
        assert torch.equal(evaluated.state_dict()[name], value), name
        assert name.startswith("fc.") or torch.equal(tuned.state_dict()[name], value), name
    assert torch.equal(tuned.fc.weight, fresh)


REFUSED: dict[str, tuple[Callable[[State], State], str]] = {
    "two networks": (
        lambda state: behind("student.", state) | behind("teacher.", state),
        r"holds the network 2 times, under student\. and teacher\.\. Save",
    ),
    "a deeper network": (
        lambda state: behind("model.", state | {"layer9.weight": torch.ones(1)}) | {"criterion.weight": torch.ones(9)},
        "0 tensors missing, 1 unexpected.*unexpected layer9.weight",
    ),
    "an incomplete network": (
        lambda state: {f"m.{name}": value for name, value in state.items() if name != "layer1.0.conv1.weight"},
        "Its tensors are called m.conv1.weight",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_network_alone_is_refused_and_its_names_are_shown(case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        load_strictly(small(), change(small().state_dict()), "w.pt", fresh="fc", advice="")


def test_a_plain_state_dict_comes_back_as_it_is() -> None:
    state = small().state_dict()
    assert taken_out("w.pt", state, list(state)) is state
    assert taken_out("w.pt", {"a": torch.ones(1)}, list(state)).keys() == {"a"}
