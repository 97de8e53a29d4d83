"""A rough estimate of a worker's memory, from the shapes of a step on PyTorch's meta device: nothing is stored."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.data.sampler import worker_share
from distributed_autolora.errors import UserError
from distributed_autolora.hardware import dtype_of
from distributed_autolora.training.methods.registry import build_objective, fresh_classifier, method_of

_CLASSES = 1000
_IMAGES_OF_THE_STEP = 3
"""x, the noise, and the adversarial images."""
_IMAGES_OF_THE_ATTACK = 5
"""x, the noise, the lower and the upper end of the box, and the iterate."""
_SIDE = 224
PROCESS_BYTES = 900 << 20
"""Host memory of a worker before its first tensor: Python, torch, torchvision and Ray (840 MiB were seen, the code that
processes share included)."""
_CUDA_BYTES = 600 << 20
"""GPU memory of a process before its first tensor: its context and the libraries' kernels."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes of one worker."""

    state: int
    """Weights, gradients, momentum, and the best state so far; a moving average of the weights twice."""
    attack_network: int
    step: int
    """Images of a training step, and what autograd keeps for its backward."""
    attack: int
    """The same of an attack on the largest batch that is attacked."""
    gradients: int
    """What the workers sum in every step; part of `state`."""
    checkpoints: int
    """What a run writes: two checkpoints kept and one being written, each with weights, best state, momentum and two
    averages, and the finished model."""

    def on_device(self, *, use_gpu: bool) -> int:
        """Returns the peak.

        On a GPU an attack runs as a CUDA graph, whose memory pool stays allocated beside a training step, and CUDA
        itself needs memory.
        """
        fullest = self.step + self.attack + _CUDA_BYTES if use_gpu else max(self.step, self.attack)
        return self.state + self.attack_network + fullest


def estimate(config: ExperimentConfig, pixels: tuple[int, int] | None) -> Estimate:
    """Estimates the memory of one worker of a config whose precisions are chosen.

    It leaves out workspaces of libraries, fragmentation, the packed weights of a CPU and images decoded ahead, and
    assumes 1,000 classes. A training step in bfloat16 is taken to keep half of what it keeps in float32. `pixels` is
    height and width of the images in pixels; None: unknown, 224 is assumed.

    Raises:
        UserError: for a backbone or method that cannot be built.
    """
    size, shards = config.optimization.global_batch_size, config.optimization.batch_norm_shards
    rows = len(worker_share(torch.arange(size), 0, config.scaling.num_workers, shards))  # no worker has more
    side = config.data.image_size
    shape = (len(config.model.mean), *((side, side) if side is not None else pixels or (_SIDE, _SIDE)))
    classifier = fresh_classifier(config, _CLASSES, None).to("meta")
    with torch.device("meta"):
        objective = build_objective(config, classifier).train()
        x, y = torch.empty(rows, *shape), torch.zeros(rows, dtype=torch.int64)
        further = method_of(config).step_arguments(rows, range(rows))
        held = [*objective.parameters(), *objective.buffers()]
        step = kept_bytes(lambda: objective(x, x.clone(), y, denominator=float(rows), **further).total, held)
        network = AttackNetwork(classifier.eval(), dtype_of(config.compute.attack_precision)).eval()
        attacked = torch.empty(max(rows, config.evaluation.batch_size_per_worker), *shape).requires_grad_()
        labels = torch.zeros(len(attacked), dtype=torch.int64)
        copies = [*network.parameters(), *network.buffers()]
        attack = kept_bytes(lambda: F.cross_entropy(network(attacked), labels), copies)
    weights = sum(parameter.nbytes for parameter in objective.parameters())
    has_average = config.method.weight_average != "none"
    average = sum(tensor.nbytes for tensor in classifier.state_dict().values()) if has_average else 0
    step //= 2 if config.compute.train_precision == "bfloat16" else 1
    return Estimate(
        state=4 * weights + 2 * average,
        attack_network=sum(tensor.nbytes for tensor in copies),
        step=step + _IMAGES_OF_THE_STEP * x.nbytes,
        attack=attack + _IMAGES_OF_THE_ATTACK * attacked.nbytes,
        gradients=weights,
        checkpoints=(3 * 3 + 1) * weights + 3 * 2 * average,
    )


def check_fits(config: ExperimentConfig, size: tuple[int, int], free: int) -> None:
    """Refuses a config whose worker needs more than the `free` bytes of its GPU, whose context is there already.

    Raises:
        UserError: with what lowers the need.
    """
    needed = estimate(config, size).on_device(use_gpu=True) - _CUDA_BYTES
    if needed > free:
        sizes = f"about {needed / 2**30:.1f} GiB on its GPU, and {free / 2**30:.1f} GiB are free"
        raise UserError(f"A worker needs {sizes}. {advice(config)}")


def advice(config: ExperimentConfig) -> str:
    """Returns what lowers the memory that a worker needs."""
    workers, batch = config.scaling.num_workers, config.evaluation.batch_size_per_worker
    share = config.optimization.global_batch_size / workers
    smaller = f"give --evaluation.batch-size-per-worker {max(1, int(share) // 2)}, " if batch > share / 2 else ""
    return (
        f"Give --workers {2 * workers}, which halves each worker's share of a batch, {smaller}or take a GPU with more "
        "memory."
    )


def kept_bytes(forward: Callable[[], object], held: Iterable[Tensor]) -> int:
    """Returns the bytes that autograd keeps for the backward of what `forward` returns, each storage counted once.

    Tensors that are `held` anyway do not count.
    """
    kept: dict[int, Tensor | None] = {_storage(tensor): None for tensor in held}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(_storage(tensor), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values() if tensor is not None)


def _storage(tensor: Tensor) -> int:
    """Storages on the meta device all have address 0."""
    return cast(int, tensor.untyped_storage()._cdata)
