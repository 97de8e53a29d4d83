"""A model is evaluated on the classes that it was trained on, in whatever order the images' files have them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from distributed_autolora.data.parquet.reader import read_images
from distributed_autolora.data.parquet.writer import ImageRow
from distributed_autolora.errors import UserError
from distributed_autolora.models import read_weights, save_weights
from distributed_autolora.models.export import export_model
from distributed_autolora.models.portable import read_model
from distributed_autolora.orchestration.evaluations.plan import make_plan
from distributed_autolora.orchestration.evaluations.worker import Evaluator
from tests.data.pictures import write_images
from tests.orchestration.evaluations.shared import DESCRIPTION, Material, write_material
from tests.training.tasks import CLASSES


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A task and a model that knows its classes."""
    material = write_material(tmp_path_factory.mktemp("class-order"))
    names = {"class_names": json.dumps(CLASSES)}
    save_weights(read_weights(material.weights), material.weights, DESCRIPTION.metadata() | names)
    return material


def copied(material: Material, folder: Path, class_names: tuple[str, ...]) -> str:
    """Writes those test images whose classes are named, under labels in this order, and returns the folder."""
    table = read_images(material.task, "test")
    named = [(row, table.class_names[int(label)]) for row, label in enumerate(table.labels)]
    rows = [
        ImageRow(table.encoded(row), class_names.index(name), table.row_ids[row])
        for row, name in named
        if name in class_names
    ]
    folder.mkdir()
    for split in ("train", "test"):
        write_images(folder / f"{split}.parquet", rows, class_names=class_names, task="copied", split=split)
    return str(folder)


def correct(material: Material, data: str, output: Path) -> tuple[dict[str, bool], tuple[str, ...], str]:
    """Returns which images are classified correctly by row id, the class names of the result, and its digest."""
    plan = make_plan(material.request(output, data=data))
    evaluator = Evaluator(plan.task)
    right: dict[str, bool] = {}
    for chunk in plan.chunks():
        columns, _ = evaluator.chunk(chunk)
        outcome = columns["natural_prediction"] == columns["label"]
        right |= dict(zip(columns["row_id"].tolist(), outcome.tolist(), strict=True))
    return right, plan.table.class_names, plan.folder.digest


def test_labels_follow_the_names_of_the_classes(material: Material, tmp_path: Path) -> None:
    expected, _, _ = correct(material, material.task, tmp_path)
    assert sum(expected.values()) > len(expected) / 2, "a model that knows its classes must be right on most images"
    same = correct(material, copied(material, tmp_path / "same", CLASSES), tmp_path)
    turned = correct(material, copied(material, tmp_path / "turned", (CLASSES[2], CLASSES[0], CLASSES[1])), tmp_path)
    some = correct(material, copied(material, tmp_path / "some", (CLASSES[2], CLASSES[1])), tmp_path)
    assert (same[0], same[1]) == (turned[0], turned[1]) == (expected, CLASSES)
    assert some[0] == {row_id: right for row_id, right in expected.items() if row_id in some[0]}
    assert some[1] == CLASSES


def test_other_names_are_refused_with_both_lists(material: Material, tmp_path: Path) -> None:
    data = copied(material, tmp_path / "other", ("left", "right", "Top"))
    with pytest.raises(
        UserError, match=r"the classes left, right, Top, but model was trained on left, right, top: Top"
    ):
        make_plan(material.request(tmp_path, data=data))


def test_the_exported_file_names_its_classes_and_keeps_the_digest(material: Material, tmp_path: Path) -> None:
    plan = make_plan(material.request(tmp_path))
    export_model(plan.found.model, tmp_path, plan.batches())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["class_names"]) == list(CLASSES)
    model = read_model(tmp_path / "model.safetensors")
    assert model.digest() == plan.found.model.digest() == replace(model, class_names=()).digest()
