"""Writes labelled images as the Parquet files that every other program reads."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from distributed_autolora.cli import run_program


@dataclass(frozen=True, kw_only=True)
class Common:
    """What both kinds of source share."""

    source: Path
    """Folder to read."""
    output: str
    """Folder or pyarrow URI to write train.parquet and test.parquet to."""
    seed: int = 0
    """Seed of what is chosen."""
    overwrite: bool = False
    """Replace Parquet files that are there already."""


@dataclass(frozen=True, kw_only=True)
class Folder(Common):
    """A folder with one folder of images a class, or with train/ and test/ that each have those."""

    test_fraction: float = 0.2
    """Share of each class held out for testing where there is no test/; in (0, 1)."""
    task: str | None = None
    """Name of the task; None: the name of the folder."""
    licence: str = "not stated"
    """Terms that the images may be used under; kept in the files."""


@dataclass(frozen=True, kw_only=True)
class FashionMnist(Common):
    """Fashion-MNIST from its IDX files (Debian's dataset-fashion-mnist or torchvision's download)."""

    classes: str = "0-9"
    """Official labels to keep, such as 5-9 or 1,3,8."""
    train_images: int | None = None
    """A stratified subset of this many training images; None: all."""
    test_images: int | None = None
    """A stratified subset of this many test images; None: all."""


Source = (
    Annotated[Folder, tyro.conf.subcommand("folder")] | Annotated[FashionMnist, tyro.conf.subcommand("fashion-mnist")]
)


def main() -> None:
    """Reads the command line, writes the files and prints what they hold."""
    flags = tyro.cli(Source, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    from distributed_autolora.data.prepare import prepare_fashion_mnist, prepare_folder

    prepare = prepare_folder if isinstance(flags, Folder) else prepare_fashion_mnist
    prepared = prepare(**asdict(flags))
    print(prepared.table())
    weights = "python jobs/finetune.py --recipe custom --model.weights WEIGHTS --data.path"
    print(f"\nNext: {weights} {shlex.quote(prepared.output)}")


if __name__ == "__main__":
    run_program(main, when_interrupted="No file was left half-written.")
