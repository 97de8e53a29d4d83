"""The variants of AutoLoRa's training step that `gpu.py` measures, and their network and batch."""

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
        """Returns the same by plain PyTorch: every step also computes the gradients of the weights."""
        model.eval()
        size = {"step_size": _STEP, "num_steps": self.num_steps}
        x_adv = plain_pgd(model, x, y, epsilon=self.threat_model.epsilon, noise=noise, **size)  # type: ignore[arg-type]
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

    def gradients(self) -> list[Tensor]:
        """Returns the gradients of the last step."""
        return [parameter.grad for parameter in self.objective.parameters() if parameter.grad is not None]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to take a step with its attack: `search` attacks `attacked`, which `refresh` brings up to date."""

    work: Work
    trained: Trained
    attacked: nn.Module
    search: Attack
    refresh: Callable[[], None] = lambda: None
    bfloat16: bool = False
    tf32: bool = False

    def attack(self) -> Tensor:
        """Returns the adversarial images."""
        with allow_tf32(self.tf32):
            self.refresh()
            return self.search(self.attacked, self.work.x, self.work.y, noise=self.work.noise)

    def whole(self) -> None:
        """Takes the step on them."""
        x_adv = self.attack()
        with allow_tf32(self.tf32):
            self.trained.step(self.work.x, x_adv, self.work.y, bfloat16=self.bfloat16)


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
    """Returns a builder of each variant that this device can run, the reference first."""
    plain, fast = work.plain, work.fast
    found: dict[str, Callable[[], Variant]] = {
        PLAIN: lambda: Variant(work=work, trained=plain, attacked=plain.model, search=work.plain_search),
        EAGER: lambda: Variant(work=work, trained=fast, attacked=fast.model, search=work.search),
        FOLDED_TF32: lambda: _folded(work, torch.float32),
        FOLDED: lambda: _folded(work, torch.bfloat16),
        GRAPH: lambda: _folded(work, torch.bfloat16, capture=work.capture),
        COMPILED: lambda: _folded(work, torch.bfloat16, compiled=True),
        COMPILED_GRAPH: lambda: _folded(work, torch.bfloat16, compiled=True, capture=work.capture),
    }
    left_out = {GRAPH, COMPILED_GRAPH} if work.device.type != "cuda" else set()
    left_out |= set() if compile_too else {COMPILED, COMPILED_GRAPH}
    return {name: build for name, build in found.items() if name not in left_out}


def _folded(work: Work, precision: torch.dtype, *, compiled: bool = False, capture: Capture | None = None) -> Variant:
    network = AttackNetwork(work.fast.model, precision)
    attacked = cast(nn.Module, torch.compile(network, dynamic=False)) if compiled else network
    return Variant(
        work=work,
        trained=work.fast,
        attacked=attacked,
        search=work.search if capture is None else CudaGraphAttack(work.search, attacked, capture),
        refresh=network.refresh,
        bfloat16=precision == torch.bfloat16,
        tf32=precision == torch.float32,
    )


def first_run(build: Callable[[], Variant], device: torch.device) -> tuple[Variant, dict[str, float | None]]:
    """Builds a variant and runs it twice.

    Returns:
        The variant, and "peak_allocated_GiB" of everything on the device while it ran, and "own_reserved_GiB": what it
        reserved for itself, the pool of CUDA graphs included, which the first number does not count.

    Raises:
        RuntimeError: when it fails, or falls back to another variant.
    """
    gc.collect()
    reserved = _reserved(device, empty=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Attacks run eagerly", RuntimeWarning)
        try:
            variant = build()
            variant.whole()
            variant.whole()
        except RuntimeWarning as fallback:
            raise RuntimeError(str(fallback)) from None
    if device.type != "cuda":
        return variant, {}
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    return variant, {"peak_allocated_GiB": peak, "own_reserved_GiB": _reserved(device) - reserved}


def run_again(run: Run) -> Run:
    """Replaces a CUDA graph on a CPU: the attack runs again on the same memory."""
    return run


def _reserved(device: torch.device, *, empty: bool = False) -> float:
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    if empty:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_reserved(device) / 2**30


@torch.no_grad()
def _normalise(model: nn.Module, x: Tensor) -> None:
    """Sets the statistics of every batch norm from this batch: fresh ones do not normalise."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model(x)
    for norm in norms:
        norm.momentum = 0.1
