"""Which term of the AutoLoRa loss trains which parameters."""

import pytest
import torch
from torch import Tensor

from distributed_autolora.core.objectives import AutoLoRa
from distributed_autolora.core.schedules import LossWeights
from tests.core.comparing import assert_tight, branch_with_effect, gradient
from tests.reference.networks import BASIC, batch, build

GROUPS = {
    "stem": ["conv1.weight"],
    "block convolutions": [f"{name}.weight" for name in BASIC.all_layers if "downsample" not in name],
    "downsample convolution": ["layer2.0.downsample.0.weight"],
    "batch-norm affine": ["bn1.weight", "bn1.bias", "layer1.0.bn1.weight", "layer2.1.bn2.bias"],
    "downsample batch-norm affine": ["layer2.0.downsample.1.weight", "layer2.0.downsample.1.bias"],
    "factors": [f"{name} {factor}" for name in BASIC.all_layers for factor in "AB"],
    "head": ["fc.weight", "fc.bias"],
}
DETACHED = "kl, soft labels detached"
EXTRACTOR = tuple(GROUPS)[:-2]
TABLE = [
    *((group, term, term != "natural") for group in EXTRACTOR for term in ("natural", "adversarial", "kl", DETACHED)),
    ("factors", "natural", True),
    ("factors", "adversarial", False),
    ("factors", "kl", True),
    ("factors", DETACHED, False),
    *(("head", term, True) for term in ("natural", "adversarial", "kl", DETACHED)),
]


def gradients_of(term: str) -> dict[str, Tensor]:
    part, _, detached = term.partition(", ")
    network = build(BASIC)
    branch = branch_with_effect(BASIC, network)
    weights = LossWeights(natural_weight=0.5, kl_weight=3.0)
    objective = AutoLoRa(network, branch, weights=weights, soft_labels="detached" if detached else "joint")
    objective(*batch(6)).parts[part].backward()
    found = {name: gradient(value) for name, value in network.named_parameters()}
    for name, (a, b) in branch.factors().items():
        found |= {f"{name} A": gradient(a), f"{name} B": gradient(b)}
    return found


@pytest.mark.parametrize(("group", "term", "trained"), TABLE)
def test_a_term_trains_exactly_the_parameters_it_should(group: str, term: str, trained: bool) -> None:
    found = gradients_of(term)
    for name in GROUPS[group]:
        assert bool(found[name].abs().max() > 0) == trained, name


def test_the_extractor_learns_nothing_through_the_soft_labels_and_the_head_does() -> None:
    joint, detached = gradients_of("kl"), gradients_of(DETACHED)
    for group in EXTRACTOR:
        for name in GROUPS[group]:
            assert_tight(joint[name], detached[name])
    assert not torch.allclose(joint["fc.weight"], detached["fc.weight"], rtol=1e-3)
