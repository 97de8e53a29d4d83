"""How many images the checks at the end of a training take."""

from dataclasses import replace

from distributed_autolora.config.recipes import recipe
from distributed_autolora.orchestration.evaluations.post_training import quick_images
from tests.reporting import runs


def images(seconds_of_an_attack_step: float, test_images: int = 1000, num_workers: int = 2) -> int:
    """Returns the number for a run whose workers took so long for each attack step of an image."""
    steps = recipe("demo").train_attack.num_steps * 1000 / num_workers
    record = runs.history(1)[0]
    phases = {"attack": seconds_of_an_attack_step * steps}
    history = [replace(record, num_workers=num_workers, phase_seconds=phases)]
    return quick_images(recipe("demo"), history, replace(runs.result(history), test_images=test_images))


def test_the_checks_take_fewer_images_the_slower_the_attack_and_none_when_they_would_take_minutes() -> None:
    assert images(0.0005) == 32
    assert images(0.0045) == 17
    assert images(0.1) == 0


def test_the_checks_never_take_more_images_than_there_are() -> None:
    assert images(0.0005, test_images=10) == 10
    assert images(0.0045, test_images=10) == 10
