"""An attack recorded once and replayed: on a GPU one launch then takes the place of every kernel of all its steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attack = Callable[..., Tensor]
Run = Callable[[], Tensor]
Capture = Callable[[Run], Run]
"""Takes what is to be recorded, which reads and writes the same memory every time; returns what repeats it."""

_SHAPES = 2
"""Shapes of batches that are recorded: the full one and the last one of an epoch."""
_WARM_UPS = 3
_LARGEST_GAP = 0.05
"""Between a search in bfloat16 and one in float32 it is below 0.045; where the noise is ignored, above 0.055."""
_LEAST_GAIN = 1e-3


@dataclass(frozen=True)
class Agreement:
    """How near two adversarial variants of the same images are, judged by the network that was attacked.

    Attributes:
        differing_pixels: share of the pixel values that are not equal, in [0, 1].
        loss_gap: mean distance of an image's two losses, over the mean distance that the attack moved them.
    """

    differing_pixels: float
    loss_gap: float

    @property
    def holds(self) -> bool:
        """Whether rounding explains what differs.

        Where a gradient is nearly zero, rounding turns its sign and moves the pixel by a whole step, so pixels may
        differ; what the attack was after, the loss of each image, hardly does.
        """
        return self.loss_gap <= _LARGEST_GAP


@torch.no_grad()
def agreement(network: nn.Module, x: Tensor, y: Tensor, expected: Tensor, found: Tensor) -> Agreement:
    """Compares two attacks on the same images.

    Args:
        network: logits of images, in eval mode.
        x: [n, C, H, W] natural images, n at least 1.
        y: [n] labels.
        expected: their adversarial variants by one attack.
        found: by the other.
    """
    before, after, other = (F.cross_entropy(network(images), y, reduction="none") for images in (x, expected, found))
    gain = (after - before).abs().mean().clamp_min(_LEAST_GAIN)
    return Agreement(
        differing_pixels=float((expected != found).float().mean()), loss_gap=float((other - after).abs().mean() / gain)
    )


class CapturedAttack:
    """An attack on one network that is recorded for the first shapes of batches it meets, and replayed from then on.

    The first replay of a shape is compared with the attack itself on the same images. When recording fails, or they
    do not agree, a warning says so and attacks run eagerly from then on. So do batches of further shapes, empty ones,
    and attacks on other networks.

    Args:
        attack: attack(network, x, y, noise=...) -> x_adv; it starts where `noise` says or at the image.
        network: whose storage stays where it is, as an `AttackNetwork`'s does when it is refreshed.
        capture: such as `CudaGraphs`.
    """

    def __init__(self, attack: Attack, network: nn.Module, capture: Capture) -> None:
        self._attack, self._network, self._capture = attack, network, capture
        self._recordings: dict[tuple[object, ...], _Recording] = {}
        self._is_eager = False

    @property
    def is_replaying(self) -> bool:
        """Whether an attack was recorded, and was found to agree."""
        return bool(self._recordings)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Returns what `attack` returns, in memory of its own.

        Args:
            model: the network to attack.
            x: [n, C, H, W] images.
            y: [n] labels.
            noise: shaped like `x`, or None.
        """
        inputs = (x, y) if noise is None else (x, y, noise)
        key = tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
        if recording := self._recordings.get(key) if model is self._network else None:
            return recording.replay(inputs)
        x_adv = self._attack(model, x, y, noise=noise)
        if model is not self._network or self._is_eager or len(x) == 0 or len(self._recordings) == _SHAPES:
            return x_adv
        try:
            recording = _Recording(self._attack, model, inputs, self._capture)
            found = recording.replay(inputs)
            judged = agreement(model, x, y, x_adv, found)
        except RuntimeError as error:
            # A recording that is broken off raises once more at its end, and that error says less.
            return self._eagerly(x_adv, str(error.__context__ or error).partition("\n")[0].rstrip("."))
        if not judged.holds:
            return self._eagerly(
                x_adv,
                f"replayed, the attack differs in {judged.differing_pixels:.1%} of the pixels and in the losses by "
                f"{judged.loss_gap:.2g} of what it gains",
            )
        self._recordings[key] = recording
        return found

    def _eagerly(self, x_adv: Tensor, reason: str) -> Tensor:
        self._is_eager = True
        self._recordings.clear()
        warnings.warn(f"Attacks run eagerly, kernel by kernel: {reason}.", RuntimeWarning, stacklevel=3)
        return x_adv


class _Recording:
    """One attack for batches of one shape, and the memory that it reads."""

    def __init__(self, attack: Attack, network: nn.Module, inputs: tuple[Tensor, ...], capture: Capture) -> None:
        # Other rows than the caller's: a recording that keeps what it saw gives itself away when it is compared.
        self._inputs = tuple(torch.empty_like(tensor).copy_(tensor.detach().roll(1, 0)) for tensor in inputs)
        x, y, *noise = self._inputs
        self._replay = capture(lambda: attack(network, x, y, noise=noise[0] if noise else None))

    def replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Returns the attack on `inputs`."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given.detach())
        return self._replay().clone()


class CudaGraphs:
    """Records work on a GPU as CUDA graphs.

    They share one memory pool and stream, so they need the memory of the largest only: replay one at a time, and take
    a result out of the pool before the next. Between replays the pool keeps its memory from everything else.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self._device)

    @cached_property
    def _pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        """Runs `run` some times, then records it; returns what replays it on the caller's stream.

        Raises:
            RuntimeError: when something in it cannot be recorded.
        """
        caller, stream, graph = torch.cuda.current_stream(self._device), self._stream, torch.cuda.CUDAGraph()
        stream.wait_stream(caller)
        # A recording that fails leaves its stream the current one; this block gives the caller's back.
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):  # what libraries set up for a stream cannot be recorded
                run()
            # Other threads may go on meanwhile: NCCL's watchdog asks for events, prefetching locks memory.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                x_adv = run()
        caller.wait_stream(stream)

        def replay() -> Tensor:
            graph.replay()
            return x_adv

        return replay
