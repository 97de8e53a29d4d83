"""A healthy robust model and three broken ones, on the shipped images at half their size."""

import copy
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distributed_autolora.core.attacks import pgd
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.data.catalog import embedded_folder
from distributed_autolora.data.images import ImageSource
from distributed_autolora.data.parquet.reader import read_images
from distributed_autolora.models import Classifier

THREAT_MODEL = ThreatModel(epsilon=0.1)
NUM_CLASSES = 5
Change = Callable[[Tensor], Tensor]
_STEPS = 250
_BATCH = 50


@cache
def _images(split: str) -> tuple[Tensor, Tensor]:
    table = read_images(embedded_folder(), split)
    images = ImageSource(table, channels=1, image_size=None, resized=False).images(torch.arange(len(table)))
    return F.avg_pool2d(images.float() / 255, 2), torch.as_tensor(table.labels)


def shipped_images(count: int) -> tuple[Tensor, Tensor]:
    """Returns float32 [count, 1, 14, 14] images in [0, 1] and labels [count] of the shipped test split."""
    x, y = _images("test")
    return x[:count].clone(), y[:count].clone()


def robust_model() -> Classifier:
    """Returns a fresh copy of a small network that was trained on PGD's images only, in eval mode."""
    return copy.deepcopy(_trained())


@cache
def _trained() -> Classifier:
    x, y = _images("train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 4 * 4, NUM_CLASSES)),
        )
        model = Classifier(network, mean=(0.286,), std=(0.353,)).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for step in range(_STEPS):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / _STEPS)
            rows = torch.randint(len(x), (_BATCH,))
            x_adv = pgd(model, x[rows], y[rows], threat_model=THREAT_MODEL, num_steps=4, step_size=0.04)
            optimizer.zero_grad()
            F.cross_entropy(model(x_adv), y[rows]).backward()
            optimizer.step()
    return model.eval()


class Changed(nn.Module):
    """A model with a change of its input and one of its logits."""

    def __init__(self, model: nn.Module, before: Change = torch.clone, after: Change = torch.clone) -> None:
        super().__init__()
        self.model = model
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.model(self.before(x)))


def first_classes(model: nn.Module, num_classes: int) -> nn.Module:
    return Changed(model, after=lambda logits: logits[:, :num_classes]).eval()


def rounded(model: nn.Module) -> nn.Module:
    """Returns the model behind a rounding to 9 grey levels, which stops every gradient."""
    return Changed(model, before=lambda x: (8 * x).round() / 8)


def noisy(model: nn.Module) -> nn.Module:
    return Changed(model, before=lambda x: x + 0.1 * torch.randn_like(x))


def saturated(model: nn.Module) -> nn.Module:
    """Returns the model with logits so large that the float32 cross-entropy of a correct image is exactly 0."""
    return Changed(model, after=lambda logits: 1e4 * logits)
