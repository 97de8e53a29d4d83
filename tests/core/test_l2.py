"""The L2 threat model: its laws, and other programs' formulas as oracles."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize
from torch import Tensor, nn

from distributed_autolora.core import attacks
from distributed_autolora.core.keyed_random import keyed_uniform
from distributed_autolora.core.threat_model import ThreatModel
from tests.core.test_threat_model import BOUNDS, DTYPES, images
from tests.reference.networks import BASIC, GROUPED, batch, build

LAW = settings(max_examples=40, deadline=None, derandomize=True, database=None)
EPSILONS = st.sampled_from([0.0, 0.1, 0.5, 3.0, 50.0])


def l2(epsilon: float, bounds: tuple[float, float] = (0.0, 1.0)) -> ThreatModel:
    return ThreatModel(norm="l2", epsilon=epsilon, bounds=bounds)


def lengths(delta: Tensor) -> Any:
    return np.linalg.norm(delta.double().numpy().reshape(len(delta), -1), axis=1)


def assert_inside(x_adv: Tensor, x: Tensor, threat_model: ThreatModel) -> None:
    low, high = threat_model.bounds
    assert x_adv.min() >= low
    assert x_adv.max() <= high
    # Rounding turns each pixel by half a unit in its last place at most.
    rounding = 2 * torch.finfo(x.dtype).eps * max(-low, high) * x[0].numel() ** 0.5
    assert lengths(x_adv.double() - x.double()).max() <= threat_model.epsilon * (1 + 1e-6) + rounding
    assert threat_model.contains(x_adv, x).all()


@LAW
@given(seed=st.integers(0, 10**6), epsilon=EPSILONS, bounds=BOUNDS, dtype=DTYPES, reach=st.sampled_from([0.01, 1, 30]))
def test_starts_and_projections_lie_inside(
    seed: int, epsilon: float, bounds: tuple[float, float], dtype: torch.dtype, reach: float
) -> None:
    threat_model, x = l2(epsilon, bounds), images(seed, bounds, dtype)
    generator = torch.Generator().manual_seed(seed)
    candidate = x + reach * torch.randn(x.shape, generator=generator, dtype=dtype)
    before = candidate.clone()
    projected = threat_model.project(candidate, x)
    assert projected.dtype == dtype
    assert torch.equal(candidate, before), "the caller's images stay as they were"
    assert_inside(projected, x, threat_model)
    assert lengths(threat_model.project(projected, x) - projected).max() <= 1e-5
    assert_inside(threat_model.start(x, torch.rand(x.shape, generator=generator, dtype=dtype)), x, threat_model)


@pytest.mark.parametrize("seed", range(6))
def test_a_projection_is_the_nearest_point_that_an_optimiser_finds(seed: int) -> None:
    random, size, epsilon = np.random.default_rng(seed), 8, 0.6
    x, step = random.random(size).round(1), random.normal(size=size)
    found = minimize(
        lambda point: np.sum((point - x - step) ** 2),
        x,
        jac=lambda point: 2 * (point - x - step),
        bounds=[(0, 1)] * size,
        constraints={
            "type": "ineq",
            "fun": lambda point: epsilon**2 - np.sum((point - x) ** 2),
            "jac": lambda point: -2 * (point - x),
        },
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    projected = l2(epsilon).project(torch.tensor(x + step)[None], torch.tensor(x)[None])[0]
    np.testing.assert_allclose(projected.numpy(), found.x, rtol=0, atol=1e-4)


def pyautoattack_projection(x_adv: Tensor, x: Tensor, epsilon: float) -> Tensor:
    """APGD's projection in L2 (autopgd_base.py): onto the ball, then onto the box."""
    delta = x_adv - x
    norm: Tensor = delta.flatten(1).norm(dim=1)[:, None, None, None]
    return (x + delta / (norm + 1e-12) * torch.minimum(torch.tensor(epsilon, dtype=x.dtype), norm)).clamp(0, 1)


@LAW
@given(seed=st.integers(0, 10**6), epsilon=st.sampled_from([0.5, 1.0, 3.0]))
def test_a_projection_is_pyautoattack_s_away_from_the_bounds_and_nearer_at_them(seed: int, epsilon: float) -> None:
    x = images(seed, (0.0, 1.0), torch.float64)
    moved = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    projected, other = l2(epsilon).project(moved, x), pyautoattack_projection(moved, x, epsilon)
    assert (lengths(projected - moved) <= lengths(other - moved) + 1e-9).all()
    inner, small = 0.4 + 0.2 * x, 0.05 * epsilon
    moved = inner + 0.01 * (moved - x)
    expected = pyautoattack_projection(moved, inner, small)
    torch.testing.assert_close(l2(small).project(moved, inner), expected, rtol=0, atol=1e-12)


def torchattacks_pgdl2(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, eps: float, alpha: float) -> Tensor:
    adv = start.clone()
    for _ in range(5):
        adv = adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(nn.CrossEntropyLoss()(model(adv), y), adv)
        grad_norms = torch.norm(grad.view(len(x), -1), p=2, dim=1) + 1e-10
        adv = adv.detach() + alpha * grad / grad_norms.view(len(x), 1, 1, 1)
        delta = adv - x
        factor = eps / torch.norm(delta.view(len(x), -1), p=2, dim=1)
        delta = delta * torch.min(factor, torch.ones_like(factor)).view(-1, 1, 1, 1)
        adv = torch.clamp(x + delta, min=0, max=1).detach()
    return adv


