"""The calibration table of docs/ holds with the limits in the code, and so do a hiding and an honest model."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from distributed_autolora.config.recipes import demo
from distributed_autolora.core.attacks import first_order_stationarity, halving_pgd, input_gradient, pgd
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.data.catalog import embedded_backbone, embedded_folder
from distributed_autolora.evaluation.masking_test import overstates
from distributed_autolora.training.evaluation import fit_linear_head
from distributed_autolora.training.masking_check import FOSC_LIMIT
from distributed_autolora.training.methods.registry import fresh_classifier
from distributed_autolora.training.task_data import TaskData
from tests.evaluation.models import robust_model, shipped_images
from tests.masking_calibration.__main__ import Indicator, outcome, read_states

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results" / "masking-calibration"
INDICATORS: tuple[Indicator, ...] = ("FOSC", "masking gap", "loss gap")
IMAGES = 60


@pytest.mark.parametrize("indicator", INDICATORS)
def test_the_table_of_the_page_is_counted_from_its_states(indicator: Indicator) -> None:
    found = outcome(read_states(FOLDER / "states.csv"), indicator)
    (row,) = re.findall(rf"^\| {indicator}\b.*\|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert [int(cell) for cell in row.split("|")[2:6]] == list(found.values())


def test_both_indicators_find_most_of_what_hides_and_call_nothing_else() -> None:
    states = read_states(FOLDER / "states.csv")
    assert sum(state.hides for state in states) >= 5
    assert sum(not state.hides for state in states) >= 5
    for indicator in INDICATORS[:2]:
        found = outcome(states, indicator)
        assert found["hits"] >= 4 * found["misses"]
        assert found["false alarms"] == 0


def alarms(model: nn.Module, x: Tensor, y: Tensor) -> tuple[bool, bool]:
    """Returns whether FOSC and the masking gap call a model masked."""
    ball = ThreatModel(epsilon=0.1)
    x_adv = pgd(model, x, y, threat_model=ball, num_steps=10, step_size=0.025, random_start=False)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    stronger = halving_pgd(model, x, y, threat_model=ball, num_steps=20, noise=noise)
    fosc = first_order_stationarity(x, x_adv, input_gradient(model, x_adv, y), ball).mean()
    with torch.no_grad():
        broken = int(((model(x_adv).argmax(1) == y) & (model(stronger).argmax(1) != y)).sum())
    return bool(fosc > FOSC_LIMIT), overstates(broken, len(x))


def test_a_model_that_hides_its_gradients_is_called_so_and_an_adversarially_trained_one_is_not() -> None:
    """The shipped backbone under a linear head fitted to natural images was never trained against PGD."""
    data = TaskData(demo(), str(embedded_folder()), torch.device("cpu"))
    hiding = fresh_classifier(demo(), data.num_classes, str(embedded_backbone()))
    fit_linear_head(hiding, data.plain_batches, data.split.train[:400], 250)
    assert alarms(hiding.eval(), *data.test_batch(torch.arange(IMAGES))) == (True, True)
    assert alarms(robust_model(), *shipped_images(IMAGES)) == (False, False)
