"""The objectives against the slow oracles: loss, every gradient, every batch-norm buffer, in float64."""

from functools import partial

import pytest
import torch
from torch import nn

from distributed_autolora.core.objectives import AutoLoRa, LossTerms, Twins, VanillaRFT
from distributed_autolora.core.schedules import LossWeights
from tests.core.comparing import (
    SLOW_WEIGHTS,
    WEIGHTS,
    assert_same,
    assert_shards_add_up,
    assert_tight,
    branch_with_effect,
    copied_factors,
    gradient,
    gradients,
    take_both_ways,
    values,
)
from tests.reference.networks import BASIC, BOTTLENECK, CASES, GROUPED, RESNEXT, Case, batch, build
from tests.reference.slow_objectives import SlowResult, SlowState, slow_autolora, slow_vanilla

SCOPED = [(case, "all") for case in CASES] + [(case, "last_block") for case in (BASIC, BOTTLENECK, RESNEXT)]


def assert_same_step(terms: LossTerms, network: nn.Module, expected: SlowResult) -> None:
    assert_tight(terms.total.detach(), expected.total)
    assert_same(values(terms.parts.items()), expected.parts)
    assert_same(gradients(network.named_parameters()), expected.gradients)
    assert_same(dict(network.named_buffers()), expected.buffers)


@pytest.mark.parametrize("soft_labels", ["joint", "detached"])
@pytest.mark.parametrize(("case", "scope"), SCOPED, ids=lambda value: getattr(value, "name", value))
def test_an_autolora_step_is_the_slow_step(case: Case, scope: str, soft_labels: str) -> None:
    network, (x, x_adv, y) = build(case), batch(5)
    branch = branch_with_effect(case, network, lora_rank=3, lora_scope=scope)
    layers = case.all_layers if scope == "all" else case.last_block_layers
    assert layers is not None
    assert set(branch.factors()) == set(layers)
    state = SlowState.of(network, copied_factors(branch))

    objective = AutoLoRa(network, branch, weights=WEIGHTS, soft_labels=soft_labels)
    terms = objective(x, x_adv, y)
    terms.total.backward()

    expected = slow_autolora(
        state, case.slow_forward, x, x_adv, y, head=case.head, soft_labels=soft_labels, **SLOW_WEIGHTS
    )
    assert_same_step(terms, network, expected)
    for name, pair in branch.factors().items():
        found = gradients(zip("AB", pair, strict=True))
        assert_same(found, dict(zip("AB", expected.factor_gradients[name], strict=True)))
        assert all(value.norm() > 0 for value in found.values()), f"{name}: the comparison would be of zeros"


@pytest.mark.parametrize("soft_labels", ["joint", "detached"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_vanilla_step_is_the_slow_step(case: Case, soft_labels: str) -> None:
    network, (x, x_adv, y) = build(case), batch(5)
    state = SlowState.of(network)

    terms = VanillaRFT(network, trades_beta=2.5, soft_labels=soft_labels)(x, x_adv, y)
    terms.total.backward()

    expected = slow_vanilla(state, case.slow_forward, x, x_adv, y, trades_beta=2.5, soft_labels=soft_labels)
    assert_same_step(terms, network, expected)


def test_several_autolora_steps_with_momentum_stay_on_the_slow_trajectory() -> None:
    case, network = BASIC, build(BASIC)
    branch = branch_with_effect(case, network)
    state = SlowState.of(network, copied_factors(branch))
    objective = AutoLoRa(network, branch, weights=WEIGHTS)
    slow_parameters = [*state.parameters.values(), *(factor for pair in state.factors.values() for factor in pair)]
    slow_step = partial(slow_autolora, state, case.slow_forward, head="fc", soft_labels="joint", **SLOW_WEIGHTS)
    take_both_ways(objective, slow_parameters, (batch(5, seed=step) for step in range(3)), slow_step)
    assert_same(values(network.named_parameters()), values(state.parameters.items()))
    assert_same(dict(network.named_buffers()), state.buffers)


@pytest.mark.parametrize(
    ("term", "soft_labels", "trained"),
    [
        ("natural", "joint", "factors head"),
        ("adversarial", "joint", "extractor head"),
        ("kl", "joint", "extractor factors head"),
        ("kl", "detached", "extractor head"),
    ],
)
def test_a_term_trains_exactly_the_parameters_it_should(term: str, soft_labels: str, trained: str) -> None:
    network = build(BASIC)
    objective = AutoLoRa(network, branch_with_effect(BASIC, network), weights=WEIGHTS, soft_labels=soft_labels)
    objective(*batch(6)).parts[term].backward()
    for name, value in objective.named_parameters():
        group = "factors" if name.startswith("branch.") else "head" if ".fc." in name else "extractor"
        assert bool(gradient(value).any()) == (group in trained), name


def test_the_published_weights_are_the_defaults() -> None:
    twins, vanilla = Twins(build(BASIC)), VanillaRFT(build(BASIC))
    assert (twins.twins_gamma, twins.trades_beta, vanilla.trades_beta) == (1.0, 6.0, 6.0)


def make_objective(kind: str, case: Case, network: nn.Module) -> nn.Module:
    if kind == "vanilla":
        return VanillaRFT(network, trades_beta=2.5)
    return AutoLoRa(network, branch_with_effect(case, network), weights=WEIGHTS)


@pytest.mark.parametrize("kind", ["autolora", "vanilla"])
def test_losses_of_shards_over_the_global_count_add_up_to_the_loss_of_the_batch(kind: str) -> None:
    """Batch norm in eval mode, so that rows do not meet; one shard has no row at all."""
    network, (x, x_adv, y) = build(BASIC).eval(), batch(7)
    objective = make_objective(kind, BASIC, network)
    shards = [slice(0, 3), slice(3, 3), slice(3, 7)]
    losses = [objective(x[rows], x_adv[rows], y[rows], denominator=7.0).total for rows in shards]
    assert_shards_add_up(objective.parameters(), objective(x, x_adv, y).total, losses)


def test_loss_weights_can_be_set_between_epochs() -> None:
    network, rows = build(BASIC).eval(), batch(5)
    branch = branch_with_effect(BASIC, network)
    objective = AutoLoRa(network, branch, weights=WEIGHTS)
    before = objective(*rows).parts
    objective.weights = LossWeights(natural_weight=0.6, kl_weight=2.1)
    after = objective(*rows).parts
    assert_tight(after["natural"], before["natural"] * 2)
    assert_tight(after["adversarial"], before["adversarial"] * (0.4 / 0.7))
    assert_tight(after["kl"], before["kl"] / 2)


def test_the_loss_stays_finite_for_confident_logits() -> None:
    """KL of distributions with probabilities that underflow, as in late training."""
    network, (x, x_adv, y) = build(GROUPED, dtype=torch.float32), batch(5, dtype=torch.float32)
    with torch.no_grad():
        network.get_parameter("head.weight").mul_(1000)
    terms = AutoLoRa(network, branch_with_effect(GROUPED, network).float(), weights=WEIGHTS)(x, x_adv, y)
    terms.total.backward()
    assert terms.total.isfinite()
    assert all(value.isfinite().all() for value in gradients(network.named_parameters()).values())
