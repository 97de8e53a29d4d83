"""Measures the peak memory of a training step against what must be in memory at once.

    python benchmarks/memory.py                      # a minute on one core

The theory adds up parameters, gradients, momentum, the attack network, the best state so far, the images, and what
autograd keeps for the backward (counted while a forward runs, each storage once). Every step is measured in a fresh
process of one thread: the highest resident memory less what was resident before. Prints MiB, writes bytes.
`gpu_check.py` measures that of a GPU.
"""

import ctypes
import gc
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.drawn_task import noise_png, write_drawn_task
from benchmarks.timing import BenchmarkFlags, run_benchmark, table
from benchmarks.trained import TrainingSteps
from benchmarks.worker_pool import in_fresh_process
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
from distributed_autolora.hardware import cpu_precision
from distributed_autolora.training.memory_estimate import kept_bytes
from distributed_autolora.training.methods.registry import method_of
from distributed_autolora.training.task_data import TaskData

Network = Literal["small_resnet", "resnet18"]
SIDES: dict[str, int] = {"small_resnet": 28, "resnet18": 224}
_CHANNELS = {"small_resnet": 1, "resnet18": 3}
_BATCHES = {"small_resnet": 64, "resnet18": 8}
_ATTACK_STEPS = 2  # more of them do not raise the peak: each frees what the one before it held
_MIB = 2**20
# The allocator returns every larger block to the system when it is freed.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True, kw_only=True)
class Flags(BenchmarkFlags):
    """What to measure."""

    networks: tuple[Network, ...] = ("small_resnet", "resnet18")
    """small_resnet: 28 pixels, batches of 64; resnet18: 224 pixels, batches of 8."""
    methods: tuple[str, ...] = ("autolora", "vanilla", "twins")
    """Methods by their registered names."""
    precision: Precision = "auto"
    """Format of attack network and training step; auto: bfloat16 where the hardware computes it natively."""
    batch: int | None = None
    """Images of a batch, at least 2; None: the networks' own."""


def measure(flags: Flags) -> dict[str, Any]:
    """Returns everything that is written, in bytes."""
    precision: Precision = cpu_precision() if flags.precision == "auto" else flags.precision
    networks: dict[str, Any] = {}
    for network in flags.networks:
        batch = flags.batch or _BATCHES[network]
        steps = {}
        for method in flags.methods:
            with tempfile.TemporaryDirectory() as folder:
                config = config_of(network, method, batch, precision, folder)
                steps[method] = in_fresh_process(step_memory, config, environment=_MALLOC)
        networks[network] = {"batch": batch, "precision": precision, "steps": steps}
    return {"networks": networks}


def show(result: dict[str, Any]) -> None:
    """Prints the tables."""
    for network, found in result["networks"].items():
        setting = f"{SIDES[network]} pixels, batch {found['batch']}, {found['precision']}"
        rows: dict[str, dict[str, float]] = {}
        for method, step in found["steps"].items():
            total = sum(step["theory"].values())
            bytes_of = {**step["theory"], "theory": total, "measured": step["measured"]}
            rows[method] = {name: value / _MIB for name, value in bytes_of.items()} | {
                "ratio": step["measured"] / total
            }
        print(f"{network}, {setting}\n{table('MiB', rows)}\n")


def step_memory(config: ExperimentConfig) -> dict[str, Any]:
    """Returns "measured" and "theory" of a step; call it in a fresh process."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    batch, channels, folder = config.optimization.global_batch_size, len(config.model.mean), str(config.data.path)
    write_drawn_task(folder, 4 * batch, lambda number: noise_png(number, SIDES[config.model.backbone], channels))
    data = TaskData(config, folder, device)
    rows = data.split.train[:batch]
    x, y = data.training_batch(rows, 1, "augmentation")
    # Not counted: libraries load their code and compile their kernels in the first step of a process.
    TrainingSteps(config, data, None, device).take(rows, x, y)
    before = resident()
    steps = TrainingSteps(config, data, None, device)
    steps.take(rows, x, y)  # gradients and momentum exist from the second step on
    measured = peak(lambda: steps.take(rows, x, y)) - before + _bytes([x])
    return {"measured": measured, "theory": theory(steps, x, y)}


def theory(steps: TrainingSteps, x: Tensor, y: Tensor) -> dict[str, int]:
    """Returns the bytes that must be in memory between the forward and the backward of a step, by purpose."""
    trainer = steps.trainer
    further = method_of(trainer.config).step_arguments(len(x), range(len(x)))

    def forward() -> object:
        with trainer.step.autocast():
            return trainer.step.objective(x, x.clone(), y, denominator=float(len(x)), **further).total

    parameters, buffers = list(trainer.objective.parameters()), list(trainer.objective.buffers())
    return {
        "parameters": _bytes([*parameters, *buffers]),
        "gradients": _bytes(parameters),  # held from one backward to the next
        "momentum": _bytes(parameters),
        "attack_network": _bytes(_tensors_of(trainer.attacks.network)),
        "best": _bytes(trainer.state().best.values()),  # the best state so far, which a halving restores
        "images": 3 * _bytes([x]),  # x, the noise, the adversarial images
        "kept": kept_bytes(forward, [*parameters, *buffers]),
    }


def resident() -> int:
    """Returns the bytes in use after the allocator gave back what it can."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def peak(run: Callable[[], None]) -> int:
    """Returns the most bytes in use while `run` runs."""
    resident()
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return _status("VmHWM")


def config_of(network: str, method: str, batch: int, precision: Precision, folder: str) -> ExperimentConfig:
    """Returns the experiment on a drawn task in `folder`."""
    channels = _CHANNELS.get(network, 3)
    return ExperimentConfig(
        data=DataConfig(task="drawn", path=folder, augmentation="none", val_images_min=0),
        model=ModelConfig(backbone=network, mean=(0.5,) * channels, std=(0.25,) * channels),
        method=MethodConfig(name=method),
        train_attack=AttackConfig(num_steps=_ATTACK_STEPS),
        optimization=OptimizationConfig(global_batch_size=batch),
        compute=ComputeConfig(attack_precision=precision, train_precision=precision),
        scaling=ScalingConfig(num_workers=1),
    )


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _tensors_of(network: nn.Module) -> list[Tensor]:
    """Returns parameters, buffers, and the packed weights that layers hold as plain attributes."""
    plain = [value for layer in network.modules() for value in vars(layer).values() if isinstance(value, Tensor)]
    return [*network.parameters(), *network.buffers(), *plain]


if __name__ == "__main__":
    run_benchmark(Flags, __doc__, measure, show)
