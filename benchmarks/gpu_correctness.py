"""What a GPU must compute as a CPU does: attacks, steps, stopped runs, groups of workers; for `gpu_check.py`."""

import contextlib
import copy
import json
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from benchmarks.timing import machine
from distributed_autolora.config import ExperimentConfig, Precision
from distributed_autolora.config.recipes import PAPER_METHODS, demo
from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.fast_attack.cuda_graphs import CudaGraphs, agreement
from distributed_autolora.core.fast_attack.tf32 import allow_tf32, tf32_off
from distributed_autolora.data.catalog import embedded_backbone, embedded_folder
from distributed_autolora.training.attacks import build_attacks
from distributed_autolora.training.checkpoint import TrainingState
from distributed_autolora.training.distributed.collectives import wrapped_in_ddp
from distributed_autolora.training.epoch import LossSums
from distributed_autolora.training.evaluation import fit_linear_head
from distributed_autolora.training.loop import fit
from distributed_autolora.training.methods.registry import method_of
from distributed_autolora.training.task_data import TaskData
from distributed_autolora.training.trainer import Trainer

FORMATS: dict[str, tuple[torch.dtype, Precision, float]] = {
    "float64": (torch.float64, "float32", 1e-9),
    "TF32": (torch.float32, "float32", 2.0**-5),
    "bfloat16": (torch.float32, "bfloat16", 2.0**-2),
}
"""Tensors, products, and how far gradients may be from those in float64: about half of the format's digits agree."""


