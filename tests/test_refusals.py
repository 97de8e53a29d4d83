"""Bad input is refused before work starts, in one line that says what, where and what to do."""

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pytest

from distributed_autolora.cli import parse_training_flags
from distributed_autolora.config import output_home
from distributed_autolora.errors import UserError
from distributed_autolora.models import build, save_weights
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.names import run_name, with_precision
from distributed_autolora.orchestration.runs.preflight import check_inputs, find_inputs
from distributed_autolora.orchestration.runs.train import train_run
from tests.security.watching import flags_of, replace_value
from tests.training.tasks import write_task

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Place:
    """Where a case prepares its bad input."""

    folder: Path

    def task(self) -> list[str]:
        return flags_of(write_task(self.folder / "task", train=130))

    def file(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)


def _change_row_7(place: Place, column: str, value: object) -> list[str]:
    """Returns flags of a run whose training row 7 holds `value`."""
    flags = place.task()
    replace_value(place.folder / "task" / "train.parquet", 7, column, value)
    return flags


def _missing_parquet(place: Place) -> list[str]:
    flags = place.task()
    (place.folder / "task" / "test.parquet").unlink()
    return flags


def _weights_with_nan(place: Place) -> list[str]:
    state = build("small_resnet", 3, mean=(0.5,), std=(0.25,)).backbone.state_dict()
    state["layer1.0.conv1.weight"][0] = float("nan")
    save_weights(state, place.folder / "weights.safetensors")
    return [*place.task(), "--model.weights", str(place.folder / "weights.safetensors")]


def _run_in_use(place: Place) -> list[str]:
    flags = [*place.task(), "--run.name", "mine"]
    config, _ = find_inputs(parse_training_flags("", "demo", flags).experiment)
    folder = RunFolder(output_home(config.run) / "runs" / run_name(config))
    folder.acquire()
    folder.create(with_precision(config, "float32"))
    HELD.append(folder)
    return flags


def _existing_run(place: Place) -> list[str]:
    flags = _run_in_use(place)
    HELD.pop().release()
    return [*flags, "--optimization.lr", "0.02"]


HELD: list[RunFolder] = []

