"""The house: a lower layer never imports a higher one, each outside world has one door, and folders stay small.

Who may import whom is read from the source; what an import brings along is seen in a fresh interpreter.
"""

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = "distributed_autolora"
REPOSITORY = Path(__file__).resolve().parents[1]
LEVELS = {
    "errors": 0,
    "console": 0,
    "hardware": 0,
    "progress": 1,
    "hub": 1,
    "records": 1,
    "core": 2,
    "files": 2,
    "config": 3,
    "recipes": 4,
    "models": 4,
    "data": 4,
    "studies": 4,
    "evaluation": 4,
    "training": 5,
    "reporting": 6,
    "orchestration": 7,
    "api": 8,
    "cli": 8,
    "programs": 9,
    "__main__": 10,
    "jobs": 10,
}
DOORS = {
    "ray": f"{PACKAGE}.orchestration",
    "mlflow": f"{PACKAGE}.orchestration.mlflow_tracking",
    "torch.distributed": f"{PACKAGE}.training.distributed",
    "pyautoattack": f"{PACKAGE}.evaluation.autoattack",
}
STANDARD = (*sorted(sys.stdlib_module_names), PACKAGE)
DESCRIPTIONS = ("errors", "console", "records", "files", "config", "recipes", "studies")
# What modules of these layers may import, at their top or inside a function.
OUTSIDE = {**dict.fromkeys(DESCRIPTIONS, STANDARD), "config": (*STANDARD, "yaml"), "core": (*STANDARD, "torch")}
# Layers whose import must bring none of these along, in the order in which a fresh interpreter imports them.
LIGHT = {
    **dict.fromkeys(DESCRIPTIONS, ("numpy", "torch", "ray", "mlflow")),
    "cli": ("torch", "ray", "mlflow"),
    "core": ("ray", "mlflow", "torchvision"),
    "models": ("ray", "mlflow"),
    "data": ("ray", "mlflow"),
    "training": ("ray", "mlflow"),
    "evaluation": ("ray", "mlflow"),
}

MODULES_IN_A_FOLDER, LINES_IN_A_FILE, LINES_IN_A_FUNCTION = 15, 250, 40

IMPORT_AND_TELL = """
import importlib, json, sys
brought, known = {}, set(sys.modules)
for name in json.load(sys.stdin):
    importlib.import_module(name)
    brought[name] = sorted(set(sys.modules) - known)
    known = set(sys.modules)
print(json.dumps(brought))
"""


def modules() -> dict[str, Path]:
    files = [*(REPOSITORY / PACKAGE).rglob("*.py"), *(REPOSITORY / "jobs").glob("*.py")]
    names = (".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for file in files)
    return dict(sorted(zip(names, files, strict=True)))


def layer(module: str) -> str:
    """Returns "core" for distributed_autolora.core.lora, "jobs" for jobs.finetune, "" for the package itself."""
    return module.removeprefix(PACKAGE).lstrip(".").partition(".")[0]


def within(module: str, *packages: str) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def imported_names(source: str) -> set[str]:
    """Returns the full names that a source imports anywhere, and the names of torch that it reaches by attribute."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            names.add(f"torch.{node.attr}")
    return names


def upward_imports(module: str, names: set[str]) -> list[str]:
    """Returns the names that belong to a layer which the module's own layer may not import."""
    own = layer(module)
    inside = [name for name in names if within(name, PACKAGE, "jobs") and layer(name) not in ("", own)]
    return sorted(name for name in inside if LEVELS.get(layer(name), -1) >= LEVELS[own])


@pytest.fixture(scope="module")
def brought() -> dict[str, list[str]]:
    """What each module of the light layers brings into a fresh interpreter beyond those imported before it."""
    names = [name for part in LIGHT for name in modules() if within(name, f"{PACKAGE}.{part}")]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_AND_TELL],
        input=json.dumps([PACKAGE, *names]),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_every_module_belongs_to_a_known_layer() -> None:
    unknown = [name for name in modules() if name != PACKAGE and layer(name) not in LEVELS]
    assert unknown == []


@pytest.mark.parametrize("module", [name for name in modules() if layer(name) in LEVELS])
def test_a_module_imports_only_lower_layers_and_its_own(module: str) -> None:
    assert upward_imports(module, imported_names(modules()[module].read_text())) == []


@pytest.mark.parametrize(("library", "door"), DOORS.items())
def test_only_the_door_imports_the_library(library: str, door: str) -> None:
    importers = [
        module
        for module, file in modules().items()
        if any(within(name, library) for name in imported_names(file.read_text()))
    ]
    assert [module for module in importers if not within(module, door)] == []
    assert importers != []


@pytest.mark.parametrize("part", OUTSIDE)
def test_the_lowest_layers_import_nothing_else(part: str) -> None:
    for module, file in modules().items():
        if layer(module) == part:
            foreign = [name for name in imported_names(file.read_text()) if not within(name, *OUTSIDE[part])]
            assert foreign == [], module


@pytest.mark.parametrize("part", LIGHT)
def test_importing_a_layer_brings_no_forbidden_library_along(part: str, brought: dict[str, list[str]]) -> None:
    for module, names in brought.items():
        if layer(module) == part:
            assert [name for name in names if within(name, *LIGHT[part])] == [], module


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    document = function.body[0] if ast.get_docstring(function) is not None else None
    written = 0 if document is None else (document.end_lineno or 0) - document.lineno + 1
    return (function.end_lineno or 0) - function.lineno + 1 - written


def test_a_folder_has_few_modules() -> None:
    folders = Counter(file.parent for file in modules().values() if file.name != "__init__.py")
    assert {str(folder): count for folder, count in folders.items() if count > MODULES_IN_A_FOLDER} == {}


def test_a_module_is_short() -> None:
    lengths = {module: len(file.read_text().splitlines()) for module, file in modules().items()}
    assert {module: length for module, length in lengths.items() if length > LINES_IN_A_FILE} == {}


def test_a_function_is_short() -> None:
    lengths = {
        f"{module}.{node.name}": code_lines(node)
        for module, file in modules().items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > LINES_IN_A_FUNCTION} == {}


def test_programs_are_short_and_hold_no_tensors() -> None:
    for module, file in modules().items():
        if layer(module) in ("jobs", "programs"):
            assert len(file.read_text().splitlines()) < 80, module
            assert not [name for name in imported_names(file.read_text()) if within(name, "torch", "numpy")], module


def test_forbidden_imports_are_found_in_every_spelling() -> None:
    spellings = (
        "import torch.distributed as d",
        "from torch import distributed",
        "from torch.distributed import barrier",
    )
    for source in (*spellings, "import torch\ndef f():\n    torch.distributed.barrier()"):
        assert any(within(name, "torch.distributed") for name in imported_names(source)), source
    assert not within("rayon", "ray")
    upward = imported_names(f"def f():\n    from {PACKAGE} import training")
    assert upward_imports(f"{PACKAGE}.core.lora", upward) == [f"{PACKAGE}.training"]
    assert upward_imports(f"{PACKAGE}.cli", upward) == []


def test_what_an_import_brings_along_is_seen(brought: dict[str, list[str]]) -> None:
    assert any("torch" in names for names in brought.values())
