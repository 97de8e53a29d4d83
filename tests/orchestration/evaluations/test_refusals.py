"""An evaluation that cannot work is refused in one line before any work starts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from distributed_autolora.errors import UserError
from distributed_autolora.models import read_weights, save_weights
from distributed_autolora.orchestration.evaluations.folder import EvaluationFolder
from distributed_autolora.orchestration.evaluations.plan import make_plan
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.preflight import find_inputs
from tests.orchestration.evaluations.shared import Material, write_material
from tests.reporting import runs
from tests.reporting.evaluations import evaluation
from tests.training.tasks import CLASSES, small_config, write_task


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("refusals")
    material = write_material(folder)
    (folder / "cut.safetensors").write_bytes(material.weights.read_bytes()[:5000])
    (folder / "program.pt2").write_bytes(b"PK\x03\x04")
    torch.save({f"module.{name}": value for name, value in read_weights(material.weights).items()}, folder / "plain.pt")
    torch.save(torchvision.models.resnet18(), folder / "whole.pth")
    save_weights(torchvision.models.resnet18(num_classes=3).state_dict(), folder / "other.safetensors")
    return material


SMALL = {"backbone": "small_resnet", "mean": (0.5,), "std": (0.25,)}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": "missing.safetensors"}, "There is no model"),
        ({"model": "cut.safetensors"}, "cannot be read"),
        ({"model": "program.pt2"}, "give the model.safetensors"),
        ({"model": "plain.pt"}, "give --backbone"),
        ({"model": "whole.pth"}, r"asks for \S+\). Give --model a file of tensors only, as torch.save\("),
        ({"model": "plain.pt", **SMALL, "num_classes": 7}, r"fc.weight is \[3, 64\], not \[7, 64\]"),
        ({"model": "plain.pt", "backbone": "resnet18"}, "another architecture"),
        ({"model": "plain.pt", **SMALL, "backbone": "small_resnot"}, 'Did you mean "small_resnet"'),
        ({"model": "plain.pt", **SMALL, "mean": (0.5,) * 3, "std": (0.2,) * 3}, r"conv1.weight is \[16, 1, 3, 3\]"),
        (
            {"model": "other.safetensors", "backbone": "resnet18", "num_classes": 3, "mean": (0.5,)},
            "one entry a channel",
        ),
        ({"num_classes": 3, "input_size": 64}, "--num-classes, --input-size cannot be changed"),
        ({"backbone": "resnet18"}, "--backbone cannot be changed"),
        ({"data": "nowhere"}, "no folder nowhere"),
        ({"data": None}, "Give --data"),
        ({"epsilon": None}, "Give --epsilon"),
        ({"epsilon": 8.0}, "--epsilon is 8.0"),
        ({"epsilon": -1.0, "norm": "l2"}, "--epsilon is -1.0"),
        ({"attacks": "pgd10,autoatack"}, 'Did you mean "autoattack"'),
        ({"attacks": "apgd-t"}, "needs at least 4 classes"),
        ({"attacks": "autoattack", "norm": "l2"}, "needs images of at least 25 pixels"),
        ({"images": 21}, "21"),
        ({"chunk_size": 0}, "--chunk-size is 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(material.weights.parent)
    monkeypatch.setenv("DISTRIBUTED_AUTOLORA_HOME", str(tmp_path))
    with pytest.raises(UserError, match=said) as refusal:
        make_plan(material.request(tmp_path / "output", **values))
    assert "\n" not in str(refusal.value)


def test_a_model_with_another_number_of_classes_is_refused(material: Material, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 5 classes"):
        make_plan(material.request(tmp_path, data="fashion-mnist-5-9"))


def test_a_wrapped_state_dict_is_the_model_that_it_wraps(material: Material, tmp_path: Path) -> None:
    wrapped = make_plan(
        material.request(tmp_path, model=str(material.weights.parent / "plain.pt"), **SMALL)
    ).found.model
    plain = make_plan(material.request(tmp_path)).found.model
    assert wrapped.digest() == plain.digest()


def test_what_determines_the_outcome_determines_the_folder_of_the_chunks(material: Material, tmp_path: Path) -> None:
    def digest(**values: Any) -> str:
        return make_plan(material.request(tmp_path, **values)).folder.digest

    same = digest()
    assert digest(num_workers=7, sanity=True, register="name") == same
    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"epsilon": 0.1},
        {"norm": "l2"},
        {"chunk_size": 6},
        {"attacks": "pgd3"},
        {"images": 19},
    ]
    assert len({same, *(digest(**values) for values in others)}) == 1 + len(others)


def test_another_threat_model_or_other_images_never_replace_a_runs_own_evaluation(
    material: Material, tmp_path: Path
) -> None:
    config, _ = find_inputs(small_config(material.task))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.create(config)
    (run.path / "model.safetensors").write_bytes(material.weights.read_bytes())
    run.write_result(replace(runs.result(runs.history(1)), class_names=CLASSES))
    other = write_task(tmp_path / "other", train=60, test=21)

    def place(**values: Any) -> str:
        values = {"model": str(run.path), "epsilon": None, "data": None, "output": None, **values}
        return make_plan(replace(material.request(tmp_path), **values)).folder.path.name

    assert place() == place(epsilon=0.05, data=material.task) == "evaluation"
    assert place(images=9) == "evaluation-9-images"
    assert place(epsilon=0.1, images=9) == "evaluation-epsilon-0.1-9-images"
    assert place(epsilon=5.0, norm="l2") == "evaluation-l2-epsilon-5"
    with pytest.raises(UserError, match=r"Give --epsilon, such as 0\.5"):
        place(norm="l2")
    assert place(data=other) == "evaluation-on-halves"


def test_a_result_without_its_outcomes_is_none(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path, "a")
    folder.write_result(evaluation(digest="a"), {"row": np.zeros(1)})
    assert folder.result() == evaluation(digest="a")
    (tmp_path / "outcomes.parquet").unlink()
    assert folder.result() is None
