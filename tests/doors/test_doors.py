"""Whatever comes in at a door is taken as an independent count says, or is refused in one line; nothing is lost."""

import contextlib
import copy
import csv
import io
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from PIL import Image

from distributed_autolora.config.experiment import fraction, read_config
from distributed_autolora.data.decoding import ImageDecodeError, decode_image
from distributed_autolora.data.preparation.flags import Folder, ImageList
from distributed_autolora.data.preparation.image_folder import IMAGE_EXTENSIONS
from distributed_autolora.data.preparation.prepare import prepare
from distributed_autolora.errors import UserError
from distributed_autolora.models import load_backbone
from distributed_autolora.models.small_resnet import SmallResNet
from tests.doors import material
from tests.doors.material import Entry, Layout, Picture, png


def written(output: Path) -> list[tuple[str, str, bytes]]:
    """Returns (row id, class, image) of all rows of a prepared task."""
    rows = []
    for split in ("train", "test"):
        table = pq.read_table(output / f"{split}.parquet")
        names = json.loads(pq.read_metadata(output / f"{split}.parquet").metadata[b"class_names"])
        rows += [(row["row_id"], names[row["label"]], row["image"]) for row in table.to_pylist()]
    return rows


def assert_none_is_lost(rows: list[tuple[str, str, bytes]], expected: dict[str, tuple[str, bytes]]) -> None:
    """Every row is an expected image; what is expected and no row has the bytes of one: a copy that was left out."""
    assert all(expected[row_id] == (label, image) for row_id, label, image in rows)
    assert len({row_id for row_id, _, _ in rows}) == len(rows)
    images = {image for _, _, image in rows}
    assert all(image in images for _, image in expected.values())


def folder_tree(entries: list[Entry], place: Path) -> None:
    source = place / "in"
    source.mkdir()
    for parts, content in entries:
        path = source.joinpath(*parts)
        with contextlib.suppress(OSError):  # a file where a folder should be, or a name twice
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.mkdir()
            elif isinstance(content, str):
                path.symlink_to(content)
            else:
                path.write_bytes(content)
    prepared = prepare(Folder(source=source, output=str(place / "out")))
    splits = all((source / split).is_dir() for split in ("train", "test"))
    expected, files = {}, 0
    for parent, folders, names in os.walk(source, followlinks=True):
        if any(part.startswith((".", "__MACOSX")) for part in Path(parent).relative_to(source).parts):
            folders[:] = [name for name in folders if not Path(parent, name).is_symlink()]
        for path in (Path(parent, name) for name in names):
            inside = path.relative_to(source).parts
            files += 1
            hidden = any(part.startswith((".", "__MACOSX")) for part in inside)
            used = not splits or inside[0] in ("train", "test")
            if used and not hidden and path.suffix.lower() in IMAGE_EXTENSIONS and len(inside) > 1 + splits:
                expected["/".join(inside)] = inside[splits], path.read_bytes()
    assert prepared.seen.startswith(f"seen: {files:,} = ")
    assert_none_is_lost(written(place / "out"), expected)


def csv_list(text: bytes, place: Path) -> None:
    images = {f"{number}.png": png(number) for number in range(40)}
    for name, content in images.items():
        (place / name).write_bytes(content)
    (place / "list.csv").write_bytes(text)
    prepare(ImageList(source=place / "list.csv", output=str(place / "out")))
    rows = list(csv.reader(io.StringIO(text.decode("utf-8-sig"), newline="")))
    at = {name: rows[0].index(name) for name in ("path", "label")}
    lines = [row for row in rows[1:] if row]
    expected = {row[at["path"]]: (row[at["label"]].strip(), images[row[at["path"]]]) for row in lines}
    assert len(expected) == len(lines) == sum(bool(line.strip()) for line in text.decode().splitlines()) - 1
    assert_none_is_lost(written(place / "out"), expected)


