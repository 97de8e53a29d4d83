"""What comes in at the doors: strategies for folder trees, CSV texts, image files, YAML files and checkpoints."""

import io
from dataclasses import fields, is_dataclass
from typing import NamedTuple

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image

from distributed_autolora.config import ExperimentConfig


def png(number: int) -> bytes:
    """Returns a small image of its own."""
    file = io.BytesIO()
    Image.fromarray(np.full((2, 2), number % 256, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


_NAMES = st.sampled_from(
    ["a", "b", "A", "cat", "é", "e\u0301", "10", "9", " a", "a ", ".x", "__MACOSX", "a\nb", "\udcff", "train", "test"]
)
_FILES = st.tuples(
    st.sampled_from(["0", "1", "2", "3", "é", "\udce9", ".h", "x,y", "n\n"]),
    st.sampled_from([".png", ".png", ".PNG", ".txt", "", ".pn"]),
).map("".join)


class Entry(NamedTuple):
    """One thing below a folder: a file's bytes, None for an empty folder, or where a link leads to."""

    parts: tuple[str, ...]
    content: bytes | str | None


_ENTRIES = st.builds(
    lambda folders, file, content: Entry((*folders, file), content),
    st.lists(_NAMES, max_size=3).map(tuple),
    _FILES,
    st.one_of(st.integers(0, 30).map(png), st.integers(0, 30).map(png), st.just(b""), st.just(None)),
)
_LINKS = st.builds(
    lambda folders, target: Entry((*folders, "link"), target),
    st.lists(_NAMES, max_size=2).map(tuple),
    st.sampled_from(["..", ".", "../a", "0.png", "nowhere", "/dev/null"]),
)
_USUAL = st.lists(
    st.builds(lambda name, file: Entry((name, f"{file}.png"), png(file)), st.sampled_from("abc"), st.integers(0, 60)),
    min_size=6,
    max_size=12,
)
TREES = st.tuples(_USUAL, st.lists(st.one_of(_ENTRIES, _ENTRIES, _LINKS), max_size=4)).map(
    lambda both: [*both[0], *both[1]]
)

_FIELDS = st.sampled_from([*(f"{n}.png" for n in range(8)), "cat", "dog", "Cat", " cat", "é", "train", "test", "", "x"])
_QUOTES = st.sampled_from(["{}", "{}", "{}", "{}", '"{}"', '"{}', '{}"', '"{},"', '"{}\n"', "{}\0", '""{}""'])
_CELLS = st.builds(lambda form, text: form.format(text), _QUOTES, _FIELDS)
_RAW_LINES = st.lists(_CELLS, min_size=1, max_size=4).map(",".join)
_LABELS = st.sampled_from(["cat", "dog"] * 12 + ["dog ", "é"])
_HEADERS = st.sampled_from(
    ["path,label"] * 3
    + ["path,label,split"] * 3
    + ["path,Label", "\ufeffpath,label", "x,label,path", "path,path,label"]
)


def _lines(header: str) -> st.SearchStrategy[list[str]]:
    parts = {"path": st.integers(0, 39).map("{}.png".format), "split": st.sampled_from(["train", "test", " test"])}
    line = st.tuples(*(parts.get(name, _LABELS) for name in header.lower().strip("\ufeff").split(",")))
    return st.lists(line.map(",".join), min_size=14, max_size=18, unique_by=lambda text: text.split(".png")[0])


LISTS = st.builds(
    lambda usual, odd, end: end.join([*usual, *odd]).encode("utf-8", "surrogatepass"),
    _HEADERS.flatmap(lambda header: _lines(header).map(lambda lines: [header, *lines])),
    st.one_of(st.just([]), st.lists(_RAW_LINES, max_size=2)),
    st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n"]),
)


class Picture(NamedTuple):
    """An image file as it was made, and what is left of it."""

    mode: str
    size: tuple[int, int]
    form: str
    hundredths: int
    """How much of it is there."""
    flipped: int | None
    """Position of a byte that is another one, in thousandths of the file."""


PICTURES = st.builds(
    Picture,
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"]),
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.sampled_from([(1, 1), (1, 20_000), (20_000, 1), (3, 1000)]),
    ),
    st.sampled_from(
        ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO", "SGI", "PCX", "DDS"]
    ),
    st.one_of(st.just(100), st.integers(0, 100)),
    st.one_of(st.none(), st.none(), st.integers(0, 999)),
)

_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.sampled_from(["8/255", "1/0", "nan"])
)
_JSON = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_LEAVES, inner, max_size=3))
_KEYS = [
    (item.name, part.name)
    for item in fields(ExperimentConfig)
    if is_dataclass(value := getattr(ExperimentConfig(), item.name))
    for part in fields(value)
]
_SECTIONS = st.builds(
    lambda chosen, values: {section: {key: value} for (section, key), value in zip(chosen, values, strict=False)},
    st.lists(st.sampled_from(_KEYS), min_size=1, max_size=3, unique_by=lambda key: key[0]),
    st.lists(st.one_of(_LEAVES, st.sampled_from([0.5, 1, 2, "resnet18", "linf", True, [0.5], [1, 2, 3]])), min_size=3),
)
_TEXTS = st.one_of(
    st.sampled_from(
        ["[" * 1200, "{a: " * 600, "&a [*a]", "!!python/object:os.system {}", "a: &b [*b]", "- 1", "0x", "<<: 1"]
    ),
    st.text(max_size=30),
    st.builds(lambda value: str(yaml.safe_dump(value)), _JSON),
)
CONFIGS = st.one_of(
    _SECTIONS.map(lambda values: str(yaml.safe_dump(values)).encode()),
    _SECTIONS.map(lambda values: str(yaml.safe_dump(values)).encode()),
    _TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=30),
)


class Layout(NamedTuple):
    """How a program wrote a network's tensors."""

    prefix: str
    key: str | None
    """Of the dict that holds the state dict; None: it is alone."""
    extra: tuple[str, ...]
    missing: int | None
    dtype: torch.dtype
    safetensors: bool
    cut: int
    """Bytes that are missing at the end."""


_PREFIXES = st.sampled_from(
    ["", "module.", "model.", "_orig_mod.", "1.", "net.", "module.model.", "student.", "a.b.", "ema."]
)
LAYOUTS = st.builds(
    Layout,
    _PREFIXES,
    st.sampled_from([None, "state_dict", "model", "x"]),
    st.lists(
        st.sampled_from(["loss.weight", "n_averaged", "mean", "std", "module.fc.bias", "head.w", "conv1.weight"]),
        max_size=2,
    ).map(tuple),
    st.one_of(st.none(), st.none(), st.integers(0, 60)),
    st.sampled_from(
        [torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.complex64]
    ),
    st.booleans(),
    st.sampled_from([0, 0, 0, 1, 100, 10_000]),
)
