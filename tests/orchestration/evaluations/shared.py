"""A small trained model with its task, for tests of the evaluation program."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from distributed_autolora.data.augmentation import to_unit_interval
from distributed_autolora.data.images import ImageSource
from distributed_autolora.data.parquet.reader import read_images
from distributed_autolora.models import save_weights
from distributed_autolora.models.portable import NetworkDescription
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest
from distributed_autolora.records import Evaluation, from_json
from tests.training.tasks import CLASSES, write_task

TEST_IMAGES = 20
DESCRIPTION = NetworkDescription(backbone="small_resnet", num_classes=len(CLASSES), mean=(0.5,), std=(0.25,))


@dataclass(frozen=True)
class Material:
    """Files that an evaluation starts from."""

    task: str
    weights: Path

    def request(self, output: Path, **more: Any) -> EvaluationRequest:
        values: dict[str, Any] = {
            "model": str(self.weights),
            "data": self.task,
            "attacks": "pgd3x2,apgd-ce",
            "epsilon": 0.03,
            "chunk_size": 5,
            "num_workers": 1,
            "output": str(output),
            "sanity": False,
            "export": False,
        }
        return EvaluationRequest(**(values | more))


def write_material(folder: Path) -> Material:
    """Writes a task, trains a network on it for a moment, and writes its weights as a run does."""
    task = write_task(folder / "task", train=60, test=TEST_IMAGES)
    table = read_images(task, "train")
    x = to_unit_interval(
        ImageSource(table, channels=1, image_size=None, resized=False).images(torch.arange(len(table)))
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DESCRIPTION.build().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(12):
            optimizer.zero_grad()
            F.cross_entropy(model(x), table.labels).backward()
            optimizer.step()
    save_weights(model.backbone.state_dict(), folder / "model.safetensors", DESCRIPTION.metadata())
    return Material(task, folder / "model.safetensors")


def outcomes(folder: Path) -> dict[str, list[Any]]:
    return dict(pq.read_table(folder / "outcomes.parquet").to_pydict())


def result(folder: Path) -> Evaluation:
    return from_json(Evaluation, json.loads((folder / "evaluation.json").read_text()), "evaluation.json")
