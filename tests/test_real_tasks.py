"""The programs, from a collection's own files to a robust model at 224 pixels on a published kind of checkpoint."""

import hashlib
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml

from distributed_autolora.data.parquet.reader import read_texts
from tests.data.preparation.formats import write_folder
from tests.models.checkpoints import write_robust_imagenet
from tests.programs import ROOT, program

# What a run on two processor cores needs instead of the paper's GPU, and two epochs of short attacks.
SHORT = ["--scaling.no-use-gpu", "--scaling.num-workers", "1", "--scaling.cpus-per-worker", "1"]
SHORT += ["--optimization.epochs", "2", "--optimization.global-batch-size", "16", "--train-attack.num-steps", "1"]
SHORT += ["--eval-attack.num-steps", "1", "--evaluation.no-linear-head", "--evaluate", "none"]
SHORT += ["--run.name", "mine"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 with random weights in the layout of the robust ImageNet checkpoints."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None)
    return write_robust_imagenet(tmp_path_factory.mktemp("weights") / "resnet18.ckpt", network)


def check_finished(done: subprocess.CompletedProcess[str], home: Path, data: Path, weights: Path) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    run = home / "runs" / "mine"
    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["backbone"] == "resnet18"
    assert config["model"]["weights_digest"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert 224 in (config["data"]["image_size"], config["model"]["input_size"])
    assert [record["epoch"] for record in json.loads((run / "history.json").read_text())["epochs"]] == [1, 2]
    result, card = json.loads((run / "result.json").read_text()), read_texts(str(data), "test")["card"]
    assert result["test_images"] == card["images"]["test"]
    assert result["task_card"] == card
    assert len(result["class_names"]) == card["classes"]
    assert (run / "model.safetensors").stat().st_size > 40e6
    return config


def readme_commands(**places: Path) -> list[list[str]]:
    """Returns the commands of the README for one's own images, with these in the places of its capital words."""
    section = (ROOT / "README.md").read_text().partition("## Your own images")[2].partition("\n## ")[0]
    lines = [line.split()[1:] for line in section.splitlines() if line.startswith("    autolora ")]
    return [["-m", "distributed_autolora", *(str(places.get(word, word)) for word in line)] for line in lines][:3]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ones_own_images_are_trained_on_in_the_words_of_the_readme(weights: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "my images")
    data, home = tmp_path / "my data", tmp_path / "home"
    prepare, check, finetune = readme_commands(IMAGES=tmp_path / "my images", DATA=data, WEIGHTS=weights)
    damaged = tmp_path / "my images" / "bees" / "3.jpg"
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[: len(sound) // 2])
    done = program(*prepare)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: an image cannot be decoded: {damaged}: ")
    assert not list(data.iterdir())
    damaged.write_bytes(sound)
    done = program(*prepare)
    assert done.returncode == 0, done.stderr
    assert f"--data {shlex.quote(str(data))}" in done.stdout
    assert program(*check).returncode == 0
    done = program(*finetune, "--run.output", str(home), *SHORT)
    check_finished(done, home, data, weights)


def test_the_readme_prepares_checks_and_trains() -> None:
    commands = readme_commands()
    assert [command[2:5] for command in commands] == [
        ["data", "prepare", "folder"],
        ["data", "check", "DATA"],
        ["finetune", "--recipe", "custom"],
    ]
