"""Attacks that are captured once and replayed; on a CPU a recorder of tensor operations captures them."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from distributed_autolora.core.attacks import pgd
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.core.fast_attack.cuda_graphs import Capture, CudaGraphAttack, CudaGraphs, Run, agreement
from distributed_autolora.core.threat_model import ThreatModel
from tests.reference.learned import images, learned_network

EPSILON = 0.04
BOTH_PRECISIONS = pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])


def recorded(run: Run) -> Run:
    """Records every tensor operation of `run`, the backward ones too, and repeats them on the same memory."""
    replay: Run = make_fx(run)()
    return replay


def attack(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    noise: Tensor | None = None,
    num_steps: int = 3,
    loss: str = "cross_entropy",
    norm: str = "linf",
) -> Tensor:
    epsilon = EPSILON if norm == "linf" else 0.4
    return pgd(
        network,
        x,
        y,
        threat_model=ThreatModel(norm, epsilon),
        num_steps=num_steps,
        step_size=0.4 * epsilon,
        random_start=noise is not None,
        noise=noise,
        loss=loss,
    )


class Counted:
    """A capture that counts its calls, and the replays of what it recorded."""

    def __init__(self, capture: Capture = recorded) -> None:
        self.capture, self.captures, self.replays = capture, 0, 0

    def __call__(self, run: Run) -> Run:
        self.captures += 1
        replay = self.capture(run)

        def counting() -> Tensor:
            self.replays += 1
            return replay()

        return counting


class Undecided(nn.Module):
    """A network that reads a value of its data to go on, which nothing that records can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.network = learned_network()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits if x.mean() > -100 else -logits


@pytest.fixture(autouse=True)
def _no_attack_runs_eagerly_in_silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def batch(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    x, y = images(rows, seed)
    return x, y, torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))


@BOTH_PRECISIONS
@pytest.mark.parametrize(
    ("loss", "starts_at_random", "norm"),
    [
        ("cross_entropy", False, "linf"),
        ("margin", True, "linf"),
        ("cross_entropy", True, "l2"),
    ],
)
def test_a_replayed_attack_is_the_eager_one_to_the_last_bit(
    precision: torch.dtype, loss: str, starts_at_random: bool, norm: str
) -> None:
    """Batch after batch with new images, labels and noise, the last one of an epoch shorter than the others."""
    network, capture = AttackNetwork(learned_network(), precision), Counted()
    search = partial(attack, loss=loss, norm=norm)
    replayed = CudaGraphAttack(search, network, capture)
    for number, rows in enumerate((16, 16, 5, 16, 16, 5)):
        x, y, noise = batch(rows, seed=number)
        start = noise if starts_at_random else None
        x_adv = replayed(network, x, y, noise=start)
        assert torch.equal(x_adv, search(network, x, y, noise=start))
        assert x_adv.stride() == x.stride()
    assert (capture.captures, capture.replays) == (2, 6)


def test_a_replay_does_not_overwrite_what_earlier_ones_returned() -> None:
    network = AttackNetwork(learned_network())
    replayed = CudaGraphAttack(attack, network, recorded)
    first, second = (replayed(network, *batch(8, seed)[:2]) for seed in (1, 2))
    assert torch.equal(first, attack(network, *batch(8, seed=1)[:2]))
    assert not torch.equal(first, second)


@BOTH_PRECISIONS
def test_a_replay_follows_the_network_when_it_is_refreshed(precision: torch.dtype) -> None:
    model = learned_network()
    network, capture = AttackNetwork(model, precision), Counted()
    replayed, (x, y, noise) = CudaGraphAttack(attack, network, capture), batch(16, seed=1)
    before = replayed(network, x, y, noise=noise)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    network.refresh()
    after = replayed(network, x, y, noise=noise)
    assert torch.equal(after, attack(network, x, y, noise=noise))
    assert not torch.equal(after, before)
    assert (capture.captures, capture.replays) == (1, 2)


def test_a_third_shape_another_network_and_an_empty_batch_are_attacked_eagerly() -> None:
    network, other, capture = AttackNetwork(learned_network()), AttackNetwork(learned_network()), Counted()
    replayed = CudaGraphAttack(attack, network, capture)
    cases = [(network, 8), (network, 4), (network, 6), (other, 8), (network, 0)]
    for attacked, rows in cases:
        x, y, noise = batch(rows, seed=1)
        assert torch.equal(replayed(attacked, x, y, noise=noise), attack(attacked, x, y, noise=noise))
    assert (capture.captures, capture.replays) == (2, 2)


