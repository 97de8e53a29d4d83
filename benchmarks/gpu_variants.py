"""The variants of AutoLoRa's training step that `gpu.py` measures, and what they work on."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import cast

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.reference import plain_pgd
from distributed_autolora.core.attacks import pgd
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.core.fast_attack.cuda_graphs import Attack, Capture, CudaGraphAttack, CudaGraphs, Run
from distributed_autolora.core.fast_attack.tf32 import allow_tf32
from distributed_autolora.core.lora import LowRankBranch
from distributed_autolora.core.objectives import AutoLoRa
from distributed_autolora.core.schedules import LossWeights
from distributed_autolora.core.threat_model import ThreatModel

PLAIN, EAGER, FOLDED_TF32 = "plain .backward(), float32", "autograd.grad, float32", "folded, TF32"
FOLDED, GRAPH = "folded, bfloat16", "folded, bfloat16, CUDA graph"
COMPILED, COMPILED_GRAPH = "folded, bfloat16, compiled", "folded, bfloat16, compiled, CUDA graph"
_CLASSES = 10
_STEP = 2 / 255


class Images01(nn.Module):
    """A torchvision network that takes images in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: str) -> None:
        super().__init__()
        self.network = torchvision.models.get_model(network, weights=None, num_classes=_CLASSES)
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [n, classes] logits of [n, 3, H, W] images."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


