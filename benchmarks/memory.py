"""Measures the peak memory of a training step against what must be in memory at once.

    python benchmarks/memory.py                      # a minute on one core
    python benchmarks/memory.py --device cuda        # PyTorch's own count on a GPU

The theory adds up parameters, gradients, momentum, the attack network, the best state so far, the images, and what
autograd keeps for the backward (counted while a forward runs, each storage once). Every step is measured in a fresh
process of one thread: on a CPU the highest resident memory less what was resident before. Prints MiB, writes bytes.
Larger batches are computed from the theory, not measured.
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
from distributed_autolora.hardware import cpu_precision, gpu_precision
from distributed_autolora.orchestration.cluster_check.memory_estimate import kept_bytes
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
    computed_batch: int = 128
    """Batch of ResNet-18 to compute the memory for from the theory."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to measure."""


def measure(flags: Flags) -> dict[str, Any]:
    """Returns everything that is written, in bytes."""
    choose = gpu_precision if flags.device == "cuda" else cpu_precision
    precision: Precision = choose() if flags.precision == "auto" else flags.precision
    networks: dict[str, Any] = {}
    for network in flags.networks:
        batch = flags.batch or _BATCHES[network]
        steps = {}
        for method in flags.methods:
            with tempfile.TemporaryDirectory() as folder:
                config = config_of(network, method, batch, precision, folder)
                steps[method] = in_fresh_process(step_memory, config, flags.device, environment=_MALLOC)
        networks[network] = {"batch": batch, "precision": precision, "steps": steps}
    computed = {
        method: at_batch(step["theory"], step["theory_at_half"], networks["resnet18"]["batch"], flags.computed_batch)
        for method, step in networks.get("resnet18", {"steps": {}})["steps"].items()
    }
    return {"device": flags.device, "networks": networks, "computed_batch": flags.computed_batch, "computed": computed}


def show(result: dict[str, Any]) -> None:
    """Prints the tables."""
    for network, found in result["networks"].items():
        setting = f"{SIDES[network]} pixels, batch {found['batch']}, {found['precision']}, {result['device']}"
        rows = {}
        for method, step in found["steps"].items():
            total = sum(step["theory"].values())
            measured = {"measured": step["measured"] / _MIB, "ratio": step["measured"] / total}
            rows[method] = {**_mebibytes(step["theory"]), **measured}
        print(f"{network}, {setting}\n{table('MiB', rows)}\n")
    if result["computed"]:
        print(f"resnet18, 224 pixels, batch {result['computed_batch']}: computed from the theory, not measured")
        print(table("MiB", {method: _mebibytes(theory) for method, theory in result["computed"].items()}))
    if result["computed"] and result["device"] == "cpu":
        print("With a CPU's kernels: a GPU packs no weights of the attack network, but its kernels need workspaces.")


def step_memory(config: ExperimentConfig, device_name: str) -> dict[str, Any]:
    """Returns "measured", "theory" and "theory_at_half" (of the batch) of a step; call it in a fresh process."""
    torch.set_num_threads(1)
    device = torch.device(device_name)
    batch, channels, folder = config.optimization.global_batch_size, len(config.model.mean), str(config.data.path)
    write_drawn_task(folder, 4 * batch, lambda number: noise_png(number, SIDES[config.model.backbone], channels))
    data = TaskData(config, folder, device)
    rows = data.split.train[:batch]
    x, y = data.training_batch(rows, 1, "augmentation")
    # Not counted: libraries load their code and compile their kernels in the first step of a process.
    TrainingSteps(config, data, None, device).take(rows, x, y)
    before = resident(device)
    steps = TrainingSteps(config, data, None, device)
    steps.take(rows, x, y)  # gradients and momentum exist from the second step on
    measured = peak(device, lambda: steps.take(rows, x, y)) - before + _bytes([x])
    half = batch // 2
    return {"measured": measured, "theory": theory(steps, x, y), "theory_at_half": theory(steps, x[:half], y[:half])}


def theory(steps: TrainingSteps, x: Tensor, y: Tensor) -> dict[str, int]:
    """Returns the bytes that must be in memory between the forward and the backward of a step, by purpose."""
    trainer = steps.trainer
    further = method_of(trainer.config).step_arguments(len(x), 0, 1)

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


def at_batch(theory: dict[str, int], at_half: dict[str, int], batch: int, wanted: int) -> dict[str, int]:
    """Returns the theory of `wanted` images, on the line through `batch` images and half of them."""
    share = (wanted - batch) / (batch - batch // 2)
    return {name: round(own + share * (own - at_half[name])) for name, own in theory.items()}


def resident(device: torch.device) -> int:
    """Returns the bytes in use: PyTorch's count on a GPU, else Linux's after the allocator gave back what it can."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def peak(device: torch.device, run: Callable[[], None]) -> int:
    """Returns the most bytes in use while `run` runs."""
    resident(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
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


def _mebibytes(theory: dict[str, int]) -> dict[str, float]:
    return {name: value / _MIB for name, value in {**theory, "theory": sum(theory.values())}.items()}


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