CASES: dict[str, tuple[Callable[[Place], list[str]], list[str]]] = {
    "a wrong flag": (lambda p: ["--optimisation.lr", "1"], ["--optimisation.lr", "mean --optimization.lr"]),
    "an unknown recipe": (lambda p: ["--recipe", "dem"], ['"dem"', 'mean "demo"']),
    "an unknown key": (
        lambda p: ["--config", p.file("c.yaml", b"optimization: {learning_rat: 1}")],
        ['"optimization.learning_rat"'],
    ),
    "a wrong type": (lambda p: ["--config", p.file("c.yaml", b"seed: many")], ['"seed"', "whole number"]),
    "a file that is not YAML": (lambda p: ["--config", p.file("c.yaml", b"a: [")], ["c.yaml", "not YAML"]),
    "a config that is missing": (lambda p: ["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    "a recipe and a config": (lambda p: ["--recipe", "demo", "--config", "x"], ["not both"]),
    "a missing folder": (lambda p: flags_of("/nowhere"), ["/nowhere"]),
    "a missing Parquet file": (_missing_parquet, ["test*.parquet", "autolora data prepare"]),
    "a label out of range": (lambda p: _change_row_7(p, "label", 3), ["row 7", "label 3"]),
    "data of no task": (lambda p: ["--recipe", "custom"], ["--data", "autolora data prepare folder"]),
    "data of a published task": (lambda p: ["--recipe", "cub"], ["--data", "autolora data prepare cub"]),
    "images of a size that the backbone does not take": (
        lambda p: [*p.task(), "--model.backbone", "timm/vit_tiny_patch16_224"],
        ["takes images of 224 x 224 pixels, not 12 x 12", "--model.input-size"],
    ),
    "weights that are missing": (lambda p: [*p.task(), "--model.weights", "/no/file"], ["/no/file"]),
    "weights that are no weights": (
        lambda p: [*p.task(), "--model.weights", p.file("w.safetensors", b"junk")],
        ["w.safetensors", "cannot be read"],
    ),
    "weights with NaN": (_weights_with_nan, ["NaN", "layer1.0.conv1.weight"]),
    "an unknown backbone": (lambda p: [*p.task(), "--model.backbone", "resnet17"], ['mean "resnet1']),
    "more workers than CPUs": (
        lambda p: [*p.task(), "--scaling.num-workers", "4096"],
        ["4096 workers of 1 CPU need 4096 CPUs", "Lower --workers, or submit"],
    ),
    "a value that is no number": (lambda p: ["--seed", "abc"], ["--seed", "abc"]),
    "a word that is no flag": (lambda p: ["stray"], ["stray"]),
    "a division by zero": (lambda p: ["--threat-model.epsilon", "8/0"], ["--threat-model.epsilon", "8/0"]),
    "a division by zero, by the short name": (lambda p: ["--epsilon", "8/0"], ["parsing --epsilon: 8/0"]),
    "more GPUs than there are": (
        lambda p: [*p.task(), "--scaling.use-gpu", "--scaling.num-workers", "1"],
        ["1 worker needs 1 GPU, but Ray sees 0", "Give --gpus 0"],
    ),
    "a negative epsilon": (lambda p: [*p.task(), "--threat-model.epsilon=-0.1"], ["threat_model.epsilon", "-0.1"]),
    "an infinite learning rate": (lambda p: [*p.task(), "--optimization.lr", "inf"], ["optimization.lr", "finite"]),
    "a subset larger than the data": (lambda p: [*p.task(), "--data.train-images", "900"], ["900", "130 images"]),
    "an existing run of another config": (_existing_run, ['"mine"', "optimization.lr is 0.01 there and 0.02 here"]),
    "a run in use": (_run_in_use, ['"mine"', "in use"]),
    "an output folder that cannot be written": (
        lambda p: [*p.task(), "--run.output", p.file("file", b"") + "/below"],
        ["cannot be written", "--output"],
    ),
    "a run name that is no name": (lambda p: [*p.task(), "--run.name", "../up"], ["--name", "../up"]),
    "data that are not the config's": (lambda p: [*p.task(), "--data.digest", "0" * 64], ["not those of the config"]),
    "an MLflow server that is away": (
        lambda p: [*p.task(), "--run.mlflow-uri", "http://127.0.0.1:9"],
        ["127.0.0.1:9", "--mlflow-uri"],
    ),
    "a password in a URI": (
        lambda p: [*p.task(), "--run.mlflow-uri", "http://user:secret@127.0.0.1:9"],
        ["--run.mlflow-uri", "***@127.0.0.1:9", "MLFLOW_TRACKING_PASSWORD"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_in_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTRIBUTED_AUTOLORA_HOME", str(tmp_path / "home"))
    prepare, fragments = CASES[case]
    arguments = prepare(Place(tmp_path))
    with pytest.raises(UserError) as refusal:
        _finetune(arguments)
    message = str(refusal.value)
    assert "\n" not in message
    assert "secret" not in message + capsys.readouterr().out
    for fragment in fragments:
        assert fragment in message, message


WARNED: dict[str, tuple[str, list[str], str]] = {
    "a step size above epsilon, and few validation images": (
        "--train-attack.step-size 0.2 --data.val-images-min 0",
        ["train_attack.step_size 0.2 is larger than epsilon 0.1", "only 7 validation images"],
        "cannot reach",
    ),
    "a radius that the attack cannot reach": (
        "--threat-model.norm l2 --epsilon 2",
        ["eval_attack.num_steps times step_size is 0.25, less than epsilon 2", "--eval-attack.step-size 0.5"],
        "GPUs",
    ),
    "small shares of a batch": (
        "--scaling.use-gpu --workers 8",
        ["8 GPUs share every batch of 64 images, 8 each"],
        "cannot reach",
    ),
}


@pytest.mark.parametrize("case", WARNED)
def test_what_is_usable_but_unusual_is_warned_about(case: str, tmp_path: Path) -> None:
    words, said, unsaid = WARNED[case]
    flags = [*Place(tmp_path).task(), *words.split()]
    warnings = " ".join(check_inputs(*find_inputs(parse_training_flags("", "demo", flags).experiment)))
    assert all(text in warnings for text in said), warnings
    assert unsaid not in warnings


@pytest.mark.parametrize(("words", "needed"), [([], "psutil"), (["--gpus", "1"], "psutil and nvidia-ml-py")])
def test_system_metrics_are_refused_without_the_packages_that_measure_them(
    words: list[str], needed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("psutil", "pynvml"):
        monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    with pytest.raises(UserError, match=rf"--system-metrics needs {needed}: pip install '.*\[system-metrics\]'"):
        _finetune([*Place(tmp_path).task(), *words, "--system-metrics"])


def _finetune(arguments: list[str]) -> None:
    flags = parse_training_flags("", "demo", arguments)
    train_run(flags.experiment, fresh=flags.fresh)


@pytest.mark.parametrize(
    "stream", [io.StringIO(), *(io.TextIOWrapper(io.BytesIO(), name) for name in ("ascii", "utf-8"))]
)
def test_a_refusal_does_not_depend_on_what_standard_output_can_show(stream: TextIO) -> None:
    with contextlib.redirect_stdout(stream), pytest.raises(UserError, match="--seed"):
        parse_training_flags("", "demo", ["--seed", "abc"])
