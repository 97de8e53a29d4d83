"""Refuses a file of torch.export that could run code of its own when it is loaded or called.

`torch.export.load` unpickles parts of the file, loads compiled libraries in it, and evaluates texts of its graph as
Python: what torch itself writes for a plain network needs none of that.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import torch

from distributed_autolora.errors import UserError

_RECORD = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|models/\w+\.json|data/sample_inputs/\w+\.pt|extra/.*"
    r"|data/weights/(weight_\d+|\w+_weights_config\.json)|data/constants/(tensor_\d+|\w+_constants_config\.json)"
)
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims|prim|torchvision)\.(?!from_file|save)\w+(\.\w+)?|torch\.sym_\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
_SYMBOL = re.compile(r"Symbol\('[a-z]+\d+'(, \w+=(True|False))*\)")
# Sizes of images: numbers, symbols and their arithmetic. Any other name would be looked up among Python's own.
_ARITHMETIC = re.compile(
    r"([\s\d+*/%(),<>=&|~-]|\d\.\d|\b[suz]\d+\b"
    r"|\b(Max|Min|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|Integer|Rational|oo|int_oo"
    r"|IntTrueDiv|TruncToInt|ToFloat|True|False)\b)*"
)
_RULES = {
    "target": _TARGET,
    "name": re.compile(r"[\w.]*"),  # becomes the name of a variable in code that torch writes and runs
}


def refuse_code(graph: bytes) -> None:
    """Checks that nothing in a file of torch.export can run code but the known operators of its graph.

    Args:
        graph: the file.

    Raises:
        UserError: naming what could.
        RuntimeError: for a file that torch cannot open.
    """
    reader = torch._C.PyTorchFileReader(io.BytesIO(graph))
    records = [str(name) for name in reader.get_all_records()]
    for name in records:
        if not _RECORD.fullmatch(name):
            raise _refusal(f"it holds {name[:80]}")
    for name in records:
        if name.endswith(".json") and not name.startswith("extra/"):
            _check(json.loads(reader.get_record(name)))


@contextlib.contextmanager
def tensors_only() -> Iterator[None]:
    """Inside, `torch.load` reads tensors and plain values only, whatever its caller asks for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _check(value: Any, key: str = "") -> None:
    """Looks at every text in a JSON value that torch would look up or evaluate."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, key)
    elif isinstance(value, str) and key == "expr_str":
        if not _ARITHMETIC.fullmatch(_SYMBOL.sub("s0", value)):
            raise _refusal(f'its graph has the size "{value[:80]}"')
    elif isinstance(value, str) and key in _RULES and not _RULES[key].fullmatch(value):
        raise _refusal(f'its graph has the {key} "{value[:80]}"')
    elif key == "use_pickle" and value:
        raise _refusal("some of its tensors are pickles")


def _refusal(what: str) -> UserError:
    return UserError(
        f"This file of torch.export is not loaded, because it could run code of its own ({what}). Export the model "
        "again as a plain network, or give a file of weights."
    )
