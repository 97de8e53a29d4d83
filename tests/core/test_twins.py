"""TWINS against two explicit networks: loss, every gradient, both sets of batch norm, in float64; and its laws."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from distributed_autolora.core.objectives import LossTerms, VanillaRFT
from distributed_autolora.core.twins import Twins
from tests.core.comparing import (
    Rows,
    assert_near,
    assert_same,
    assert_shards_add_up,
    assert_tight,
    gradient,
    gradients,
    take_both_ways,
    values,
)
from tests.reference.networks import BASIC, BOTTLENECK, GROUPED, Case, batch, build, randomised
from tests.reference.slow_twins import SlowTwinsState, slow_twins


def far_apart(rows: int, seed: int = 0) -> Rows:
    """Returns images, others that have nothing to do with them, and labels: KL is then far from 0."""
    x, _, y = batch(rows, seed=seed)
    return x, batch(rows, seed=seed + 50)[0], y


def make_twins(
    case: Case, *, gamma: float = 1.0, beta: float = 6.0, soft_labels: str = "joint", seed: int = 0
) -> Twins:
    """Returns TWINS in the midst of training: the paths' affine and statistics differ."""
    network = build(case, seed)
    with torch.no_grad():
        network.get_parameter(f"{case.head}.weight").mul_(4)
    twins = Twins(network, twins_gamma=gamma, trades_beta=beta, soft_labels=soft_labels)
    randomised(network, seed + 1)
    generator = torch.Generator().manual_seed(seed + 2)
    with torch.no_grad():
        for parameter in twins.frozen.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return twins


def slow_state(twins: Twins) -> SlowTwinsState:
    return SlowTwinsState.of(twins.backbone, twins.frozen_state())


def frozen_affine(twins: Twins) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in twins.frozen_state().items() if isinstance(tensor, nn.Parameter)}


def frozen_statistics(twins: Twins) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in twins.frozen_state().items() if not isinstance(tensor, nn.Parameter)}


STEPS = [
    (BASIC, 8, 1.0, "joint"),
    (BASIC, 7, 0.4, "joint"),
    (BASIC, 7, 3.0, "detached"),
    (BASIC, 3, 3.0, "joint"),
    (BASIC, 1, 1.0, "joint"),
    (BOTTLENECK, 7, 0.4, "detached"),
    (GROUPED, 5, 3.0, "joint"),
]


@pytest.mark.parametrize(
    ("case", "rows", "gamma", "soft_labels"), STEPS, ids=lambda value: getattr(value, "name", None)
)
def test_a_twins_step_is_the_step_of_two_networks(case: Case, rows: int, gamma: float, soft_labels: str) -> None:
    twins = make_twins(case, gamma=gamma, beta=2.5, soft_labels=soft_labels)
    x, x_adv, y = far_apart(rows)
    state, statistics = slow_state(twins), {name: value.clone() for name, value in frozen_statistics(twins).items()}

    terms = twins(x, x_adv, y)
    terms.total.backward()

    expected = slow_twins(
        state, case.slow_forward, x, x_adv, y, twins_gamma=gamma, trades_beta=2.5, soft_labels=soft_labels
    )
    assert_same(values(terms.parts.items()), expected)
    assert_tight(terms.total.detach(), sum(expected.values()))
    assert expected["kl"] > 1e-4, "the comparison would be of zeros"
    assert_same(gradients(twins.backbone.named_parameters()), gradients(state.adaptive.items()))
    assert_same(gradients(frozen_affine(twins).items()), gradients(state.frozen_affine().items()))
    assert_same(dict(twins.backbone.named_buffers()), state.adaptive_buffers)
    assert all(torch.equal(value, statistics[name]) for name, value in frozen_statistics(twins).items())
    if rows > 1:
        assert all(gradient(value).norm() > 1e-6 for value in frozen_affine(twins).values())


