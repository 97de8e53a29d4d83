"""Weights and images of the Hugging Face Hub, from its cache in its own offline mode; the network is not needed."""

import io
import json
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from distributed_autolora import hub
from distributed_autolora.data.dataset_check import examine_task
from distributed_autolora.data.parquet.locations import existing_files
from distributed_autolora.data.parquet.reader import read_images
from distributed_autolora.errors import UserError
from distributed_autolora.models.weight_files import read_weights, weights_digest

NAMES = ("cat", "dog")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.local_copy.cache_clear()
    return tmp_path


def snapshot(cache: Path, repository: str) -> Path:
    """Makes the cache of a repository as the Hub's client lays it out, and returns the folder of its files."""
    folder = cache / repository.replace("/", "--")
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "snapshots" / ("a" * 40)).mkdir(parents=True)
    return folder / "snapshots" / ("a" * 40)


def png(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, shade, 255 - shade)).save(content, format="PNG")
    return content.getvalue()


def write_split(path: Path, shades: range, *, with_bytes: bool = True) -> None:
    """Writes a file as `datasets` does: images as {bytes, path}, labels with their names in the schema's metadata."""
    rows = [{"bytes": png(shade) if with_bytes else None, "path": f"{shade}.png"} for shade in shades]
    features = {"image": {"_type": "Image"}, "label": {"names": list(NAMES), "_type": "ClassLabel"}}
    image = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": image, "label": pa.array([shade % 2 for shade in shades], pa.int64())})
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=5)


def test_a_dataset_of_the_hub_s_layout_is_read(cache: Path) -> None:
    folder = snapshot(cache, "datasets/owner/pets")
    write_split(folder / "data" / "train-00000-of-00001.parquet", range(12))
    write_split(folder / "data" / "test-00000-of-00001.parquet", range(20, 24))
    for uri in ("hf://datasets/owner/pets", "hf://datasets/owner/pets@main/data"):
        train = read_images(uri, "train")
        assert train.class_names == NAMES
        assert train.labels.tolist() == [0, 1] * 6
        assert [train.encoded(row) for row in range(12)] == [png(shade) for shade in range(12)]
        assert train.row_ids[11] == "train-00000-of-00001.parquet:11"
    examine_task("hf://datasets/owner/pets").usable()
    with pytest.raises(UserError, match="cannot be written"):
        existing_files("hf://datasets/owner/pets")


def test_images_without_bytes_are_refused(tmp_path: Path) -> None:
    write_split(tmp_path / "train.parquet", range(3), with_bytes=False)
    with pytest.raises(UserError, match=r"train\.parquet, row 0: the image has no bytes"):
        read_images(str(tmp_path), "train")


def test_weights_of_the_hub_are_read_and_must_have_the_published_bytes(cache: Path) -> None:
    folder = snapshot(cache, "models/madrylab/robust-imagenet-models")
    torch.save({"weight": torch.ones(2)}, folder / "own.pt")
    uri = "hf://madrylab/robust-imagenet-models"
    assert read_weights(f"{uri}/own.pt")["weight"].tolist() == [1.0, 1.0]
    (folder / "resnet18_linf_eps4.0.ckpt").write_bytes(b"another file")
    with pytest.raises(UserError, match=r"is not the published resnet18_linf_eps4\.0\.ckpt \(SHA-256"):
        weights_digest(f"{uri}/resnet18_linf_eps4.0.ckpt")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("hf://owner/absent/weights.pt", "cache does not hold it: unset HF_HUB_OFFLINE"),
        ("hf://nowhere", "is no URI of the Hub"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(cache: Path, uri: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        read_weights(uri)
    assert "\n" not in str(refused.value)
