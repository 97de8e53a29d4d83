"""A run whose steps wait for images says so, with both rates."""

from dataclasses import replace

from distributed_autolora.records import EpochRecord
from distributed_autolora.reporting.run.table import reading_warning
from tests.reporting.runs import history


def epoch(data: float, attack: float, step: float) -> EpochRecord:
    """Returns an epoch of 600 images."""
    seconds = {"data": data, "attack": attack, "step": step, "validation": 50.0}
    return replace(history()[0], epoch=1, phase_seconds=seconds, images_per_second=600 / (data + attack + step))


def test_waiting_for_images_is_reported_from_a_fifth_of_the_steps_time_on() -> None:
    assert reading_warning(epoch(data=1.9, attack=7.0, step=1.0)) == ""
    assert reading_warning(epoch(data=0.0, attack=0.0, step=1.0)) == ""
    told = reading_warning(epoch(data=6.0, attack=3.0, step=1.0))
    assert "60.0 % of its steps' time: the CPUs deliver 60 images/s, attack and step could take 150." in told
