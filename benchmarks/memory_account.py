"""What a training step should hold in memory, what it does hold, and the drawn task that both are found on."""

from __future__ import annotations

import ctypes
import gc
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from distributed_autolora.config import (
    AttackConfig,
    ComputeConfig,
    DataConfig,
    ExperimentConfig,
    MethodConfig,
    ModelConfig,
    OptimizationConfig,
    Precision,
    ScalingConfig,
)
from distributed_autolora.core.attacks import eval_mode, input_gradient
from distributed_autolora.data.parquet.writer import ImageRow, write_images
from distributed_autolora.training.epoch import LossSums, PhaseSeconds
from distributed_autolora.training.task_data import TaskData
from distributed_autolora.training.trainer import Trainer

_CLASSES = 10
_ATTACK_STEPS = 2
"""Every step of an attack frees what the one before it held: more of them are not a higher peak."""
_IMAGES_OF_THE_ATTACK = 5
"""x, the noise, the lower and the upper end of the box, and the iterate."""
_IMAGES_OF_THE_STEP = 3
"""x, the noise, and the adversarial images."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training step to account for."""

    backbone: str
    method: str
    size: int
    """Side of the images in pixels."""
    channels: int
    batch: int
    """Images of the batch."""
    precision: Precision
    """Format of the attack network and of the step's matrix products; chosen."""


@dataclass(frozen=True, kw_only=True)
class Theory:
    """Bytes that must be there at once, by what they are for."""

    parameters: int
    """Trained parameters, and the buffers of batch norm."""
    gradients: int
    """Held from one backward to the next."""
    momentum: int
    attack_network: int
    """The folded copy, with the packed copies of its weights on a CPU."""
    best: int
    """The best state so far, which a halving restores."""
    images: int
    kept: int
    """What autograd keeps for the backward, weights of the network not counted; merged weights are."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())

    def at_batch(self, smaller: Theory, batch: int, smaller_batch: int, wanted: int) -> Theory:
        """Returns the theory of a batch of `wanted` images, along the line through two smaller ones.

        Args:
            smaller: the theory of the same step at `smaller_batch` images.
            batch: images of this one.
            smaller_batch: another number than `batch`.
            wanted: images to compute it for.
        """
        share = (wanted - batch) / (batch - smaller_batch)
        return Theory(**{name: round(own + share * (own - vars(smaller)[name])) for name, own in vars(self).items()})


def account(case: Case, folder: str, device_name: str) -> dict[str, Any]:
    """Returns theory and measurement of a step and of its attack, in bytes; call it in a fresh process.

    Args:
        case: the step.
        folder: where the task may be written.
        device_name: "cpu" or "cuda".

    Returns:
        "theory": {"attack", "step", "step_at_half": `Theory` as a dict}, "measured": {"attack", "step": bytes}.
    """
    torch.set_num_threads(1)
    device = torch.device(device_name)
    data = drawn_task(case, Path(folder), device)
    meter: _Meter = _CudaMeter() if device.type == "cuda" else _CpuMeter()
    # Libraries load their code and compile their kernels for the first step of a process; that is not counted.
    Step(case, folder, data, device).take()
    meter.begin()
    step = Step(case, folder, data, device)
    step.take()  # gradients and momentum are there from the second step on
    measured = {"attack": meter.peak(step.attack), "step": meter.peak(step.take)}
    theory = {
        "attack": vars(step.theory_of_attack()),
        "step": vars(step.theory(case.batch)),
        "step_at_half": vars(step.theory(case.batch // 2)),
    }
    return {"theory": theory, "measured": measured}


def saved_bytes(forward: Callable[[], object], held: Iterable[Tensor]) -> int:
    """Returns the bytes of all tensors that autograd keeps while `forward` runs, each storage counted once.

    Args:
        forward: what to run; what it returns is kept until all is counted.
        held: tensors that are there anyway, such as parameters; they do not count.
    """
    there = {tensor.untyped_storage().data_ptr() for tensor in held}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in there:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return total


def drawn_task(case: Case, folder: Path, device: torch.device) -> TaskData:
    """Writes noise as a task of two batches to train on, and opens it."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", 4 * case.batch), ("test", _CLASSES)):
        rows = [ImageRow(_png(generator, case), number % _CLASSES, f"{split}/{number}") for number in range(count)]
        names = [f"class {number}" for number in range(_CLASSES)]
        texts = {"task": "drawn", "split": split, "licence": "none", "provenance": "noise"}
        write_images(folder / f"{split}.parquet", rows, class_names=names, **texts)
    return TaskData(_config(case, str(folder)), str(folder), device)


