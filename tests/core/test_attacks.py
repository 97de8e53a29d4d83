"""Laws of the attacks, and projected gradient descent against a textbook version."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.reference import plain_pgd
from distributed_autolora.core import attacks
from distributed_autolora.core.attacks import _halving_sizes, halving_pgd
from distributed_autolora.core.threat_model import ThreatModel
from tests.core.test_threat_model import assert_inside
from tests.reference.learned import images, learned_network
from tests.reference.networks import BASIC, GROUPED, batch, build

LAW = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def linf(epsilon: float) -> ThreatModel:
    return ThreatModel(norm="linf", epsilon=epsilon, bounds=(0.0, 1.0))


def pgd(network: nn.Module, x: Tensor, y: Tensor, epsilon: float = 0.1, **others: Any) -> Tensor:
    """Runs PGD with two steps of epsilon / 4, but for what `others` says."""
    search: dict[str, Any] = {"num_steps": 2, "step_size": epsilon / 4} | others
    return attacks.pgd(network, x, y, threat_model=linf(epsilon), **search)


def noise_like(x: Tensor, seed: int = 0) -> Tensor:
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize(("epsilon", "step_size", "num_steps"), [(0.1, 0.025, 10), (0.03, 0.05, 3), (0.3, 0.1, 0)])
def test_pgd_is_the_textbook_s(epsilon: float, step_size: float, num_steps: int, random_start: bool) -> None:
    network, (x, _, y) = build(BASIC), batch(4)
    noise = noise_like(x)
    start = noise if random_start else None
    textbook = copy.deepcopy(network).eval()
    expected = plain_pgd(textbook, x, y, epsilon=epsilon, num_steps=num_steps, step_size=step_size, noise=start)
    search = {"num_steps": num_steps, "step_size": step_size, "random_start": random_start, "noise": noise}
    x_adv = pgd(network, x, y, epsilon, **search)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)
    assert (x_adv - x).abs().max() > 0 or (num_steps == 0 and not random_start)


@LAW
@given(
    seed=st.integers(0, 10**6),
    epsilon=st.sampled_from([0.0, 8 / 255, 0.1, 0.5, 1.0]),
    step_share=st.sampled_from([0.25, 1.0, 4.0]),
    num_steps=st.integers(0, 4),
    random_start=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_pgd_never_leaves_the_threat_model_or_the_unit_range(
    seed: int, epsilon: float, step_share: float, num_steps: int, random_start: bool, dtype: torch.dtype
) -> None:
    x, _, y = batch(3, seed, dtype=dtype)
    x = (1.3 * x - 0.15).clamp(0, 1)  # some pixels on the bounds
    search = {"num_steps": num_steps, "step_size": step_share * epsilon, "random_start": random_start}
    noise = noise_like(x, seed) if seed % 2 else None
    x_adv = pgd(build(GROUPED, dtype=dtype), x, y, epsilon, noise=noise, **search)
    assert x_adv.dtype == dtype
    assert_inside(x_adv, x, linf(epsilon))
    assert epsilon or torch.equal(x_adv, x)


@LAW
@given(seed=st.integers(0, 10**6), epsilon=st.sampled_from([8 / 255, 0.1, 0.5]))
def test_one_step_from_the_clean_image_is_fgsm(seed: int, epsilon: float) -> None:
    network, (x, _, y) = build(GROUPED), batch(3, seed)
    fgsm = attacks.fgsm(network, x, y, threat_model=linf(epsilon))
    one_step = pgd(network, x, y, epsilon, num_steps=1, step_size=epsilon, random_start=False)
    torch.testing.assert_close(one_step, fgsm, rtol=0, atol=1e-12)
    with attacks.eval_mode(network):
        sign = torch.sign(attacks.input_gradient(network, x, y))
    torch.testing.assert_close(fgsm, (x + epsilon * sign).clamp(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.02, 0.1])
def test_more_steps_raise_the_mean_loss(epsilon: float) -> None:
    """No law for one image, whose last steps may go back and forth; here every gain is above 1 %, far from rounding."""
    network, (x, y) = learned_network(), images(256, seed=1000)
    losses = []
    for num_steps in (0, 1, 2, 5, 10, 20):
        x_adv = pgd(network, x, y, epsilon, num_steps=num_steps, random_start=False)
        losses.append(float(F.cross_entropy(network(x_adv), y).detach()))
    assert losses == sorted(losses)
    assert losses[-1] > 2 * losses[0], losses


@pytest.mark.parametrize("given_noise", [True, False])
def test_a_random_start_is_that_of_the_noise_or_else_of_torch_s_generator(given_noise: bool) -> None:
    x, _, y = batch(3)
    results = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if given_noise else seed)
            results.append(pgd(build(GROUPED), x, y, noise=noise_like(x, seed) if given_noise else None))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_row_s_result_does_not_depend_on_the_other_rows() -> None:
    network, (x, _, y) = build(BASIC), batch(5)
    noise = noise_like(x)

    def attack(rows: slice) -> Tensor:
        return pgd(network, x[rows], y[rows], num_steps=5, noise=noise[rows])

    together = attack(slice(0, 5))
    for row in range(5):
        torch.testing.assert_close(attack(slice(row, row + 1)), together[row : row + 1], rtol=0, atol=1e-12)


def partly_frozen_network() -> nn.Module:
    """A network in train mode with one part in eval mode, one frozen weight, and gradients from an earlier step."""
    network = build(BASIC).train()
    network.get_submodule("layer1").eval()
    network.get_submodule("layer1.0.bn1").train()
    network.get_parameter("conv1.weight").requires_grad_(False)
    for number, value in enumerate(network.parameters()):
        if value.requires_grad and number % 3:
            value.grad = torch.full_like(value, float(number))
    return network


def picture(network: nn.Module) -> dict[str, object]:
    """Returns everything about a network that an attack could disturb, in comparable form."""
    found: dict[str, object] = {f"training {name}": module.training for name, module in network.named_modules()}
    for name, value in network.named_parameters():
        found[f"grad {name}"] = None if value.grad is None else value.grad.tolist()
        found[f"requires_grad {name}"] = value.requires_grad
    return found | {f"value {name}": value.tolist() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("attack", ["pgd", "fgsm", "input_gradient"])
def test_an_attack_leaves_the_model_and_its_inputs_as_they_were(attack: str) -> None:
    network, (x, _, y) = partly_frozen_network(), batch(3)
    before, x_before = picture(network), x.clone()
    if attack == "pgd":
        result = pgd(network, x, y)
    elif attack == "fgsm":
        result = attacks.fgsm(network, x, y, threat_model=linf(0.1))
    else:
        with attacks.eval_mode(network):
            result = attacks.input_gradient(network, x, y)
    assert picture(network) == before
    assert torch.equal(x, x_before)
    assert x.grad is None
    assert not x.requires_grad
    assert not result.requires_grad


def test_an_attack_inside_no_grad_is_the_same_attack() -> None:
    x, _, y = batch(3)
    expected = pgd(build(GROUPED), x, y, noise=noise_like(x))
    with torch.no_grad():
        assert torch.equal(pgd(build(GROUPED), x, y, noise=noise_like(x)), expected)


def test_a_batch_without_rows_is_attacked_to_a_batch_without_rows() -> None:
    x, _, y = batch(3)
    assert pgd(build(BASIC), x[:0], y[:0]).shape == (0, 3, 8, 8)


def test_eval_mode_restores_every_flag_even_after_an_error() -> None:
    network = partly_frozen_network()
    before = picture(network)
    with attacks.eval_mode(network):
        assert not any(module.training for module in network.modules())
    assert picture(network) == before
    with pytest.raises(RuntimeError, match="inside"), attacks.eval_mode(network):
        raise RuntimeError("inside")
    assert picture(network) == before


def test_the_input_gradient_points_where_the_loss_of_each_row_rises() -> None:
    """Up to a positive factor: an attack with sign steps does not need the loss's denominator."""
    network, (x, _, y) = build(BASIC).eval(), batch(4)
    leaf = x.clone().requires_grad_()
    F.cross_entropy(network(leaf), y, reduction="sum").backward()
    assert leaf.grad is not None
    found = attacks.input_gradient(network, x, y)
    cosine = F.cosine_similarity(found.flatten(1), leaf.grad.flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-9)


