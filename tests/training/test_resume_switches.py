"""Every method and every switch of a method resumes within an epoch, bit for bit, with one, two and three workers."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from distributed_autolora.config import MethodConfig
from distributed_autolora.training.methods.registry import METHODS
from tests.training.gloo import run_workers
from tests.training.tasks import write_task
from tests.training.test_resume import assert_same, run

Case = tuple[str, dict[str, Any]]
NUMBERS = {"natural_weight": 0.25, "kl_weight": 3.0}
"""Switches that are numbers: fixed loss weights."""
EVERY_METHOD_HAS = ("soft_labels", "weight_average")


def switches() -> dict[str, list[Any]]:
    """Returns the values of each switch of `MethodConfig` but its default: those added later, too."""
    hints, found = get_type_hints(MethodConfig), dict[str, list[Any]]()
    for field in fields(MethodConfig):
        if get_origin(hints[field.name]) is Literal:
            found[field.name] = [value for value in get_args(hints[field.name]) if value != field.default]
        elif hints[field.name] is bool:
            found[field.name] = [not field.default]
        elif field.name in NUMBERS:
            found[field.name] = [NUMBERS[field.name]]
    return found


def suits(method: str, switch: str) -> bool:
    return method == "autolora" or switch in EVERY_METHOD_HAS


def singly() -> list[Case]:
    """Returns every method with every value of every switch alone."""
    return [
        (method, {switch: value})
        for method in METHODS
        for switch, values in switches().items()
        if suits(method, switch)
        for value in values
    ]


def together() -> list[Case]:
    """Returns every method as it is, and with the last values of all its switches; AutoLoRa also with fixed weights."""
    last = {switch: values[-1] for switch, values in switches().items() if switch not in NUMBERS}
    combined = [
        (method, {switch: value for switch, value in last.items() if suits(method, switch)}) for method in METHODS
    ]
    return [*((method, {}) for method in METHODS), *combined, ("autolora", NUMBERS)]


def resumed_and_not(task: str, folder: str, cases: list[Case]) -> list[tuple[Any, Any]]:
    """Runs each case once as a whole, and once with stops within the first epoch and the second."""
    found = []
    for number, (method, values) in enumerate(cases):
        place, found_here = Path(folder) / str(number), []
        for stops in ((), ((0, 1), (1, 2))):
            own = place / str(len(stops))
            for stop in stops:
                assert run(task, own, stop, epochs=2, method=method, checkpoint_every_s=0.0, switches=values) is None
            found_here.append(run(task, own, epochs=2, method=method, switches=values))
        found.append((found_here[0], found_here[1]))
    return found


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of 110 training images: 80 to train on are three steps, the last with 16."""
    return write_task(tmp_path_factory.mktemp("few") / "task", train=110)


def assert_resumes(workers: int, task: str, folder: Path, cases: list[Case]) -> None:
    assert cases
    everywhere = (
        [resumed_and_not(task, str(folder), cases)]
        if workers == 1
        else run_workers(resumed_and_not, workers, task, str(folder), cases)
    )
    for found in everywhere:
        assert len(found) == len(cases)
        for one, other in found:
            assert_same(one, other)


def test_the_switches_are_those_of_the_config() -> None:
    assert switches()["soft_labels"] == ["detached"]
    assert switches()["weight_average"] == ["deployed", "teacher", "both"]
    assert {"branch_batch_norm", "lora_scope", *NUMBERS} <= set(switches())


@pytest.mark.parametrize("workers", [1, 2])
def test_every_method_resumes_within_an_epoch_with_its_switches(few: str, tmp_path: Path, workers: int) -> None:
    """Two workers take AutoLoRa with all its switches; `make test-long` takes all, and the methods without switches."""
    combined = together()[len(METHODS) :]
    cases = combined if workers == 1 else combined[:1]
    assert_resumes(workers, few, tmp_path, cases)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_method_resumes_within_an_epoch_with_every_switch(few: str, tmp_path: Path, workers: int) -> None:
    assert_resumes(workers, few, tmp_path, [*together(), *singly()])