@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_is_that_of_torchattacks_where_no_pixel_meets_a_bound(random_start: bool) -> None:
    network, (x, _, y) = build(BASIC).eval(), batch(4)
    x, threat_model = 0.4 + 0.2 * x, l2(0.3)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype) if random_start else None
    search = {"num_steps": 5, "step_size": 0.1, "random_start": random_start}
    found = attacks.pgd(network, x, y, threat_model=threat_model, noise=noise, **search)  # type: ignore[arg-type]
    expected = torchattacks_pgdl2(network, x, y, threat_model.start(x, noise), eps=0.3, alpha=0.1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    assert lengths(found - x).min() > 0.2


@LAW
@given(seed=st.integers(0, 10**6), epsilon=EPSILONS, num_steps=st.integers(0, 3), random_start=st.booleans())
def test_pgd_never_leaves_the_threat_model_and_epsilon_zero_is_the_identity(
    seed: int, epsilon: float, num_steps: int, random_start: bool
) -> None:
    x, _, y = batch(3, seed, dtype=torch.float32)
    x = (1.3 * x - 0.15).clamp(0, 1)
    search = {"num_steps": num_steps, "step_size": 0.3, "random_start": random_start}
    network, noise = build(GROUPED, dtype=torch.float32), torch.rand(x.shape)
    x_adv = attacks.pgd(network, x, y, threat_model=l2(epsilon), noise=noise, **search)  # type: ignore[arg-type]
    assert_inside(x_adv, x, l2(epsilon))
    assert epsilon > 0 or torch.equal(x_adv, x)


def test_one_step_from_the_clean_image_is_the_fast_gradient_method() -> None:
    network, (x, _, y) = build(GROUPED).eval(), batch(3)
    x = 0.4 + 0.2 * x
    leaf = x.clone().requires_grad_()
    F.cross_entropy(network(leaf), y).backward()
    assert leaf.grad is not None
    expected = x + 0.3 * F.normalize(leaf.grad.flatten(1)).view_as(x)
    torch.testing.assert_close(attacks.fgsm(network, x, y, threat_model=l2(0.3)), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1.0, 1e30])
def test_a_step_has_the_length_that_was_asked_for_whatever_the_gradient_s_and_none_without_one(scale: float) -> None:
    x, gradient = torch.full((2, 1, 2, 2), 0.5), torch.tensor([3.0, 0.0, -4.0, 0.0]).view(1, 1, 2, 2)
    moved = l2(1.0).ascend(x, torch.cat([scale * gradient, 0 * gradient]), 0.25)
    torch.testing.assert_close(moved[0].flatten(), torch.tensor([0.65, 0.5, 0.3, 0.5]))
    assert torch.equal(moved[1], x[1])


@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 4, 4)])
def test_a_random_start_is_uniform_in_the_ball(shape: tuple[int, ...]) -> None:
    rows, dimension = 2000, int(np.prod(shape))
    x = torch.full((rows, *shape), 0.5, dtype=torch.float64)
    noise = keyed_uniform(0, "attack", 1, torch.arange(rows), shape)
    delta = (l2(0.4).start(x, noise) - x).flatten(1).numpy() / 0.4
    radii = np.linalg.norm(delta, axis=1)
    assert stats.kstest(radii**dimension, "uniform").pvalue > 1e-3, "the volume inside the radius is uniform"
    # Of a uniform point in the unit ball a coordinate's square is Beta(1/2, (d + 1) / 2).
    for coordinate in (0, dimension - 1):
        beta = stats.beta(0.5, (dimension + 1) / 2)
        assert stats.kstest(delta[:, coordinate] ** 2, beta.cdf).pvalue > 1e-3
        assert abs((delta[:, coordinate] > 0).mean() - 0.5) < 4 * 0.5 / rows**0.5
    correlation = np.corrcoef(delta[:, 0], delta[:, 1])[0, 1]
    assert abs(correlation) < 4 / rows**0.5
    assert np.abs(delta[:1] - delta[1:2]).max() > 0


def test_extreme_noise_starts_inside_the_ball() -> None:
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.zeros_like(x)
    noise[1], noise[2] = 0.5, 1 - 2.0**-53
    assert_inside(l2(0.5).start(x, noise), x, l2(0.5))


def test_contains_finds_the_image_that_left() -> None:
    x = torch.full((3, 1, 2, 2), 0.5)
    x_adv = x + torch.tensor([0.1, 0.2, 0.6]).view(3, 1, 1, 1)  # lengths 0.2, 0.4, 1.2
    assert l2(0.3).contains(x_adv, x).tolist() == [True, False, False]
    assert l2(5.0).contains(x_adv, x).tolist() == [True, True, False], "the third is above the largest pixel value"
    assert ThreatModel("linf", 0.15).contains(x_adv, x).tolist() == [True, False, False]
    black_and_white = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    assert l2(0.5).contains(black_and_white, torch.full_like(black_and_white, 0.5)).all(), "the bounds are allowed"


def test_linf_computes_the_bits_that_it_did_as_a_formula_in_the_attack() -> None:
    network, (x, _, y) = build(BASIC, dtype=torch.float32).eval(), batch(4, dtype=torch.float32)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(2))
    found = attacks.pgd(network, x, y, threat_model=ThreatModel("linf", 0.1), num_steps=4, step_size=0.025, noise=noise)
    lowest, highest = (x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1)
    x_adv = (x + 0.1 * (2 * noise - 1)).clamp(0, 1)
    for _ in range(4):
        x_adv = x_adv.add(attacks.input_gradient(network, x_adv, y).sign(), alpha=0.025).clamp(lowest, highest)
    assert torch.equal(found, x_adv)
