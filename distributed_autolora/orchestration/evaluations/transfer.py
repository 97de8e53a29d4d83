"""Adversarial images from elsewhere: a surrogate model, or the file that another evaluation wrote."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.attacks import TRANSFER, NamedAttack
from distributed_autolora.evaluation.chunks import Columns
from distributed_autolora.files import atomic_write
from distributed_autolora.models.portable import PortableModel
from distributed_autolora.orchestration.evaluations.model_source import FoundModel, find_model, find_run_folder
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest

ADVERSARIAL_FILE = "adversarial.parquet"
COLUMN = "adversarial"
"""Column of the adversarial images in a chunk and in the file: the bytes of float32 [C, H, W]."""


@dataclass(frozen=True, kw_only=True)
class AdversarialFile:
    """A file of adversarial images, one a test image, that every worker can read.

    Attributes:
        source: digest of the model that they were made on.
        images: SHA-256 of the test images and labels that they belong to.
    """

    path: str
    source: str
    images: str
    norm: str
    epsilon: float
    shape: tuple[int, ...]

    def digest(self) -> str:
        """Returns the SHA-256 of the file."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self, rows: tuple[int, ...]) -> Tensor:
        """Returns float32 [n, C, H, W] of rows of the test table.

        Raises:
            UserError: for a file that has not all of them, or cannot be read.
        """
        try:
            table = pq.read_table(self.path, filters=[("row", "in", list(rows))], page_checksum_verification=True)
            found = dict(zip(table["row"].to_pylist(), table[COLUMN].to_pylist(), strict=True))
            images = [np.frombuffer(found[row], dtype="<f4").reshape(self.shape) for row in rows]
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise UserError(
                f"{self.path} has not all of these test images ({type(error).__name__}): give --surrogate the file of "
                "an evaluation of the same --images and --seed."
            ) from None
        return torch.from_numpy(np.stack(images)) if images else torch.empty(0, *self.shape)


def find_surrogate(
    request: EvaluationRequest, attacks: tuple[NamedAttack, ...], victim: FoundModel, classes: int
) -> FoundModel | AdversarialFile | None:
    """Returns what the attack "transfer" takes its images from; None where it is not among the attacks.

    Raises:
        UserError: for a missing or superfluous --surrogate, one that cannot be read, or a model of other classes.
    """
    if not any(attack.name == TRANSFER for attack in attacks):
        if request.surrogate is not None:
            raise UserError(f"--surrogate is for the attack {TRANSFER}: add it to --attacks, or leave the flag out.")
        return None
    if request.surrogate is None:
        raise UserError(f"The attack {TRANSFER} needs a --surrogate: another model, or the {ADVERSARIAL_FILE} of one.")
    if request.surrogate.endswith(".parquet"):
        return open_adversarial(request.surrogate)
    own = replace(
        request, model=request.surrogate, backbone=None, num_classes=None, mean=None, std=None, input_size=None
    )
    found = find_model(own, find_run_folder(request.surrogate, request.home()), classes)
    names, others = victim.model.class_names, found.model.class_names
    if found.model.description.num_classes != classes or (names and others and names != others):
        raise UserError(f"The surrogate {found.name} has other classes than the model: give one for the same task.")
    return found


def open_adversarial(path: str) -> AdversarialFile:
    """Opens a file of adversarial images.

    Raises:
        UserError: for a file that is none.
    """
    absolute = Path(path).expanduser().absolute()
    try:
        values = {key.decode(): value.decode() for key, value in (pq.read_schema(absolute).metadata or {}).items()}
        return AdversarialFile(
            path=str(absolute),
            source=values["source"],
            images=values["images"],
            norm=values["norm"],
            epsilon=float(values["epsilon"]),
            shape=tuple(int(side) for side in values["shape"].split("x")),
        )
    except (OSError, pa.ArrowException, KeyError, ValueError):
        raise UserError(
            f"{path} is no file of adversarial images: give the {ADVERSARIAL_FILE} that jobs/evaluate.py "
            "--save-adversarial wrote."
        ) from None


def write_adversarial(
    path: Path, columns: Columns, *, model: PortableModel, images: str, ball: ThreatModel, shape: tuple[int, ...]
) -> None:
    """Writes the adversarial images of an evaluation, one a row: of all attacks the one with the smallest margin."""
    metadata = {
        "source": model.digest(),
        "images": images,
        "norm": ball.norm,
        "epsilon": repr(ball.epsilon),
        "shape": "x".join(map(str, shape)),
    }
    table = pa.table({name: columns[name] for name in ("row", "row_id", "label", COLUMN)})
    with atomic_write(path, pa.ArrowException) as unfinished:
        pq.write_table(table.replace_schema_metadata(metadata), unfinished, write_page_checksum=True)


def check_adversarial(file: AdversarialFile, images: str, ball: ThreatModel) -> None:
    """Refuses adversarial images of other test images or another threat model.

    Raises:
        UserError: for those.
    """
    if file.images != images:
        raise UserError(f"{file.path} belongs to other test images: evaluate the same --data and --image-size.")
    if (file.norm, file.epsilon) != (ball.norm, ball.epsilon):
        raise UserError(
            f"{file.path} was made with norm {file.norm} and epsilon {file.epsilon:g}: give --norm {file.norm} "
            f"--epsilon {file.epsilon:g}."
        )
