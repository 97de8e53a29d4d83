"""What the core refuses, and that the message names the offender."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from distributed_autolora.core import attacks
from distributed_autolora.core.keyed_random import keyed_permutation, keyed_uniform
from distributed_autolora.core.lora import BranchStatistics, LowRankBranch
from distributed_autolora.core.objectives import AutoLoRa, Twins, VanillaRFT
from distributed_autolora.core.schedules import LossWeights, RobustAccuracyHalving
from distributed_autolora.core.threat_model import ThreatModel
from tests.reference.networks import BASIC, batch, build

ROWS = torch.arange(3)


def autolora(**others: str) -> AutoLoRa:
    network = build(BASIC)
    return AutoLoRa(network, LowRankBranch(network), weights=LossWeights(0.5, 1.0), **others)


def attack(**others: Any) -> object:
    x, _, y = batch(2)
    search: dict[str, Any] = {"num_steps": 0, "step_size": 0.1} | others
    return attacks.pgd(build(BASIC), x, y, threat_model=ThreatModel(), **search)


def plain(*first: nn.Module) -> nn.Module:
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(192, 5))


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: autolora(soft_labels="hard"), "hard"),
    (lambda: autolora(branch_batch_norm="mine"), r'branch_batch_norm is "mine".*shared'),
    (lambda: VanillaRFT(build(BASIC), soft_labels="hard"), "hard"),
    (lambda: Twins(build(BASIC), soft_labels="hard"), "hard"),
    (lambda: Twins(plain()), "needs batch norm: Sequential has none; choose the method autolora"),
    (lambda: Twins(plain(nn.BatchNorm2d(3, track_running_stats=False))), "running statistics: 0 has none"),
    (lambda: Twins(build(BASIC))(*batch(4), frozen_rows=5), "frozen_rows is 5"),
    (lambda: Twins(build(BASIC))(*batch(4), denominator=2.5), "give global_rows"),
    (lambda: BranchStatistics(plain()), r"Sequential has no batch norm.*method\.branch_batch_norm"),
    (lambda: LowRankBranch(build(BASIC), lora_scope="first_block"), "first_block"),
    (lambda: LowRankBranch(build(BASIC), lora_rank=0), "0"),
    (lambda: LowRankBranch(build(BASIC), lora_rank=-3), "-3"),
    (lambda: LowRankBranch(build(BASIC), head="classifier"), "classifier"),
    (lambda: ThreatModel(norm="linf", epsilon=-0.1, bounds=(0.0, 1.0)), "-0.1"),
    (lambda: ThreatModel(norm="linf", epsilon=float("nan"), bounds=(0.0, 1.0)), "nan"),
    (lambda: ThreatModel(norm="l7", epsilon=0.1, bounds=(0.0, 1.0)), "l7"),
    (lambda: keyed_uniform(0, "atack", 0, ROWS), "atack"),
    (lambda: keyed_permutation(0, "ordr", 0, 3), "ordr"),
    (lambda: keyed_uniform(0, "order", 0, ROWS.float()), "int64 vector"),
    (lambda: keyed_uniform(0, "order", 0, ROWS.int()), "int64 vector"),
    (lambda: keyed_uniform(0, "order", 0, ROWS[:, None]), "int64 vector"),
    (lambda: attack(num_steps=-2), "-2"),
    (lambda: attack(step_size=-0.25), "-0.25"),
    (lambda: attack(loss="hinge"), r'loss is "hinge".*cross_entropy.*margin'),
    (lambda: attacks.input_gradient(build(BASIC), *batch(2)[::2], loss="hinge"), 'loss is "hinge"'),
    (lambda: RobustAccuracyHalving(rule="sometimes"), "sometimes"),
    (lambda: RobustAccuracyHalving(rule="paired").step(0.5), "outcome of each validation image"),
]


@pytest.mark.parametrize(("attempt", "offender"), REFUSED)
def test_a_wrong_value_is_refused_by_name(attempt: Callable[[], object], offender: str) -> None:
    with pytest.raises(ValueError, match=offender):
        attempt()