@dataclass
class Check:
    """The settings, and the rows and figures so far."""

    device: torch.device
    size: Namespace
    output: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    speed: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def row(self, check: str, passed: bool | None, figure: str, **values: Any) -> None:
        """Prints one line and writes the file; None: a figure without a limit."""
        seconds, self.began = round(time.perf_counter() - self.began, 1), time.perf_counter()
        status = {None: "    ", True: "PASS", False: "FAIL"}[passed]
        print(f"{status}  {check}: {figure}", flush=True)
        row = {"check": check, "status": status.strip() or "FIGURE", "figure": figure, "seconds": seconds}
        self.rows.append({**row, **values})
        written = {"machine": machine(), "device": str(self.device), "rows": self.rows, "speed": self.speed}
        self.output.write_text(json.dumps(written, indent=2) + "\n")

    def trainer(self, dtype: torch.dtype = torch.float32, device: torch.device | None = None, **own: Any) -> Trainer:
        """Returns a trainer on the shipped task in train mode; by default as a run on this hardware has it."""
        device, config = device or self.device, self.config(**own)
        data = TaskData(config, embedded_folder(), device, dtype)
        trainer = Trainer(config, data, str(embedded_backbone()), device, dtype)
        trainer.objective.train()
        trainer.set_loss_weights(0.5)
        return trainer

    def config(
        self, method: str = "autolora", attack: Precision = "bfloat16", train: Precision = "bfloat16"
    ) -> ExperimentConfig:
        config = demo()
        return replace(
            config,
            data=replace(config.data, train_images=self.size.images),
            train_attack=replace(config.train_attack, num_steps=self.size.steps),
            method=replace(config.method, name=method, soft_labels="joint"),
            optimization=replace(config.optimization, epochs=1, global_batch_size=max(2, self.size.images // 15)),
            compute=replace(config.compute, attack_precision=attack, train_precision=train),
            evaluation=replace(config.evaluation, test_split=False, linear_head=False, masking_every=0),
            scaling=replace(config.scaling, check_finite_every=1, checkpoint_every_s=0.0),
        )


def captured_attack(check: Check, where: str = "", formats: Sequence[Precision] = ("bfloat16", "float32")) -> None:
    """Captured against eager attack, and strength in bfloat16 against float32."""
    raised = []
    for precision in formats:
        trainer = check.trainer(attack=precision)
        data = trainer.data
        fit_linear_head(trainer.backbone, data.plain_batches, data.split.train, 250)
        (x, y), model = data.plain_batch(data.split.val), trainer.backbone
        noise = torch.rand(x.shape, device=check.device, generator=torch.Generator(check.device).manual_seed(0))
        capture = CudaGraphs(check.device) if check.device.type == "cuda" else lambda run: run
        eager, captured = (build_attacks(trainer.config, model, model, how).train for how in (None, capture))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            captured(model, x, y, noise=noise)
        first, again = (eager(model, x.flip(0), y.flip(0), noise=noise) for _ in range(2))
        found = agreement(first, again, captured(model, x.flip(0), y.flip(0), noise=noise))
        figure = f"{found.replay_distance:.2g} a pixel from the eager one, which repeats to {found.eager_distance:.2g}"
        reason = "; ".join(str(one.message) for one in told if "eagerly" in str(one.message))
        check.row(f"captured attack, {precision}{where}", not reason and found.holds, reason or figure)
        with eval_mode(model), torch.no_grad(), allow_tf32(False):
            natural, attacked = (float(F.cross_entropy(model(images), y)) for images in (x, first.flip(0)))
        raised.append(attacked - natural)
    if len(formats) > 1:
        figure = f"it raises the loss by {raised[0]:.4f}, the float32 attack by {raised[1]:.4f}"
        check.row("strength of the bfloat16 attack", raised[0] > 0.9 * raised[1], figure)


def gradients(check: Check) -> None:
    """Loss and gradients of a step against the CPU in float64."""
    for method in PAPER_METHODS:
        reference = check.trainer(torch.float64, torch.device("cpu"), method=method, train="float32")
        x, y = reference.data.plain_batch(reference.data.split.train[:24])
        x_adv = (x + 0.1 * x.flip(0) - 0.05).clamp(0, 1)
        loss, expected = _backward(reference, x, x_adv, y)
        for name, (dtype, precision, limit) in FORMATS.items():
            images = [one.to(check.device, dtype) for one in (x, x_adv)]
            trainer = check.trainer(dtype, method=method, train=precision)
            trainer.objective.load_state_dict(reference.objective.state_dict())
            found, gradient = _backward(trainer, images[0], images[1], y.to(check.device))
            off, angle = abs(found / loss - 1), float((gradient - expected).norm() / expected.norm())
            figure = f"loss off by {off:.2g}, gradients by {angle:.2g} (limit {limit:.2g})"
            check.row(f"step of {method}, {name}", max(off, angle) < limit, figure)


def _backward(trainer: Trainer, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[float, Tensor]:
    further = method_of(trainer.config).step_arguments(len(x), range(len(x)))
    with allow_tf32(trainer.device.type == "cuda"), trainer.step.autocast():
        terms = trainer.objective(x, x_adv, y, denominator=float(len(x)), **further)
    terms.total.backward()
    found = [p.grad.flatten().double().cpu() for p in trainer.objective.parameters() if p.grad is not None]
    return float(terms.total.detach()), torch.cat(found)


@dataclass
class _Newest:
    """Keeps the newest checkpoint; dies after the one at step `stop`."""

    stop: int = -1
    state: TrainingState | None = None

    def latest(self) -> TrainingState | None:
        return self.state

    def report(self, state: TrainingState) -> None:
        self.state = copy.deepcopy(state)
        if state.step == self.stop:
            raise KeyboardInterrupt

    def is_machine_leaving(self) -> bool:
        return False


def identity(check: Check) -> None:
    """A run repeats itself, and a stopped one ends as it does: ten steps and more."""
    config = check.config()

    def run(kept: _Newest) -> dict[str, Tensor]:
        data = TaskData(config, embedded_folder(), check.device)
        return fit(config, data, str(embedded_backbone()), kept, device=check.device).weights

    first, second, stopped = run(_Newest()), run(_Newest()), _Newest()
    for stopped.stop in (3, 7):
        with contextlib.suppress(KeyboardInterrupt):
            run(stopped)
    others = {"a run twice": second, "a run stopped after steps 3 and 7": run(stopped)}
    for name, other in others.items():
        far = max(float((value.double() - other[key].double()).abs().max()) for key, value in first.items())
        check.row(name, far == 0, f"weights differ by {far:.3g} (0: bit for bit)")


def processes(check: Check) -> None:
    """Two processes on one device compute the float64 trajectory of one."""
    with tempfile.TemporaryDirectory() as home:
        _trajectory(0, home, check, workers=1)
        other = spawn(_trajectory, (home, check), join=False)
        _trajectory(1, home, check)
        other.join()
        one, two = (torch.load(Path(home, f"{workers}.pt")) for workers in (1, 2))
    far = max(float((value.double() - two[key].double()).abs().max()) for key, value in one.items())
    check.row("two processes (gloo, float64)", far < 1e-9, f"weights differ by {far:.2g} after three steps")


def _trajectory(rank: int, home: str, check: Check, workers: int = 2) -> None:
    tf32_off()
    torch.set_num_threads(1)
    with group_of("gloo", home, rank, workers):
        trainer = check.trainer(torch.float64, attack="float32", train="float32")
        trainer.progress.sums = LossSums(1, "the check")
        for start, size in ((0, 16), (16, 9), (25, 3)):
            batch = trainer.data.split.train[start : start + size]
            x, y = trainer.data.training_batch(batch[rank::workers], 1, "augmentation")
            trainer.train_step(batch, x, y)
        if rank == 0:
            weights = {name: value.cpu() for name, value in trainer.objective.state_dict().items()}
            torch.save(weights, Path(home, f"{workers}.pt"))


@contextlib.contextmanager
def group_of(backend: str, home: str, rank: int = 0, workers: int = 1) -> Iterator[None]:
    """Runs the block in a process group whose store is in the folder `home`."""
    where, patience = f"file://{home}/{backend}{workers}", timedelta(seconds=120)
    dist.init_process_group(backend, where, patience, rank=rank, world_size=workers)
    try:
        yield
    finally:
        dist.destroy_process_group()


def process_group(check: Check) -> None:
    """A wrapped step and a captured attack beside a process group, whose own thread watches the device."""
    backend = "nccl" if check.device.type == "cuda" else "gloo"
    bare, inside = (check.trainer(train="float32") for _ in range(2))
    x, y = bare.data.plain_batch(bare.data.split.train[:24])
    inside.objective.load_state_dict(bare.objective.state_dict())
    _, expected = _backward(bare, x, x, y)
    with tempfile.TemporaryDirectory() as home, group_of(backend, home):
        inside.objective = wrapped_in_ddp(inside.objective, check.device)
        _, gradient = _backward(inside, x, x, y)
        captured_attack(check, f", beside a group ({backend})", ["bfloat16"])
    far = float((gradient - expected).norm() / expected.norm())
    check.row(f"DistributedDataParallel ({backend}, one process)", far < 1e-3, f"gradients differ by {far:.2g}")
