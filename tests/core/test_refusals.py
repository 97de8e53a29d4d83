"""What the core refuses, and that the message names the offender."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distributed_autolora.core import attacks
from distributed_autolora.core.lora import LowRankBranch
from distributed_autolora.core.objectives import AutoLoRa, VanillaRFT
from distributed_autolora.core.schedules import LossWeights, RobustAccuracyHalving
from distributed_autolora.core.threat_model import ThreatModel
from tests.reference.networks import BASIC, batch, build


def autolora_with(soft_labels: str) -> AutoLoRa:
    network = build(BASIC)
    weights = LossWeights(natural_weight=0.5, kl_weight=1.0)
    return AutoLoRa(network, LowRankBranch(network), weights=weights, soft_labels=soft_labels)


def attack_with(num_steps: int, step_size: float) -> object:
    x, _, y = batch(2)
    return attacks.pgd(build(BASIC), x, y, threat_model=ThreatModel(), num_steps=num_steps, step_size=step_size)


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: autolora_with("hard"), "hard"),
    (lambda: VanillaRFT(build(BASIC), soft_labels="hard"), "hard"),
    (lambda: LowRankBranch(build(BASIC), lora_scope="first_block"), "first_block"),
    (lambda: LowRankBranch(build(BASIC), lora_rank=0), "0"),
    (lambda: LowRankBranch(build(BASIC), lora_rank=-3), "-3"),
    (lambda: LowRankBranch(build(BASIC), head="classifier"), "classifier"),
    (lambda: ThreatModel(norm="linf", epsilon=-0.1, bounds=(0.0, 1.0)), "-0.1"),
    (lambda: ThreatModel(norm="linf", epsilon=float("nan"), bounds=(0.0, 1.0)), "nan"),
    (lambda: ThreatModel(norm="l7", epsilon=0.1, bounds=(0.0, 1.0)), "l7"),
    (lambda: attack_with(num_steps=-2, step_size=0.1), "-2"),
    (lambda: attack_with(num_steps=2, step_size=-0.25), "-0.25"),
    (lambda: RobustAccuracyHalving(rule="sometimes"), "sometimes"),
]


@pytest.mark.parametrize(("attempt", "offender"), REFUSED)
def test_a_wrong_value_is_refused_by_name(attempt: Callable[[], object], offender: str) -> None:
    with pytest.raises(ValueError, match=offender):
        attempt()
