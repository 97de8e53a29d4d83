"""The checks for a GPU pass on a CPU without what a GPU image lacks, and a part that breaks costs a line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu_speed import VARIANTS, Flops
from distributed_autolora.config.recipes import paper
from distributed_autolora.training.methods.cost import run_passes

REPOSITORY = Path(__file__).resolve().parents[2]
ABSENT = "ray mlflow joblib timm tyro pyautoattack scipy rich matplotlib"
START = f"""
import runpy, sys
if __name__ == "__main__":  # a second process of a group imports this too
    sys.modules.update(dict.fromkeys({ABSENT.split()!r}))  # None: importing it fails, as if it were not installed
    sys.path[0] = "benchmarks"  # what `python benchmarks/gpu_check.py` begins with
    sys.argv[0] = "benchmarks/gpu_check.py"
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """Exit status and figures of a small run on the CPU, with a network that there is not."""
    output = tmp_path_factory.mktemp("gpu") / "gpu.json"
    flags = ["--device=cpu", "--size=tiny", "--networks", "none_such", "small_resnet", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-c", START, *flags],
        cwd=REPOSITORY,
        env={"PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.exists(), done.stderr
    return done.returncode, json.loads(output.read_text())


def test_every_check_passes_but_that_of_a_network_that_does_not_exist(ran: tuple[int, dict[str, Any]]) -> None:
    status, written = ran
    failed = {row["check"]: row["figure"] for row in written["rows"] if row["status"] == "FAIL"}
    assert list(failed) == ["speed (none_such)"], failed
    assert status == 1
    passed = {row["check"] for row in written["rows"] if row["status"] == "PASS"}
    steps = {
        f"step of {method}, {form}" for method in ("autolora", "vanilla", "twins") for form in ("float64", "bfloat16")
    }
    assert passed >= steps | {"captured attack, bfloat16", "a run twice", "two processes (gloo, float64)"}


def test_every_variant_is_measured_and_the_hours_follow(ran: tuple[int, dict[str, Any]]) -> None:
    _, written = ran
    variants = written["speed"]["small_resnet"]
    assert list(variants) == list(VARIANTS)
    assert all(one["step_ms"] > 0 and one["attack_ms"] > 0 for one in variants.values())
    rows = {row["check"]: row for row in written["rows"]}
    assert rows["reading"]["images_per_second"] > 0
    autolora = paper("cub")
    # The share of one run: 5,994 images, 300 of them for validation, for 60 epochs.
    a_pass = variants["recipe, autolora"]["step_ms"] / 1000 / 4 / 6
    cub = run_passes(autolora, 5695, 299)
    assert rows["hours of table 1"]["hours"] > 3 * a_pass * (cub.forward + cub.backward) / 3600


def test_operations_are_counted_forwards_and_backwards() -> None:
    """Two images, 3 -> 5 channels, kernel of 3: a multiplication and an addition for each weight and output pixel."""
    x, weight = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(5, 3, 3, 3, requires_grad=True)
    with Flops() as counter:
        torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), (x, weight))
    assert counter.total == 3 * (2 * 2 * 8 * 8 * 5 * 3 * 9)
