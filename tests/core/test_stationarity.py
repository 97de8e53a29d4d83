"""First-order stationarity (FOSC) against formulas and searches that know nothing of the projection it is made with."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor, nn

from distributed_autolora.core.attacks import first_order_stationarity, input_gradient, pgd
from distributed_autolora.core.threat_model import ThreatModel

LAW = settings(max_examples=25, deadline=None, derandomize=True, database=None)
NORMS = st.sampled_from(["linf", "l2"])


def case(seed: int, threat_model: ThreatModel, low: float = -0.3, high: float = 1.3) -> tuple[Tensor, Tensor, Tensor]:
    """Returns images with many pixels at 0 and 1, points of the threat model and gradients of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, 1, 5, 5)
    x = (low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    normal = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return x, threat_model.start(x, torch.rand(shape, generator=generator).double()), normal[0] * normal[1].exp()


def rise_by_search(x: Tensor, x_adv: Tensor, gradient: Tensor, threat_model: ThreatModel) -> float:
    """Returns the largest linear rise for one image: a pixel at a time in L-infinity, by a multiplier's root in L2."""
    lowest, highest = (x * 0 - x).flatten().numpy(), (1 - x).flatten().numpy()
    slope, moved, epsilon = gradient.flatten().numpy(), (x_adv - x).flatten().numpy(), threat_model.epsilon
    if threat_model.norm == "linf":
        ends = (np.maximum(lowest, -epsilon), np.minimum(highest, epsilon))
        return float(np.maximum(*(slope * (end - moved) for end in ends)).sum())

    def excess(multiplier: float) -> float:
        return float(np.linalg.norm(np.clip(multiplier * slope, lowest, highest)) - epsilon)

    multiplier = brentq(excess, 0, 1e6, xtol=1e-14)
    return float(((np.clip(multiplier * slope, lowest, highest) - moved) * slope).sum())


@LAW
@given(seed=st.integers(0, 10**6), norm=NORMS, epsilon=st.sampled_from([0.05, 0.4]))
def test_it_is_the_largest_linear_rise_within_the_threat_model(seed: int, norm: str, epsilon: float) -> None:
    threat_model = ThreatModel(norm, epsilon)
    x, x_adv, gradient = case(seed, threat_model)
    found = first_order_stationarity(x, x_adv, gradient, threat_model)
    for row, one in enumerate(found):
        assert float(one) == pytest.approx(rise_by_search(x[row], x_adv[row], gradient[row], threat_model), rel=1e-6)


@LAW
@given(seed=st.integers(0, 10**6), norm=NORMS)
def test_away_from_black_and_white_it_is_the_published_formula(seed: int, norm: str) -> None:
    threat_model = ThreatModel(norm, 0.1)
    x, x_adv, gradient = case(seed, threat_model, 0.2, 0.8)
    dual = gradient.flatten(1).norm(1 if norm == "linf" else 2, dim=1)
    published = 0.1 * dual - ((x_adv - x) * gradient).flatten(1).sum(1)
    torch.testing.assert_close(first_order_stationarity(x, x_adv, gradient, threat_model), published)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_that_has_converged_leaves_nothing_and_one_that_stopped_early_does(norm: str) -> None:
    """The margin of a linear classifier rises by a constant slope: its largest value is at the edge."""
    threat_model = ThreatModel(norm, 0.1)
    x, _, _ = case(0, threat_model)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 2)).double()
    y = torch.tensor([0, 1, 0, 1])

    def left(num_steps: int) -> Tensor:
        search = {"num_steps": num_steps, "step_size": 0.025, "random_start": False, "loss": "margin"}
        x_adv = pgd(model, x, y, threat_model=threat_model, **search)  # type: ignore[arg-type]
        return first_order_stationarity(x, x_adv, input_gradient(model, x_adv, y, loss="margin"), threat_model)

    assert left(0).min() > 0.01
    assert left(20).max() < 1e-3 * left(0).min()
    assert torch.equal(first_order_stationarity(x, x, F.relu(x) * 0, threat_model), torch.zeros(4).double())
