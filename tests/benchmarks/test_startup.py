"""What the logs of a start say becomes the seconds of its parts."""

import importlib.util
import json
from datetime import datetime
from pathlib import Path

import pytest

from benchmarks.startup import FIRST_STEP, MOMENTS, TYPED, parts_of, summary

PACKAGE, REPOSITORY = "distributed_autolora", Path(__file__).resolve().parents[2]
FINDING, NETWORK = "Finding the inputs.", "Building the network."
TYPED_AT = datetime(2026, 1, 1, 12).timestamp()


def line(second: float, message: str) -> str:
    moment = datetime.fromtimestamp(TYPED_AT + second)
    return json.dumps({"asctime": f"{moment:%Y-%m-%d %H:%M:%S},{moment.microsecond // 1000:03}", "message": message})


def test_a_part_lasts_until_the_next_begins_and_the_last_worker_counts() -> None:
    lines = [
        line(9.0, "Epoch 1: steps begin."),
        line(2.5, FINDING),
        line(5.25, NETWORK),
        line(4.0, NETWORK),
        line(8.0, "Epoch 1: steps begin."),
        line(3.0, "what is not known here"),
    ]
    assert parts_of(TYPED_AT, lines) == {TYPED: 2.5, MOMENTS[FINDING]: 2.75, MOMENTS[NETWORK]: 3.75}


def test_logs_without_a_first_step_are_refused() -> None:
    with pytest.raises(ValueError, match="before the first step"):
        parts_of(TYPED_AT, [line(1.0, FINDING)])


def test_the_summary_takes_medians_and_adds_parts_up() -> None:
    found = summary([{"a": 1.0, "b": 10.0}, {"a": 2.0, "b": 40.0}, {"a": 6.0, "b": 30.0}])
    assert found["seconds"] == {"a": 2.0, "b": 30.0}
    assert found["seconds_to_the_first_step"] == 36.0


def test_every_moment_is_one_that_the_package_or_ray_train_logs() -> None:
    ray = importlib.util.find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    folders = (Path(ray.origin).parent / "train/v2", Path(ray.origin).parent / "train/torch", REPOSITORY / PACKAGE)
    files = [
        file for folder in folders for file in folder.rglob("*.py") if "tests" not in file.relative_to(folder).parts
    ]
    files.append(REPOSITORY / "benchmarks/startup_driver.py")
    sources = "".join(file.read_text() for file in files).replace("%d", "1").replace("Epoch 1 %s.", "Epoch 1 begins.")
    assert [moment for moment in MOMENTS if moment not in sources] == []
    assert MOMENTS["Epoch 1: steps begin."] == FIRST_STEP