@dataclass
class Work:
    """One network with its objective and optimiser, and one batch."""

    network: str
    device: torch.device
    side: int
    batch: int
    num_steps: int
    threat_model: ThreatModel = field(default_factory=ThreatModel)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        shape = (self.batch, 3, self.side, self.side)
        self.x, self.noise = torch.rand(shape, device=self.device), torch.rand(shape, device=self.device)
        self.y = torch.randint(_CLASSES, (self.batch,), device=self.device)
        plain = Images01(self.network).to(self.device)
        _normalise(plain, self.x)
        self.plain = Trained(plain, fused=False)
        self.fast = Trained(copy.deepcopy(plain).to(memory_format=torch.channels_last), self.device.type == "cuda")

    @cached_property
    def capture(self) -> Capture:
        """Records CUDA graphs in one pool of memory."""
        return CudaGraphs(self.device)

    def search(self, model: nn.Module, x: Tensor, y: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Returns PGD's last iterate."""
        return pgd(model, x, y, threat_model=self.threat_model, num_steps=self.num_steps, step_size=_STEP, noise=noise)

    def plain_search(self, model: nn.Module, x: Tensor, y: Tensor, *, noise: Tensor) -> Tensor:
        """Returns the same as the algorithm reads: every step also computes the gradients of the weights."""
        model.eval()
        x_adv = plain_pgd(
            model,
            x,
            y,
            epsilon=self.threat_model.epsilon,
            step_size=_STEP,
            num_steps=self.num_steps,
            noise=noise,
        )
        model.train()
        return x_adv


class Trained:
    """A model in training by AutoLoRa.

    Args:
        model: the classifier.
        fused: update all parameters in a few kernels.
    """

    def __init__(self, model: nn.Module, fused: bool) -> None:
        self.model = model
        branch = LowRankBranch(model, head="fc").to(next(model.parameters()).device)
        self.objective = AutoLoRa(model, branch, weights=LossWeights(0.5, 3.0))
        self.wrapped: nn.Module = self.objective
        # The rate is zero, so that every round and every variant works on the same weights.
        parameters = list(self.objective.parameters())
        self.optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9, weight_decay=1e-4, fused=fused)

    def step(self, x: Tensor, x_adv: Tensor, y: Tensor, *, bfloat16: bool = False) -> None:
        """Takes one step on both branches."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            terms = self.wrapped(x, x_adv, y)
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        self.optimizer.step()


@dataclass(frozen=True)
class Variant:
    """One way to take a whole step, and its attack alone."""

    attack: Callable[[], Tensor]
    whole: Callable[[], None]


def training_steps(work: Work) -> dict[str, Callable[[], None]]:
    """Returns the training step alone, by the number format of its products."""

    def step(bfloat16: bool, tf32: bool) -> None:
        with allow_tf32(tf32):
            work.fast.step(work.x, work.x, work.y, bfloat16=bfloat16)

    return {
        "float32": partial(step, bfloat16=False, tf32=False),
        "TF32": partial(step, bfloat16=False, tf32=True),
        "bfloat16 autocast": partial(step, bfloat16=True, tf32=False),
    }


def builders(work: Work, *, compile_too: bool) -> dict[str, Callable[[], Variant]]:
    """Returns what makes each variant that this device can run, the reference first."""
    on_gpu = work.device.type == "cuda"
    found: dict[str, Callable[[], Variant]] = {
        PLAIN: lambda: _variant(work, work.plain, work.plain.model, work.plain_search),
        EAGER: lambda: _variant(work, work.fast, work.fast.model, work.search),
        FOLDED_TF32: lambda: _folded(work, torch.float32, tf32=True),
        FOLDED: lambda: _folded(work, torch.bfloat16),
    }
    if on_gpu:
        found[GRAPH] = lambda: _folded(work, torch.bfloat16, capture=work.capture)
    if compile_too:
        found[COMPILED] = lambda: _folded(work, torch.bfloat16, compiled=True)
    if compile_too and on_gpu:
        found[COMPILED_GRAPH] = lambda: _folded(work, torch.bfloat16, compiled=True, capture=work.capture)
    return found


def _folded(
    work: Work, precision: torch.dtype, *, tf32: bool = False, compiled: bool = False, capture: Capture | None = None
) -> Variant:
    network = AttackNetwork(work.fast.model, precision)
    attacked: nn.Module = network
    if compiled:
        attacked = cast(nn.Module, torch.compile(network, dynamic=False))
    search: Attack = work.search if capture is None else CudaGraphAttack(work.search, attacked, capture)
    return _variant(
        work, work.fast, attacked, search, refresh=network.refresh, bfloat16=precision == torch.bfloat16, tf32=tf32
    )


def _variant(
    work: Work,
    trained: Trained,
    attacked: nn.Module,
    search: Attack,
    *,
    refresh: Callable[[], None] = lambda: None,
    bfloat16: bool = False,
    tf32: bool = False,
) -> Variant:
    def attack() -> Tensor:
        with allow_tf32(tf32):
            refresh()
            return search(attacked, work.x, work.y, noise=work.noise)

    def whole() -> None:
        x_adv = attack()
        with allow_tf32(tf32):
            trained.step(work.x, x_adv, work.y, bfloat16=bfloat16)

    return Variant(attack, whole)


def first_run(build: Callable[[], Variant], device: torch.device) -> tuple[Variant | None, dict[str, int | str | None]]:
    """Builds a variant and runs it once.

    Returns:
        The variant, or None when it fails or is not what its name says; and "failed" (why, or None),
        "peak_allocated_bytes" of everything on the device while it ran, and "reserved_bytes": what it took from the
        device for itself, the memory of CUDA graphs included, which the first figure does not see.
    """
    gc.collect()
    reserved = _reserved(device, empty=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            variant = build()
            variant.whole()
            variant.whole()
        except RuntimeError as error:
            return None, {"failed": str(error).partition("\n")[0]}
    eagerly = [str(one.message) for one in told if "Attacks run eagerly" in str(one.message)]
    if eagerly:
        return None, {"failed": eagerly[0]}
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    grown = None if reserved is None else (_reserved(device) or 0) - reserved
    return variant, {"failed": None, "peak_allocated_bytes": peak, "reserved_bytes": grown}


def run_again(run: Run) -> Run:
    """What stands in for a CUDA graph on a CPU: the attack runs again on the same memory."""
    return run


def _reserved(device: torch.device, *, empty: bool = False) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    if empty:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_reserved(device)


@torch.no_grad()
def _normalise(model: nn.Module, x: Tensor) -> None:
    """Gives every batch norm the statistics of this batch, as training would: fresh ones do not normalise."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model(x)
    for norm in norms:
        norm.momentum = 0.1