class Step:
    """A trainer and one batch of it."""

    def __init__(self, case: Case, folder: str, data: TaskData, device: torch.device) -> None:
        self.trainer = Trainer(_config(case, folder), data, None, device)
        self.trainer.set_loss_weights(0.5)
        self.trainer.objective.train()
        self.rows = data.split.train[: case.batch]
        self.x, self.y = data.training_batch(self.rows, 1, "augmentation")

    def take(self) -> None:
        """Takes a whole training step."""
        self.trainer.train_step(self.rows, self.x, self.y, 1, LossSums(2, "the benchmark"), PhaseSeconds())

    def attack(self) -> None:
        """Runs the training attack alone."""
        self.trainer.train_attack(self.trainer.attack_network, self.x, self.y, noise=torch.rand_like(self.x))

    def theory(self, batch: int) -> Theory:
        """Returns what the forward of a step holds when it is done and the backward begins."""
        trainer, x, y = self.trainer, self.x[:batch], self.y[:batch]
        further = trainer.method.step_arguments(batch, 0, 1)

        def forward() -> object:
            with trainer.autocast():
                return trainer.wrapped(x, x.clone(), y, denominator=float(batch), **further).total

        held = [*trainer.objective.parameters(), *trainer.objective.buffers()]
        return self._theory(saved_bytes(forward, held), _IMAGES_OF_THE_STEP * _bytes([x]))

    def theory_of_attack(self) -> Theory:
        """Returns what the forward of an attack step holds when its backward begins."""
        network = self.trainer.attack_network
        with eval_mode(network):
            kept = saved_bytes(lambda: input_gradient(network, self.x, self.y), [*network.parameters()])
        return self._theory(kept, _IMAGES_OF_THE_ATTACK * _bytes([self.x]))

    def _theory(self, kept: int, images: int) -> Theory:
        objective = self.trainer.objective
        trained = _bytes(objective.parameters())
        return Theory(
            parameters=trained + _bytes(objective.buffers()),
            gradients=trained,
            momentum=trained,
            attack_network=_bytes(_tensors_of(self.trainer.attack_network)),
            best=_bytes(self.trainer.best.values()),
            images=images,
            kept=kept,
        )


class _Meter(ABC):
    """Counts bytes above those that were there when it began."""

    def begin(self) -> None:
        """Notes what is there."""
        self._before = self._now()

    def peak(self, run: Callable[[], None]) -> int:
        """Returns the most bytes that are there at once while `run` runs."""
        self._now()
        self._reset()
        run()
        return self._highest() - self._before

    @abstractmethod
    def _now(self) -> int: ...

    @abstractmethod
    def _highest(self) -> int: ...

    @abstractmethod
    def _reset(self) -> None: ...


class _CpuMeter(_Meter):
    """Reads the process's resident memory from Linux, after the allocator gave back what it can."""

    def _now(self) -> int:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return _status("VmRSS")

    def _highest(self) -> int:
        return _status("VmHWM")

    def _reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")


class _CudaMeter(_Meter):
    """Asks PyTorch's allocator."""

    def _now(self) -> int:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    def _highest(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def _reset(self) -> None:
        torch.cuda.reset_peak_memory_stats()


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _tensors_of(network: nn.Module) -> list[Tensor]:
    """Returns parameters, buffers, and tensors that layers hold as plain attributes: packed weights."""
    plain = [value for layer in network.modules() for value in vars(layer).values() if isinstance(value, Tensor)]
    return [*network.parameters(), *network.buffers(), *plain]


def _config(case: Case, folder: str) -> ExperimentConfig:
    return ExperimentConfig(
        data=DataConfig(task="drawn", path=folder, augmentation="none", val_images_min=0),
        model=ModelConfig(backbone=case.backbone, mean=(0.5,) * case.channels, std=(0.25,) * case.channels),
        method=MethodConfig(name=case.method),
        train_attack=AttackConfig(num_steps=_ATTACK_STEPS),
        optimization=OptimizationConfig(global_batch_size=case.batch),
        compute=ComputeConfig(attack_precision=case.precision, train_precision=case.precision),
        scaling=ScalingConfig(num_workers=1),
    )


def _png(generator: np.random.Generator, case: Case) -> bytes:
    shape = (case.size, case.size) if case.channels == 1 else (case.size, case.size, case.channels)
    file = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(file, "PNG", compress_level=0)
    return file.getvalue()
