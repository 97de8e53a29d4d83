"""The command line of `autolora data prepare`; importing it loads neither torch nor torchvision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Common:
    """Flags of all sources."""

    source: Path
    """Folder, or file, to read."""
    output: str
    """Folder or pyarrow URI to write train*.parquet and test*.parquet to."""
    overwrite: bool = False
    """Replace Parquet files that are there already."""

    recipe: ClassVar[str] = "custom"


@dataclass(frozen=True, kw_only=True)
class Published(Common):
    """One of the paper's tasks, from its published files; nothing is downloaded."""

    protocol: Literal["clean", "released"] = "clean"
    """released: the splits of the released code, faults included, labelled wherever numbers from them appear."""

    def __init_subclass__(cls) -> None:
        """A task's recipe has the name of its class."""
        cls.recipe = cls.__name__.lower()


@dataclass(frozen=True, kw_only=True)
class Cifar10(Published):
    """CIFAR-10: the folder that holds cifar-10-batches-py."""

    unverified: bool = False
    """Also read files that are not the published ones; they are pickles, which can run any code."""


@dataclass(frozen=True, kw_only=True)
class Cifar100(Cifar10):
    """CIFAR-100: the folder that holds cifar-100-python."""


@dataclass(frozen=True, kw_only=True)
class Dtd(Published):
    """Describable Textures: the folder that holds dtd/images and dtd/labels."""


@dataclass(frozen=True, kw_only=True)
class Dogs(Published):
    """Stanford Dogs: the folder with Images/ or images.tar, and the lists or lists.tar."""


@dataclass(frozen=True, kw_only=True)
class Cub(Published):
    """CUB-200-2011: the folder CUB_200_2011 or the one that holds it."""


@dataclass(frozen=True, kw_only=True)
class Caltech256(Published):
    """Caltech-256: the folder that holds 256_ObjectCategories."""

    test_fraction: float = 0.12
    """Share of each class held out for testing, in (0, 1); there is no official split."""
    train_per_class: int = 150
    """Under the released protocol: consecutive images taken for each class."""
    clutter: bool = True
    """Whether the clutter class, the 257th, is kept; the released protocol always keeps it."""
    seed: int = 0
    """Seed of the held-out share."""


@dataclass(frozen=True, kw_only=True)
class Own(Common):
    """Flags of one's own images."""

    test_fraction: float = 0.2
    """Share of each class held out for testing where the source has no test images of its own; in (0, 1)."""
    task: str | None = None
    """Name of the task; None: that of the source."""
    licence: str = "not stated"
    """Terms that the images may be used under; kept in the files."""
    seed: int = 0
    """Seed of what is held out."""


@dataclass(frozen=True, kw_only=True)
class Folder(Own):
    """A folder with one folder of images a class, or with train/ and test/ that each have those."""


@dataclass(frozen=True, kw_only=True)
class ImageList(Own):
    """A CSV file with the columns path and label, and possibly split (train or test)."""


@dataclass(frozen=True, kw_only=True)
class FashionMnist(Common):
    """Fashion-MNIST from its IDX files (Debian's dataset-fashion-mnist or torchvision's download)."""

    classes: str = "0-9"
    """Official labels to keep, such as 5-9 or 1,3,8."""
    train_images: int | None = None
    """A stratified subset of this many training images; None: all."""
    test_images: int | None = None
    """A stratified subset of this many test images; None: all."""
    seed: int = 0
    """Seed of the subsets."""
    without_shipped: bool = False
    """Leave out every image that is shipped with the package, by its pixels."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Checks every image of a prepared task: refuses what cannot be used, warns of what is unusual."""

    folder: Annotated[str, tyro.conf.Positional]
    """Folder or URI of train*.parquet and test*.parquet."""


SOURCES: dict[str, type[Common | Check]] = {
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "dtd": Dtd,
    "dogs": Dogs,
    "cub": Cub,
    "caltech256": Caltech256,
    "fashion-mnist": FashionMnist,
    "folder": Folder,
    "csv": ImageList,
    "check": Check,
}
"""Flags of `autolora data prepare` by its first word."""
