"""Laws of the threat model."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_autolora.core.threat_model import ThreatModel

LAW = settings(max_examples=40, deadline=None, derandomize=True, database=None)
BOUNDS = st.sampled_from([(0.0, 1.0), (-1.0, 2.0)])
EPSILONS = st.sampled_from([0.0, 8 / 255, 0.1, 0.3, 1.5])
DTYPES = st.sampled_from([torch.float32, torch.float64])


def images(seed: int, bounds: tuple[float, float], dtype: torch.dtype, rows: int = 4) -> torch.Tensor:
    low, high = bounds
    generator = torch.Generator().manual_seed(seed)
    values = 1.4 * torch.rand(rows, 3, 5, 5, generator=generator, dtype=dtype) - 0.2
    return low + (high - low) * values.clamp(0, 1)


def assert_inside(x_adv: torch.Tensor, x: torch.Tensor, threat_model: ThreatModel) -> None:
    """Asserts that the images are in the threat model around `x`, up to rounding here and in x + epsilon."""
    assert x_adv.min() >= threat_model.bounds[0]
    assert x_adv.max() <= threat_model.bounds[1]
    rounding = 2 * torch.finfo(x.dtype).eps * max(map(abs, threat_model.bounds))
    assert (x_adv - x).abs().max() <= threat_model.epsilon * (1 + torch.finfo(x.dtype).eps) + rounding


@LAW
@given(seed=st.integers(0, 10**6), epsilon=EPSILONS, bounds=BOUNDS, dtype=DTYPES)
def test_a_projection_lies_inside_whatever_was_projected(
    seed: int, epsilon: float, bounds: tuple[float, float], dtype: torch.dtype
) -> None:
    threat_model = ThreatModel(norm="linf", epsilon=epsilon, bounds=bounds)
    x = images(seed, bounds, dtype)
    candidate = x + 3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    projected = threat_model.project(candidate, x)
    assert projected.dtype == dtype
    assert_inside(projected, x, threat_model)
    assert torch.equal(threat_model.project(projected, x), projected)


@LAW
@given(seed=st.integers(0, 10**6), epsilon=st.sampled_from([0.1, 0.3]), bounds=BOUNDS)
def test_a_projection_moves_no_pixel_that_lies_inside(seed: int, epsilon: float, bounds: tuple[float, float]) -> None:
    threat_model = ThreatModel(norm="linf", epsilon=epsilon, bounds=bounds)
    x = images(seed, bounds, torch.float64)
    offset = 2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype) - 1
    inside = (x + 0.99 * epsilon * offset).clamp(*bounds)
    assert torch.equal(threat_model.project(inside, x), inside)


@LAW
@given(seed=st.integers(0, 10**6), epsilon=EPSILONS, bounds=BOUNDS, dtype=DTYPES)
def test_a_random_start_is_uniform_noise_scaled_to_epsilon_and_clamped(
    seed: int, epsilon: float, bounds: tuple[float, float], dtype: torch.dtype
) -> None:
    threat_model = ThreatModel(norm="linf", epsilon=epsilon, bounds=bounds)
    x = images(seed, bounds, dtype)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    start = threat_model.start(x, noise)
    torch.testing.assert_close(start, (x + (2 * noise - 1) * epsilon).clamp(*bounds))
    assert_inside(start, x, threat_model)


def test_without_noise_the_start_is_the_clean_image_inside_the_bounds() -> None:
    threat_model = ThreatModel(norm="linf", epsilon=0.1, bounds=(0.0, 1.0))
    x = torch.tensor([[-0.5, 0.25, 1.5]])
    assert threat_model.start(x, None).tolist() == [[0.0, 0.25, 1.0]]


def test_an_ascent_step_has_the_same_length_in_every_pixel_with_a_gradient() -> None:
    threat_model = ThreatModel(norm="linf", epsilon=0.1, bounds=(0.0, 1.0))
    x = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    gradient = torch.tensor([[1e-20, -3.0, 0.0, 7.0]])
    assert threat_model.ascend(x, gradient, 0.25).tolist() == [[0.75, 0.25, 0.5, 0.75]]


def test_a_threat_model_that_was_not_configured_is_linf_8_255_on_unit_pixels() -> None:
    threat_model = ThreatModel()
    assert (threat_model.norm, threat_model.epsilon, threat_model.bounds) == ("linf", 8 / 255, (0.0, 1.0))
