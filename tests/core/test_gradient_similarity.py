"""Gradient similarity against hand-written forwards and hand-flattened gradients, in float64; and its laws."""

import pytest
import torch
from torch import Tensor, nn

from distributed_autolora.core.gradient_similarity import batch_gradient_similarity, gradient_similarity
from distributed_autolora.core.lora import LowRankBranch
from distributed_autolora.core.objectives import AutoLoRa, Twins, VanillaRFT
from distributed_autolora.core.schedules import LossWeights
from tests.core.comparing import assert_near, assert_tight
from tests.core.test_twins import far_apart, make_twins
from tests.reference.networks import BASIC, BOTTLENECK, GROUPED, Case, batch, build
from tests.reference.slow_twins import SlowTwinsState, slow_similarity


def make_objective(kind: str, case: Case, *, gamma: float = 1.0, soft_labels: str = "joint") -> Twins | VanillaRFT:
    twins = make_twins(case, gamma=gamma, soft_labels=soft_labels)
    return twins if kind == "twins" else VanillaRFT(twins.backbone, soft_labels=soft_labels)


@pytest.mark.parametrize("soft_labels", ["joint", "detached"])
@pytest.mark.parametrize(
    ("kind", "case", "gamma"),
    [("vanilla", BASIC, None), ("vanilla", GROUPED, None), ("twins", BASIC, 0.4), ("twins", BOTTLENECK, 3.0)],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_similarity_is_the_cosine_of_hand_flattened_gradients(
    kind: str, case: Case, gamma: float | None, soft_labels: str
) -> None:
    objective = make_objective(kind, case, gamma=gamma or 1.0, soft_labels=soft_labels)
    x, x_adv, y = far_apart(3)
    frozen = objective.frozen_state() if isinstance(objective, Twins) else {}
    state = SlowTwinsState.of(objective.backbone, frozen)

    def expected(rows: slice) -> float:
        return slow_similarity(
            state,
            case.slow_forward,
            x[rows],
            x_adv[rows],
            y[rows],
            head=case.head,
            twins_gamma=gamma,
            soft_labels=soft_labels,
        )

    found = gradient_similarity(objective, x, x_adv, y, head=case.head)
    assert_tight(found, torch.tensor([expected(slice(i, i + 1)) for i in range(3)], dtype=torch.float64))
    of_batch = batch_gradient_similarity(objective, x, x_adv, y, head=case.head)
    assert_tight(of_batch, torch.tensor(expected(slice(0, 3)), dtype=torch.float64))
    assert not torch.allclose(of_batch, found.mean(), rtol=1e-3), "the batch form is another number"


def test_the_objective_is_left_as_it_was() -> None:
    objective = make_objective("twins", BASIC).train()
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    with torch.no_grad():
        gradient_similarity(objective, *far_apart(2))
    assert all(torch.equal(value, state[name]) for name, value in objective.state_dict().items())
    assert all(module.training for module in objective.modules())
    assert all(parameter.grad is None for parameter in objective.parameters())


def test_with_gamma_zero_the_similarity_of_twins_is_that_of_vanilla_rft() -> None:
    rows = far_apart(3)
    vanilla = gradient_similarity(make_objective("vanilla", BASIC), *rows)
    assert_tight(gradient_similarity(make_objective("twins", BASIC, gamma=0.0), *rows), vanilla)
    assert not torch.allclose(gradient_similarity(make_objective("twins", BASIC, gamma=3.0), *rows), vanilla, rtol=1e-2)


class OneWeight(nn.Module):
    """A feature extractor of one weight: the similarity can only be the product of two signs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.fc = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0], [-1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.scale * x.flatten(1))
        return logits


@pytest.mark.parametrize(("adversarial", "label", "similarity"), [(0.5, 0, 1.0), (2.0, 0, -1.0), (0.5, 1, -1.0)])
def test_the_sign_tells_whether_the_objectives_agree(adversarial: float, label: int, similarity: float) -> None:
    """A larger weight makes both images surer of class 0; a weaker x_adv needs that to match its soft labels."""
    objective = VanillaRFT(OneWeight(), soft_labels="detached")
    x = torch.ones(1, 1, 1, 1)
    assert gradient_similarity(objective, x, adversarial * x, torch.tensor([label])).tolist() == [similarity]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("soft_labels", ["joint", "detached"])
@pytest.mark.parametrize("kind", ["vanilla", "twins"])
def test_without_a_perturbation_the_similarity_is_zero(kind: str, soft_labels: str, dtype: torch.dtype) -> None:
    objective, (x, _, y) = make_objective(kind, BASIC, soft_labels=soft_labels).to(dtype), batch(4, dtype=dtype)
    assert gradient_similarity(objective, x, x.clone(), y).tolist() == [0.0] * 4
    assert batch_gradient_similarity(objective, x, x, y) == 0


@pytest.mark.parametrize("kind", ["vanilla", "twins"])
def test_no_rows_have_no_similarity(kind: str) -> None:
    objective, (x, x_adv, y) = make_objective(kind, BASIC), far_apart(1)
    assert gradient_similarity(objective, x[:0], x_adv[:0], y[:0]).shape == (0,)
    assert batch_gradient_similarity(objective, x[:0], x_adv[:0], y[:0]) == 0


def test_float32_agrees_with_float64() -> None:
    exact = gradient_similarity(make_objective("twins", BASIC), *batch(4))
    x, x_adv, y = batch(4)
    single = gradient_similarity(make_objective("twins", BASIC).float(), x.float(), x_adv.float(), y)
    assert_near(single, exact)


def test_it_is_not_defined_for_autolora() -> None:
    network: nn.Module = build(BASIC)
    objective = AutoLoRa(network, LowRankBranch(network), weights=LossWeights(1.0, 0.0))
    with pytest.raises(TypeError, match="not for AutoLoRa"):
        gradient_similarity(objective, *batch(2))