def test_the_margin_s_gradient_is_the_one_worked_out_by_hand() -> None:
    """Of a linear network it is the weight row of the largest other class minus the label's, for every image."""
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0], [-1.0, 4.0, 2.0], [0.0, 0.7, -0.2]], dtype=torch.float64)
    x = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.8, 0.5], [0.1, 0.2, 0.9]], dtype=torch.float64)
    # The logits: [.85, -.02, .1, .01], [-1.15, -.36, 4, .46], [.15, -.85, 2.4, -.04].
    y, rivals = torch.tensor([0, 2, 0]), [2, 3, 2]
    network = nn.Linear(3, 4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        network.weight.copy_(weight)
    expected = torch.stack([weight[rival] - weight[label] for rival, label in zip(rivals, y.tolist(), strict=True)])
    found = attacks.input_gradient(network, x, y, loss="margin")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    alone = attacks.input_gradient(network, x[1:2], y[1:2], loss="margin")
    assert torch.equal(alone, found[1:2]), "a row's gradient does not depend on the others"


class Scaled(nn.Module):
    """A linear network whose logits are multiplied until the float32 cross-entropy has no gradient left."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(3, 16, generator=generator)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * F.linear(x.flatten(1) - 0.5, self.weight)


def broken(network: nn.Module, x: Tensor, y: Tensor, loss: str) -> set[int]:
    x_adv = pgd(network, x, y, 0.03, num_steps=10, random_start=False, loss=loss)
    return set((network(x_adv).argmax(1) != y).nonzero().flatten().tolist())


def test_the_margin_sees_through_logits_that_blind_the_cross_entropy_and_agrees_where_nothing_is_hidden() -> None:
    x = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = Scaled(1.0)(x).argmax(1)
    blind = broken(Scaled(1e6), x, y, "cross_entropy")
    seeing = broken(Scaled(1e6), x, y, "margin")
    assert len(blind) <= 4
    assert len(seeing) > 60
    assert seeing == broken(Scaled(1.0), x, y, "margin"), "the scale does not matter to it"
    honest = broken(Scaled(1.0), x, y, "cross_entropy")
    assert len(honest ^ seeing) <= 4, "on a linear network both losses lead to the same images"


def test_a_search_with_halving_steps_halves_where_apgd_does_and_keeps_the_largest_loss() -> None:
    sizes = _halving_sizes(1.0, 100)
    halved = [step for step in range(1, 100) if sizes[step] < sizes[step - 1]]
    assert sizes[0] == 1.0
    assert halved == [22, 41, 57, 70, 80, 87, 93, 99], "the checkpoints of AutoAttack's APGD with 100 steps"
    assert all(sizes[step] == sizes[step - 1] / 2 for step in halved)


def test_a_search_with_halving_steps_leaves_a_flat_start_where_pgd_stays() -> None:
    """The loss is flat within half of epsilon; the middle of the image decides beyond."""

    class Flat(nn.Module):
        factor = 1.0

        def forward(self, x: Tensor) -> Tensor:
            rise = F.relu((x - 0.5).flatten(1).mean(1).abs() - 0.06)
            return self.factor * torch.stack([torch.full_like(rise, 0.01), rise], 1)

    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    noise = torch.full_like(x, 0.81)
    noise[1] = 0.5  # nothing to see from the centre
    search = {"threat_model": ThreatModel(epsilon=0.1), "noise": noise, "num_steps": 8}
    moved = halving_pgd(Flat(), x, y, **search)  # type: ignore[arg-type]
    assert Flat()(moved).argmax(1).tolist() == [1, 0]
    saturated = Flat()
    saturated.factor = 1e8
    assert torch.equal(halving_pgd(saturated, x, y, **search), moved)  # type: ignore[arg-type]
    assert ThreatModel(epsilon=0.1).contains(moved, x).all()
