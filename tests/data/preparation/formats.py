"""Every kind of source that jobs/prepare_data.py reads, a few images a class, and the words that prepare it."""

from pathlib import Path

from tests.data.preparation import archives
from tests.data.preparation.test_sources import write_idx

FORMATS: dict[str, list[str]] = {
    "cifar10": ["--unverified"],
    "cifar100": ["--unverified"],
    "dtd": [],
    "dogs": [],
    "cub": [],
    "caltech256": ["--test-fraction", "0.25", "--no-clutter", "--seed", "1"],
    "fashion-mnist": ["--classes", "5-9", "--train-images", "20", "--test-images", "5"],
    "folder": [],
    "csv": [],
}
"""For each TASK of jobs/prepare_data.py the words beside --source and --output."""


def write_source(task: str, folder: Path) -> Path:
    """Writes a source of that kind into an empty folder, and returns what --source is given."""
    if task.startswith("cifar"):
        archives.cifar(folder, classes=int(task[5:]), per_batch=4 if task == "cifar10" else 16, used=4)
    elif task == "fashion-mnist":
        write_idx(folder)
    elif task == "folder":
        write_folder(folder)
    elif task == "csv":
        write_folder(folder)
        lines = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.rglob("*.jpg"))]
        (folder / "images.csv").write_text("\n".join(["path,label", *lines]))
        return folder / "images.csv"
    else:
        getattr(archives, task)(folder)
    return folder


def write_folder(folder: Path, per_class: int = 10) -> None:
    for label, name in enumerate(("ants", "bees")):
        for number in range(per_class):
            archives.jpeg(folder / name, f"{number}.jpg", 100 * label + number)


def words(task: str, source: Path, output: Path) -> list[str]:
    return [task, "--source", str(source), "--output", str(output), *FORMATS[task]]