def test_several_steps_with_momentum_stay_on_the_trajectory_of_two_networks() -> None:
    twins = make_twins(BASIC, gamma=0.4)
    state = slow_state(twins)
    slow_parameters = [*state.adaptive.values(), *state.frozen_affine().values()]
    slow_step = partial(slow_twins, state, BASIC.slow_forward, twins_gamma=0.4, trades_beta=6.0, soft_labels="joint")
    batches = (far_apart(rows, seed=step) for step, rows in enumerate((6, 5, 3)))
    take_both_ways(twins, slow_parameters, batches, slow_step)
    assert_same(values(twins.backbone.named_parameters()), values(state.adaptive.items()))
    assert_same(values(frozen_affine(twins).items()), values(state.frozen_affine().items()))
    assert_same(dict(twins.backbone.named_buffers()), state.adaptive_buffers)


def test_with_gamma_zero_twins_is_vanilla_rft_on_the_second_half_with_half_the_beta() -> None:
    twins, (x, x_adv, y) = make_twins(BASIC, gamma=0.0, beta=6.0), far_apart(8)
    alone = VanillaRFT(make_twins(BASIC).backbone, trades_beta=3.0)
    terms, expected = twins(x, x_adv, y), alone(x[4:], x_adv[4:], y[4:])
    terms.total.backward()
    expected.total.backward()
    assert_tight(terms.total, expected.total)
    assert_same(gradients(twins.backbone.named_parameters()), gradients(alone.backbone.named_parameters()))
    assert all(not gradient(value).any() for value in frozen_affine(twins).values())


def test_before_training_the_frozen_path_in_train_mode_is_the_backbone_in_eval_mode() -> None:
    network, (x, _, _) = build(BASIC), batch(5)
    twins = Twins(network).train()
    modes = [module.training for module in network.modules()]
    frozen = twins.frozen_logits(x)
    assert [module.training for module in network.modules()] == modes
    assert_tight(frozen, network.eval()(x))


@pytest.mark.parametrize("shards", [((0, 3), (3, 0), (0, 0)), ((1, 2), (2, 1), (0, 0)), ((2, 0), (1, 1), (0, 2))])
def test_losses_of_shards_add_up_to_the_loss_of_the_batch(shards: tuple[tuple[int, int], ...]) -> None:
    """Eval mode, so that rows do not meet; shards are (frozen rows, adaptive rows), some without any."""
    twins = make_twins(BASIC).eval()
    n = sum(frozen + adaptive for frozen, adaptive in shards)
    x, x_adv, y = far_apart(n)
    frozen_at, adaptive_at, losses = 0, n // 2, []
    for frozen, adaptive in shards:
        rows = [*range(frozen_at, frozen_at + frozen), *range(adaptive_at, adaptive_at + adaptive)]
        frozen_at, adaptive_at = frozen_at + frozen, adaptive_at + adaptive
        terms = twins(x[rows], x_adv[rows], y[rows], denominator=n / len(shards), frozen_rows=frozen, global_rows=n)
        losses.append(terms.total / len(shards))
    assert (frozen_at, adaptive_at) == (n // 2, n)
    assert_shards_add_up(twins.parameters(), twins(x, x_adv, y).total, losses)


def test_the_state_holds_both_paths_whole() -> None:
    trained, other, rows = make_twins(BASIC), make_twins(BASIC, seed=9), far_apart(6)
    other.load_state_dict(trained.state_dict())
    assert_same(values(other(*rows).parts.items()), values(trained(*rows).parts.items()))
    assert_same(dict(other.named_buffers()), dict(trained.named_buffers()))
    own = [value for value in trained.parameters() if value.requires_grad]
    assert len(own) == len(list(trained.backbone.parameters())) + len(frozen_affine(trained))


def test_bfloat16_and_channels_last_give_about_the_same_loss_in_float32() -> None:
    twins = make_twins(BASIC).float().to(memory_format=torch.channels_last)
    x, x_adv, y = far_apart(6)
    expected: LossTerms = make_twins(BASIC)(x, x_adv, y)
    with torch.autocast("cpu", torch.bfloat16):
        terms = twins(x.float().to(memory_format=torch.channels_last), x_adv.float(), y)
    terms.total.backward()
    assert terms.total.dtype == torch.float32
    assert_near(terms.total, expected.total, torch.bfloat16)
    assert all(gradient(value).isfinite().all() for value in twins.parameters())
