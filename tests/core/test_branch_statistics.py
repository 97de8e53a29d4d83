"""Statistics of the natural branch's own: natural images move them, adversarial ones the backbone's, and none both."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from distributed_autolora.core.lora import BranchStatistics
from distributed_autolora.core.objectives import AutoLoRa
from tests.core.comparing import (
    SLOW_WEIGHTS,
    WEIGHTS,
    assert_same,
    assert_tight,
    branch_with_effect,
    copied_factors,
    gradients,
)
from tests.reference.networks import BASIC, GROUPED, Case, batch, build
from tests.reference.slow_objectives import SlowState, slow_autolora


def objective_of(case: Case, network: nn.Module) -> AutoLoRa:
    return AutoLoRa(network, branch_with_effect(case, network), weights=WEIGHTS, branch_batch_norm="own")


def statistics_of(objective: AutoLoRa) -> BranchStatistics:
    assert objective.statistics is not None
    return objective.statistics


@pytest.mark.parametrize("case", [BASIC, GROUPED], ids=lambda case: case.name)
def test_a_step_with_own_statistics_is_the_slow_step_with_two_sets_of_them(case: Case) -> None:
    network, (x, x_adv, y) = build(case), batch(5)
    objective = objective_of(case, network)
    state = SlowState.of(network, copied_factors(objective.branch))
    branch_buffers = {name: value.clone() for name, value in state.buffers.items()}

    terms = objective(x, x_adv, y)
    terms.total.backward()

    slow: dict[str, Any] = {"head": case.head, "soft_labels": "joint", "branch_buffers": branch_buffers}
    expected = slow_autolora(state, case.slow_forward, x, x_adv, y, **SLOW_WEIGHTS, **slow)
    assert_tight(terms.total.detach(), expected.total)
    assert_same(gradients(network.named_parameters()), expected.gradients)
    assert_same(dict(network.named_buffers()), expected.buffers)
    assert_same(statistics_of(objective).by_name(), branch_buffers)
    assert not torch.allclose(branch_buffers["bn1.running_mean"], expected.buffers["bn1.running_mean"])


def test_in_eval_mode_the_branch_normalises_with_its_own_statistics() -> None:
    network, (x, x_adv, y) = build(BASIC), batch(5)
    objective = objective_of(BASIC, network)
    objective(x, x_adv, y)
    merged = copy.deepcopy(network).eval()
    merged.load_state_dict(
        {**objective.branch.natural_parameters(network), **statistics_of(objective).by_name()}, strict=True
    )
    objective.eval()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    with torch.no_grad():
        assert_tight(objective.natural_logits(x), merged(x))
        assert not torch.allclose(objective.natural_logits(x), network(x))
    assert_same(objective.state_dict(), before)


def test_own_statistics_are_part_of_the_state_and_come_back_with_it() -> None:
    rows = batch(5)
    trained, fresh = objective_of(BASIC, build(BASIC)), objective_of(BASIC, build(BASIC, seed=1))
    trained(*rows)
    fresh.load_state_dict(trained.state_dict())
    assert_same(statistics_of(fresh).by_name(), statistics_of(trained).by_name())
    assert not [name for name, _ in statistics_of(trained).named_parameters()]
