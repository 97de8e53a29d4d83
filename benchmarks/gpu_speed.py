"""Speed and memory of the package's own training steps by variant, for `gpu_check.py`."""

import gc
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.drawn_task import noise_png, write_drawn_task
from benchmarks.memory import config_of
from benchmarks.reference import plain_pgd
from benchmarks.timing import interleaved, ratio
from benchmarks.trained import TrainingSteps
from distributed_autolora.config import ExperimentConfig, Precision
from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.fast_attack.tf32 import allow_tf32
from distributed_autolora.training.attacks import FastAttack, build_attack
from distributed_autolora.training.memory_estimate import estimate
from distributed_autolora.training.task_data import TaskData

PLAIN, EAGER, CAPTURED = "plain PyTorch, float32", "eager, bfloat16", "captured, bfloat16"
Formats = tuple[Precision, Precision, str]
VARIANTS: dict[str, Formats] = {
    PLAIN: ("float32", "float32", "autolora"),
    "eager, TF32": ("float32", "float32", "autolora"),
    EAGER: ("bfloat16", "bfloat16", "autolora"),
    "captured, TF32": ("float32", "float32", "autolora"),
    CAPTURED: ("bfloat16", "bfloat16", "autolora"),
    "recipe, autolora": ("bfloat16", "float32", "autolora"),
    "recipe, vanilla": ("bfloat16", "float32", "vanilla"),
    "recipe, twins": ("bfloat16", "float32", "twins"),
}
"""Formats of attack and training step, and the method; recipe: those of the paper's recipes on such a GPU."""
COMPILED = dict.fromkeys((CAPTURED, "captured and compiled, bfloat16", "compiled, bfloat16"), VARIANTS[CAPTURED])


@dataclass(frozen=True)
class Work:
    """One network and the size of its steps."""

    network: str
    device: torch.device
    side: int
    batch: int
    steps: int
    folder: str

    def config(self, attack: Precision, train: Precision, method: str) -> ExperimentConfig:
        """Returns the experiment on a drawn task."""
        config = config_of(self.network, method, self.batch, train, self.folder)
        return replace(
            config,
            train_attack=replace(config.train_attack, num_steps=self.steps),
            optimization=replace(config.optimization, lr=1e-12),  # every round works on the same weights
            compute=replace(config.compute, attack_precision=attack),
            scaling=replace(config.scaling, use_gpu=self.device.type == "cuda"),
        )

    def data(self) -> TaskData:
        """Returns the task, drawn first where it is missing."""
        if not Path(self.folder, "train.parquet").exists():
            count, channels = max(2 * self.batch, 280), len(self.config(*VARIANTS[PLAIN]).model.mean)
            write_drawn_task(self.folder, count, lambda number: noise_png(number, self.side, channels))
        return TaskData(self.config(*VARIANTS[PLAIN]), self.folder, self.device)


class Steps:
    """One variant's trainer and batch."""

    def __init__(self, name: str, work: Work, data: TaskData) -> None:
        attack, train, method = (VARIANTS | COMPILED)[name]
        self.config, self._data = work.config(attack, train, method), data
        self.steps = TrainingSteps(self.config, data, None, work.device)
        trainer = self.steps.trainer
        if "compiled" in name:
            network = trainer.attacks.network
            network.forward = torch.compile(network.forward, dynamic=False)  # type: ignore[method-assign]
        if not name.startswith(("captured", "recipe")):
            search = self._plain if name == PLAIN else build_attack(self.config, self.config.train_attack)
            trainer.attacks = replace(trainer.attacks, train=FastAttack(trainer.attacks.network, search))
        trainer.step.attack = trainer.attacks.train
        self.rows = data.split.train[: work.batch]
        self.x, self.y = data.plain_batch(self.rows)
        self._noise = torch.rand(self.x.shape, device=work.device)

    def _plain(self, network: nn.Module, x: Tensor, y: Tensor, *, noise: Tensor) -> Tensor:
        attack, epsilon, model = self.config.train_attack, self.config.threat_model.epsilon, self.steps.trainer.backbone
        size = {"epsilon": epsilon, "step_size": attack.step_size, "num_steps": attack.num_steps}
        with allow_tf32(False), eval_mode(model):
            return plain_pgd(model, x, y, noise=noise, **size)  # type: ignore[arg-type]

    def attack(self) -> Tensor:
        """Returns adversarial images."""
        return self.steps.trainer.attacks.train(self.steps.trainer.backbone, self.x, self.y, noise=self._noise)

    def whole(self) -> None:
        """Takes a step with its attack."""
        self.steps.take(self.rows, self.x, self.y)

    def evaluate(self) -> None:
        """Attacks an evaluation batch, as the epoch's validation does."""
        rows = self._data.split.train[: self.config.evaluation.batch_size_per_worker]
        trainer = self.steps.trainer
        trainer.attacks.evaluation(trainer.deployed, *self._data.plain_batch(rows))


def measured(names: dict[str, Formats], work: Work, rounds: int, peak: float | None) -> dict[str, Any]:
    """Times variants in turn, after each ran twice; `peak`: bfloat16 operations a second of the device, if known."""
    data, variants, failed = work.data(), {}, {}
    for name in names:
        try:
            variants[name] = first_run(name, work, data)
        except RuntimeError as error:
            failed[name] = str(error).partition("\n")[0]
    calls: dict[str, Callable[[], object]] = {f"attack, {name}": one.attack for name, one in variants.items()}
    calls |= {f"step, {name}": one.whole for name, one in variants.items()}
    seconds = interleaved(calls, rounds, torch.cuda.synchronize if work.device.type == "cuda" else lambda: None)
    base = PLAIN if PLAIN in variants else next(iter(variants))
    with Flops() as counter:
        if EAGER in variants:
            variants[EAGER].whole()
    found = {}
    for name in variants:
        step = statistics.median(seconds[f"step, {name}"])
        found[name] = {
            "attack_ms": 1000 * statistics.median(seconds[f"attack, {name}"]),
            "step_ms": 1000 * step,
            "images_per_second": work.batch / step,
            "attack_speed": 1 / ratio(seconds, f"attack, {name}", f"attack, {base}"),
            "step_speed": 1 / ratio(seconds, f"step, {name}", f"step, {base}"),
            "share_of_peak": counter.total / step / peak if peak and counter.total else None,
        }
    return {"speeds_over": base, "variants": found, "failed": failed}


def first_run(name: str, work: Work, data: TaskData) -> Steps:
    """Builds a variant and runs it twice; an attack that falls back to the eager one raises a RuntimeError."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Attacks run eagerly", RuntimeWarning)
        try:
            steps = Steps(name, work, data)
            steps.whole()
            steps.whole()
        except RuntimeWarning as fallback:
            raise RuntimeError(str(fallback)) from None
    return steps


def memory(work: Work) -> tuple[int, int]:
    """Returns the bytes that steps and evaluations of the captured variant reserve, and those that are estimated."""
    data, config = work.data(), work.config(*VARIANTS[CAPTURED])
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(work.device)
    steps = first_run(CAPTURED, work, data)
    steps.evaluate()
    torch.cuda.empty_cache()  # what the capture needed once
    steps.evaluate()
    steps.whole()
    expected = estimate(config, (work.side, work.side)).on_device(use_gpu=True)
    return torch.cuda.memory_reserved(work.device) - before, expected


class Flops(TorchDispatchMode):
    """Counts floating-point operations. PyTorch's own counter follows modules and refuses autograd.grad."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.total += 0 if count is None else count(*args, **(kwargs or {}), out_val=out)
        return out
