"""The images that are shipped with the package."""

import os
from pathlib import Path

import pytest
import torch

import distributed_autolora
from distributed_autolora.config import DataConfig
from distributed_autolora.config.recipes import recipe
from distributed_autolora.data.catalog import data_folder, embedded_backbone, embedded_folder, lasting_location
from distributed_autolora.data.images import ImageSource
from distributed_autolora.data.parquet.reader import ImageTable, check_same_classes, read_images
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.runs.preflight import weights_location
from distributed_autolora.training.methods.registry import fresh_classifier


@pytest.fixture(scope="module")
def train() -> ImageTable:
    return read_images(embedded_folder(), "train")


@pytest.fixture(scope="module")
def test() -> ImageTable:
    return read_images(embedded_folder(), "test")


def test_the_shipped_images_are_named_by_their_path_in_the_package_and_others_as_they_are() -> None:
    installed = Path(distributed_autolora.__file__).parents[1]
    assert (installed / lasting_location(embedded_folder()) / "train.parquet").is_file()
    assert lasting_location("s3://bucket/pets") == "s3://bucket/pets"


def test_the_shipped_task_has_3500_balanced_images_and_stays_small(train: ImageTable, test: ImageTable) -> None:
    assert train.labels.bincount().tolist() == [500] * 5
    assert test.labels.bincount().tolist() == [200] * 5
    check_same_classes(train, test)
    assert train.class_names == ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    assert train.card["task"] == "fashion-mnist-5-9"
    assert train.card["licence"].startswith("MIT")
    assert len({*train.row_ids, *test.row_ids}) == 3500
    assert not {train.encoded(row) for row in range(2500)} & {test.encoded(row) for row in range(1000)}
    assert sum(path.stat().st_size for path in Path(embedded_folder()).iterdir()) < 3_200_000


def test_every_shipped_image_decodes_to_28_x_28_grey_pixels(train: ImageTable, test: ImageTable) -> None:
    for table in (train, test):
        source = ImageSource(table, channels=1, image_size=None, resized=False)
        images = source.images(torch.arange(len(table)))
        assert images.shape == (len(table), 1, 28, 28)
        # The mean and deviation of all of Fashion-MNIST are 0.286 and 0.353.
        assert 0.2 < images.float().mean() / 255 < 0.4
        assert 0.3 < images.float().std() / 255 < 0.4


def test_the_recipes_of_the_shipped_backbones_load_them_strictly() -> None:
    for name in ("demo", "cifar10-small"):
        config = recipe(name)
        network = fresh_classifier(config, 5, weights_location(config))
        with torch.no_grad():
            logits = network(torch.rand(2, len(config.model.mean), 32, 32))
        assert logits.shape == (2, 5)


def test_only_the_shipped_task_needs_no_path() -> None:
    assert data_folder(DataConfig(task="fashion-mnist-5-9")) == embedded_folder()
    assert embedded_backbone().parent == Path(embedded_folder())
    with pytest.raises(UserError, match=r'task "pets" are not shipped: .*--data.* folder '):
        data_folder(DataConfig(task="pets"))


def test_local_paths_become_absolute_and_uris_stay() -> None:
    assert data_folder(DataConfig(path="pets")) == str(Path.cwd() / "pets")
    assert data_folder(DataConfig(path="~/pets")) == os.path.expanduser("~/pets")
    assert data_folder(DataConfig(path="s3://bucket/pets")) == "s3://bucket/pets"