def test_a_capture_that_fails_warns_once_and_leaves_the_eager_attack() -> None:
    network, capture = AttackNetwork(Undecided()), Counted()
    replayed, (x, y, noise) = CudaGraphAttack(attack, network, capture), batch(8, seed=1)
    with pytest.warns(
        RuntimeWarning, match=r"Attacks run eagerly, kernel by kernel: .*data-dependent control flow"
    ) as told:
        x_adv = replayed(network, x, y, noise=noise)
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    assert told[0].filename == __file__, "the warning names the caller"
    assert torch.equal(x_adv, attack(network, x, y, noise=noise))
    assert torch.equal(replayed(network, x, y), attack(network, x, y))
    assert (capture.captures, capture.replays) == (1, 0)


def test_cuda_graphs_that_cannot_record_leave_the_eager_attack() -> None:
    """There may be no GPU; and if there is one, it does not see what is computed on the CPU."""
    network = AttackNetwork(learned_network())
    replayed, (x, y, noise) = CudaGraphAttack(attack, network, CudaGraphs(torch.device("cuda"))), batch(8, seed=1)
    with pytest.warns(RuntimeWarning, match="Attacks run eagerly"):
        x_adv = replayed(network, x, y, noise=noise)
    assert torch.equal(x_adv, attack(network, x, y, noise=noise))
    assert not replayed.is_replaying


def keeps_what_it_saw(run: Run) -> Run:
    seen = run()
    return lambda: seen


WRONG_CAPTURES: dict[str, Capture] = {
    "keeps what it saw": keeps_what_it_saw,
    "does nothing": lambda run: lambda: torch.zeros_like(run()),
    "is no number": lambda run: lambda: run() * torch.nan,
    "goes the other way": lambda run: lambda: 1 - run(),
}


@pytest.mark.parametrize("name", WRONG_CAPTURES)
def test_a_capture_that_returns_something_else_is_replaced_by_the_eager_attack(name: str) -> None:
    network, wrong = AttackNetwork(learned_network()), Counted(WRONG_CAPTURES[name])
    replayed, (x, y, noise) = CudaGraphAttack(attack, network, wrong), batch(8, seed=1)
    with pytest.warns(RuntimeWarning, match="pixels of the replay differ"):
        x_adv = replayed(network, x, y, noise=noise)
    assert torch.equal(x_adv, attack(network, x, y, noise=noise))
    assert torch.equal(replayed(network, x, y, noise=noise), x_adv)
    assert (wrong.captures, wrong.replays) == (1, 1)


class Varying(nn.Module):
    """Logits that two calls round differently, as those of kernels that add up in a varying order; here to 10 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.generator = AttackNetwork(learned_network()), torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x * (1 + (torch.rand(x.shape, generator=self.generator) - 0.5) / 2**10))
        return logits


def same(network: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    return attack(network, x, y, noise=noise, num_steps=10)


WRONG_REPLAYS: dict[str, Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]] = {
    "other noise": lambda network, x, y, noise: same(network, x, y, noise.roll(1, 0)),
    "other labels": lambda network, x, y, noise: same(network, x, y.roll(1, 0), noise),
    "half the steps": lambda network, x, y, noise: attack(network, x, y, noise=noise, num_steps=5),
    "no step": lambda network, x, y, noise: attack(network, x, y, noise=noise, num_steps=0),
    "no number": lambda network, x, y, noise: same(network, x, y, noise) * torch.nan,
}


def test_a_replay_may_differ_from_an_eager_attack_as_much_as_two_eager_attacks_do() -> None:
    network, (x, y, noise), capture = Varying(), batch(64, seed=1), Counted(lambda run: run)
    replayed = CudaGraphAttack(same, network, capture)
    first, second = (replayed(network, x, y, noise=noise) for _ in range(2))
    assert not torch.equal(first, second)
    assert (capture.captures, capture.replays, replayed.is_replaying) == (1, 2, True)


@pytest.mark.parametrize("name", WRONG_REPLAYS)
@pytest.mark.parametrize("kind", ["varying", "float32", "bfloat16"])
def test_a_wrong_replay_is_refused_whether_or_not_the_eager_attack_repeats_itself(kind: str, name: str) -> None:
    network = Varying() if kind == "varying" else AttackNetwork(learned_network(), getattr(torch, kind))
    x, y, noise = batch(64, seed=1)
    eager, again, right = (same(network, x, y, noise) for _ in range(3))
    result = agreement(eager, again, WRONG_REPLAYS[name](network, x, y, noise))
    assert (result.eager_distance > 0) == (kind == "varying")
    assert not result.replay_distance <= result.eager_distance
    assert not result.holds
    assert agreement(eager, again, right).holds


def test_one_pixel_is_too_many_where_the_eager_attack_repeats_itself() -> None:
    x_adv = batch(64, seed=1)[0]
    replayed = x_adv.clone()
    replayed[3, 0, 0, 0] += 1e-6
    assert not agreement(x_adv, x_adv.clone(), replayed).holds
