"""Locations of the files of tasks."""

from pathlib import Path

from distributed_autolora.config import DataConfig
from distributed_autolora.console import command
from distributed_autolora.data.parquet.locations import absolute_location
from distributed_autolora.data.parquet.reader import protocol_of, read_texts, with_protocol
from distributed_autolora.errors import UserError

EMBEDDED_TASK = "fashion-mnist-5-9"
"""The task whose images are shipped with the package."""

PUBLISHED = ("cifar10", "cifar100", "dtd", "dogs", "cub", "caltech256")
"""The paper's six tasks, to be fetched from their owners."""

_EMBEDDED = Path(__file__).absolute().parent / "embedded"

EMBEDDED_BACKBONES = {"embedded": "backbone.safetensors", "embedded-cifar100": "cifar100.safetensors"}
"""{value of model.weights: file} of the shipped backbones, of Fashion-MNIST classes 0-4 and of CIFAR-100."""


def embedded_folder() -> str:
    """Returns the folder of the shipped images."""
    return str(_EMBEDDED)


def lasting_location(folder: str) -> str:
    """Returns the folder or URI of a task's files; for the shipped ones their path in the package.

    A submitted job reads those from a copy of the package that vanishes with the job.
    """
    return "distributed_autolora/data/embedded" if folder == embedded_folder() else folder


def embedded_backbone(name: str = "embedded") -> Path:
    """Returns the file of a shipped backbone, by its name in `EMBEDDED_BACKBONES`."""
    return _EMBEDDED / EMBEDDED_BACKBONES[name]


def data_folder(config: DataConfig) -> str:
    """Returns the folder or URI of a task's Parquet files; a local path comes back absolute.

    Raises:
        UserError: if the config gives no path and the task is not the shipped one.
    """
    if config.path is not None:
        return absolute_location(config.path)
    if config.task == EMBEDDED_TASK:
        return embedded_folder()
    known = config.task in PUBLISHED
    how = f"{config.task} --source UNPACKED" if known else "folder --source IMAGES"
    from_what = "the published files" if known else "a folder of images"
    raise UserError(
        f'The images of task "{config.task}" are not shipped: give their folder with --data. To write it from '
        f"{from_what}: {command('data prepare')} {how} --output FOLDER."
    )


def labelled_task(task: str, folder: str) -> str:
    """Returns the name that a task's files state, else `task`, with their protocol added unless that is "clean".

    Raises:
        UserError: for files that are missing or cannot be read.
    """
    texts = read_texts(folder, "train")
    return with_protocol(str(texts.get("task") or task), protocol_of(texts))
