"""Accuracy under common corruptions, from a folder in the layout of CIFAR-10-C or made here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.corruptions import COMMON, find_corruptions
from distributed_autolora.models.portable import read_model
from distributed_autolora.orchestration.evaluations.description import described
from distributed_autolora.orchestration.evaluations.folder import joined
from distributed_autolora.orchestration.evaluations.plan import make_plan
from distributed_autolora.orchestration.evaluations.worker import Evaluator
from distributed_autolora.reporting.corruptions import CORRUPTIONS_FIGURE, save_figure
from distributed_autolora.reporting.evaluation import evaluation_table
from tests.orchestration.evaluations.shared import TEST_IMAGES, Material, write_material

SEVERITIES = 2


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return write_material(tmp_path_factory.mktemp("corruptions"))


def corrupted(images: NDArray[np.uint8], name: str, severity: int) -> NDArray[np.uint8]:
    """Returns a brighter image, or one with its columns in another order."""
    if name == "brightness":
        return np.asarray(np.clip(images.astype(int) + 60 * severity, 0, 255), dtype=np.uint8)
    return np.asarray(np.roll(images, 2 * severity, axis=-1), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(material: Material) -> Path:
    """Two corruptions of the test images, a further one that is for validation, and the labels, as in CIFAR-10-C."""
    path = material.weights.parent / "corrupted"
    path.mkdir()
    plan = make_plan(material.request(path / "unused"))
    images = plan.images.images(torch.arange(TEST_IMAGES))[:, 0].numpy()
    for name in ("fog", "brightness", "saturate"):
        np.save(path / f"{name}.npy", np.concatenate([corrupted(images, name, 1 + s) for s in range(SEVERITIES)]))
    np.save(path / "labels.npy", np.tile(plan.table.labels.numpy(), SEVERITIES))
    return path


def test_each_corruption_and_severity_is_counted_on_the_very_images(
    material: Material, folder: Path, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"attacks": "corruptions,pgd3", "corruptions": str(folder), "images": 17}
    plan = make_plan(material.request(tmp_path, **values))
    evaluator = Evaluator(plan.task)
    found = joined([evaluator.chunk(chunk)[0] for chunk in plan.chunks()])
    result = described(plan, found, chunk_seconds=0)
    assert [(one.name, one.severity) for one in result.corruptions] == [
        *(("fog", 1), ("fog", 2), ("brightness", 1), ("brightness", 2))
    ]
    images = plan.images.images(torch.tensor(plan.task.rows))[:, 0].numpy()
    labels, model = plan.table.labels[torch.tensor(plan.task.rows)], read_model(material.weights).build()
    for one in result.corruptions:
        x = torch.from_numpy(corrupted(images, one.name, one.severity))[:, None].float() / 255
        with torch.no_grad():
            expected = model(x).argmax(1) == labels
        assert found[f"corrupted/{one.name}/{one.severity}"].tolist() == expected.tolist()
        assert (one.correct.correct, one.correct.total) == (int(expected.sum()), 17)
    assert len({one.correct.correct for one in result.corruptions}) > 1, "the corruptions differ"
    accuracies = [one.correct.accuracy for one in result.corruptions]
    fog, bright = accuracies[:SEVERITIES], accuracies[SEVERITIES:]
    assert result.corruption_accuracies() == {"fog": sum(fog) / 2, "brightness": sum(bright) / 2}
    assert result.worst_case is None, "corruptions are no attack"
    lines = evaluation_table(result).splitlines()
    (line,) = [line for line in lines if line.startswith("fog")]
    assert line.split()[1:] == [f"{100 * value:.1f}" for value in (*fog, sum(fog) / 2)]
    assert save_figure(tmp_path / CORRUPTIONS_FIGURE, result).read_bytes().startswith(b"\x89PNG")
    assert make_plan(material.request(tmp_path, attacks="pgd3", images=17)).folder.digest != plan.folder.digest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: (path / "labels.npy").unlink(), "no NAME.npy and labels.npy"),
        (lambda path: np.save(path / "labels.npy", np.zeros(40, np.int64)), "not the order of the test images"),
        (lambda path: np.save(path / "fog.npy", np.zeros((40, 9, 9), np.uint8)), "uint8 images of"),
        (lambda path: np.save(path / "fog.npy", np.zeros((39, 8, 8), np.uint8)), "not 1 to 5 times 20"),
        (lambda path: (path / "fog.npy").write_bytes(b"x"), "cannot be read"),
    ],
)
def test_a_folder_of_other_images_is_refused(
    material: Material, folder: Path, tmp_path: Path, change: Any, said: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    change(copy)
    with pytest.raises(UserError, match=said) as refusal:
        make_plan(material.request(tmp_path, attacks="corruptions", corruptions=str(copy)))
    assert "\n" not in str(refusal.value)


def test_a_folder_without_the_name_is_refused(material: Material, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add it to --attacks"):
        make_plan(material.request(tmp_path, corruptions=str(folder)))


def test_corruptions_that_are_made_here_depend_on_the_row_and_not_on_the_batch() -> None:
    pytest.importorskip("imagecorruptions")
    made = find_corruptions(None, torch.zeros(9, dtype=torch.int64), (3, 33, 40), seed=0)
    x = (255 * torch.rand(3, 3, 33, 40, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    assert made.names == COMMON
    for name in COMMON:
        together = made.images(name, 3, (4, 7, 2), x)
        assert together.shape == x.shape
        assert torch.equal(made.images(name, 3, (7,), x[1:2])[0], together[1]), name
    first, second = made.images("fog", 3, (4, 5), x[:1].repeat(2, 1, 1, 1))
    assert not torch.equal(first, second), "two rows have fogs of their own"
    small = find_corruptions(None, torch.zeros(9, dtype=torch.int64), (1, 28, 28), seed=0)
    assert small.images("snow", 5, (0, 1), x[:2, :1, :28, :28]).shape == (2, 1, 28, 28)
