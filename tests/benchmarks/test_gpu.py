"""The benchmark for GPUs runs from a checkout with torch and torchvision alone, and its numbers hang together."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_variants import EAGER, FOLDED, FOLDED_TF32, PLAIN

REPOSITORY = Path(__file__).resolve().parents[2]
ABSENT = "ray mlflow timm safetensors pyarrow tyro pyautoattack scipy rich matplotlib yaml"
START = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT.split()!r}))  # None: importing it fails, as if it were not installed
sys.argv[0] = "benchmarks/gpu.py"
sys.path[0] = "benchmarks"  # what `python benchmarks/gpu.py` begins with
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    output = tmp_path_factory.mktemp("gpu") / "gpu.json"
    tiny = {"device": "cpu", "networks": "resnet18", "side": "32", "batch": "2", "steps": "2", "rounds": "1"}
    flags = [text for name, value in tiny.items() for text in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, "-c", START, *flags, "--no-compile", "--output", output],
        cwd=REPOSITORY,
        env={"PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(output.read_text())


def test_every_variant_that_a_cpu_can_run_is_measured_and_none_is_left_out(ran: tuple[str, dict[str, Any]]) -> None:
    printed, written = ran
    variants = written["networks"]["resnet18"]["variants"]
    assert list(variants) == [PLAIN, EAGER, FOLDED_TF32, FOLDED]
    assert all(variant["images_per_second"] > 0 for variant in variants.values())
    assert variants[PLAIN]["speed_over_plain"] == 1.0
    assert all(any(line.startswith(name) for line in printed.splitlines()) for name in variants)
    assert written["networks"]["resnet18"]["failed"] == {}


def test_a_replayed_attack_and_a_wrapped_step_compute_what_the_bare_ones_do(ran: tuple[str, dict[str, Any]]) -> None:
    measured = ran[1]["networks"]["resnet18"]
    parallel = measured["data_parallel"]
    for captured in (measured["captured_against_eager"], parallel["captured_against_eager"]):
        assert captured["is_replayed"]
        assert (captured["replay_distance"], captured["eager_distance"], captured["holds"]) == (0.0, 0.0, True)
    assert parallel["backend"] == "gloo"
    assert parallel["largest_relative_gradient_difference"] == pytest.approx(0.0, abs=1e-6)


def test_the_operations_of_a_step_are_those_of_its_passes(ran: tuple[str, dict[str, Any]]) -> None:
    """ResNet-18 at 32 pixels, its layers written out: (inputs, outputs, kernel, side of what comes out)."""
    layers = [(64, 64, 3, 8)] * 4
    for inputs, outputs, side in ((64, 128, 4), (128, 256, 2), (256, 512, 1)):
        layers += [(inputs, outputs, 3, side), *[(outputs, outputs, 3, side)] * 3, (inputs, outputs, 1, side)]
    stem = 3 * 64 * 7**2 * 16**2
    network = stem + 512 * 10 + sum(inputs * outputs * k**2 * side**2 for inputs, outputs, k, side in layers)
    low_rank = sum(8 * inputs * outputs * k**3 for inputs, outputs, k, _ in layers)
    attack = 2 * (2 * network)  # two steps, each a forward and a backward to the images
    # Forward, to the weights, to the layer before. No image needs a gradient, nor what the natural stem returns.
    first = 64 * 64 * 3**2 * 8**2
    natural, adversarial = 3 * network - 2 * stem - first, 3 * network - stem
    multiply_and_add, images = 2, 2
    expected = multiply_and_add * (images * (attack + natural + adversarial) + 3 * low_rank)
    assert ran[1]["networks"]["resnet18"]["flops_of_a_step"] == expected