def image_file(picture: Picture, place: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*picture.size[::-1], 4), dtype=np.uint8)
    file = io.BytesIO()
    try:
        made = Image.fromarray(pixels).convert("RGB")
        made = (
            made.convert(picture.mode) if picture.mode not in ("I", "I;16", "LAB") else made.convert("L").convert("I")
        )
        made.save(file, picture.form)
    except (OSError, ValueError, KeyError):
        return  # Pillow has no such file
    data = file.getvalue()
    whole = attempt(data)
    kept = bytearray(data[: len(data) * picture.hundredths // 100])
    if picture.flipped is not None and kept:
        kept[len(kept) * picture.flipped // 1000] ^= 0xFF
    seen = attempt(bytes(kept))
    if kept == data and isinstance(whole, Image.Image) and picture.form != "ICO":
        assert whole.size == picture.size
        if picture.form in ("PNG", "BMP", "TIFF", "PPM") and picture.mode in ("L", "RGB"):
            assert whole.tobytes() == made.convert("RGB").tobytes()
    if picture.flipped is None and isinstance(seen, Image.Image) and picture.form in ("PNG", "JPEG", "BMP", "PPM"):
        assert isinstance(whole, Image.Image)
        assert seen.tobytes() == whole.tobytes(), "a part of an image was taken for it"


def assert_one_line(refusal: Exception) -> None:
    assert len(str(refusal).splitlines()) == 1, refusal


def attempt(data: bytes) -> Image.Image | None:
    try:
        grey, colour = decode_image(data, 1), decode_image(data, 3)
    except ImageDecodeError as error:
        assert_one_line(error)
        return None
    assert (grey.mode, colour.mode, grey.size) == ("L", "RGB", colour.size)
    return colour


def yaml_config(text: bytes, place: Path) -> None:
    (place / "config.yaml").write_bytes(text)
    config = read_config(place / "config.yaml")
    taken = config.to_dict()
    for section, values in (yaml.safe_load(text) or {}).items():
        for key, value in values.items() if isinstance(values, dict) else [(None, values)]:
            seen = taken[section] if key is None else taken[section][key]
            given_value = fraction(value) if isinstance(value, str) and isinstance(seen, float) else value
            assert repr(seen) == repr(given_value) or seen == given_value, (section, key, value, seen)
    config.validate()


NETWORKS = SmallResNet(1, 3), SmallResNet(1, 3)


def checkpoint(layout: Layout, place: Path) -> None:
    network, own = (copy.deepcopy(one) for one in NETWORKS)
    tensors = {
        name: value.to(layout.dtype) if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }
    names = list(tensors)
    state = {f"{layout.prefix}{name}": value for name, value in tensors.items()}
    if layout.missing is not None:
        del state[f"{layout.prefix}{names[layout.missing % len(names)]}"]
    state |= {name: torch.full((3,), 0.5) for name in layout.extra if name not in state}
    file = place / ("w.safetensors" if layout.safetensors else "w.pt")
    if layout.safetensors:
        safetensors.torch.save_file(state, file)
    else:
        torch.save(state if layout.key is None else {layout.key: state, "epoch": 3}, file)
    os.truncate(file, max(0, file.stat().st_size - layout.cut))
    load_backbone(own, file, head="fc")
    assert not layout.dtype.is_complex, "a float has no room for it"
    for name, value in own.state_dict().items():
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked"):
            assert torch.equal(value, tensors[name].float()), name


_LINE_BREAK = [Entry(("a", "0.png"), png(0)), Entry(("b", "0.png"), png(1)), Entry(("a\nb", "0.txt"), b"")]
_YAML = [
    b"[" * 1200,
    b"seed: 2026-02-31",
    b"method: {sharpening: 9007199254740993}",
    b"seed: 0\noptimization: {lr: 1" + b"0" * 400 + b"}",
]
DOORS: dict[str, tuple[Any, Callable[[Any, Path], None], list[Any]]] = {
    "folder tree": (material.TREES, folder_tree, [_LINE_BREAK]),
    "CSV list": (material.LISTS, csv_list, []),
    "image file": (material.PICTURES, image_file, []),
    "YAML config": (material.CONFIGS, yaml_config, _YAML),
    "checkpoint": (material.LAYOUTS, checkpoint, [Layout("", None, (), None, torch.complex64, False, 0)]),
}
"""For each door what comes in, what must hold, and cases that broke it once."""


@pytest.mark.parametrize(
    "examples", [300, pytest.param(5000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])], ids=["some", "many"]
)
@pytest.mark.parametrize("door", DOORS)
def test_what_comes_in_is_taken_as_it_is_or_refused_in_one_line(door: str, examples: int, tmp_path: Path) -> None:
    strategy, check, found = DOORS[door]
    ends: Counter[str] = Counter()

    def enter(value: Any) -> None:
        place = tmp_path / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            with warnings.catch_warnings(action="error", category=RuntimeWarning):
                check(value, place)
            ends["taken"] += 1
        except UserError as error:
            assert_one_line(error)
            ends["refused"] += 1

    base = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    decorators: list[Any] = [given(strategy), *(example(one) for one in found)]
    test: Any = enter
    for decorate in [*decorators, settings(base, derandomize=examples <= 300)]:
        test = decorate(test)
    test()
    print(f"\n| {door} | {sum(ends.values()):,} | {ends['taken']:,} | {ends['refused']:,} |")
    assert min(ends["taken"], ends["refused"]) > 0 or door == "image file"
