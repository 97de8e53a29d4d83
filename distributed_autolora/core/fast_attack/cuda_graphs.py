"""Attacks as CUDA graphs: captured once for each batch shape, then replayed with one launch for all kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

Attack = Callable[..., Tensor]
Run = Callable[[], Tensor]
Capture = Callable[[Run], Run]
"""Captures a function that reads and writes the same memory in every call; returns its replay."""

_SHAPES = 2
"""Batch shapes that are captured: the full one and the last one of an epoch."""
_WARM_UPS = 3
_LARGEST_Z = 4
"""Of the sign-flip test: by Hoeffding's inequality it refuses a correct replay with probability exp(-8) at most."""


@dataclass(frozen=True)
class Agreement:
    """How far the replay of an attack is from the eager attack, and how far two eager attacks are from each other."""

    replay_distance: float
    """Mean absolute difference of a pixel value between the replay and an eager attack."""
    eager_distance: float
    """The same between two eager attacks. It is zero unless kernels add up in a varying order."""
    holds: bool
    """Whether the replay differs from an eager attack no more than another eager attack does."""


def agreement(eager: Tensor, again: Tensor, replayed: Tensor) -> Agreement:
    """Compares the replay of an attack with two eager attacks, `eager` and `again`, on the same images, at least one.

    If the eager attack repeats itself bit for bit, the replay must do so too. Otherwise a paired sign-flip test
    compares how far each image is from `eager` in the replay and in `again`; it needs more than 16 images to refuse.
    """
    distances, expected = ((other - eager).abs().flatten(1).mean(1).double() for other in (replayed, again))
    if torch.equal(eager, again):
        holds = torch.equal(eager, replayed)
    else:
        excess = distances - expected
        holds = bool(excess.sum() <= _LARGEST_Z * excess.norm())
    return Agreement(float(distances.mean()), float(expected.mean()), holds)


class CudaGraphAttack:
    """An attack on one network as CUDA graphs: captured for the first batch shapes it meets, then replayed.

    The first replay of a shape is compared with the eager attack on the same images. If the capture fails or the two
    do not agree, one warning gives the reason and all later attacks run eagerly. Further shapes, empty batches and
    attacks on other networks always run eagerly.

    Args:
        attack: attack(network, x, y, noise=...) -> x_adv; it starts at `noise`, or at the image without it.
        network: its tensors must stay where they are, as those of a trained network or an `AttackNetwork` do.
        capture: such as `CudaGraphs`.
    """

    def __init__(self, attack: Attack, network: nn.Module, capture: Capture) -> None:
        self._attack, self._network, self._capture = attack, network, capture
        self._graphs: dict[tuple[object, ...], _Graph] = {}
        self._is_eager = False

    @property
    def is_replaying(self) -> bool:
        """Whether a capture succeeded and its replay agreed."""
        return bool(self._graphs)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Returns the attack's result in memory of its own."""
        inputs = (x, y) if noise is None else (x, y, noise)
        key = tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
        if graph := self._graphs.get(key) if model is self._network else None:
            return graph.replay(inputs)
        x_adv = self._attack(model, x, y, noise=noise)
        if model is not self._network or self._is_eager or len(x) == 0 or len(self._graphs) == _SHAPES:
            return x_adv
        try:
            graph = _Graph(self._attack, model, inputs, self._capture)
            replayed = graph.replay(inputs)
            result = agreement(x_adv, self._attack(model, x, y, noise=noise), replayed)
        except RuntimeError as error:
            # A failed capture raises a second, vaguer error on exit; report the first.
            return self._fall_back(x_adv, str(error.__context__ or error).partition("\n")[0].rstrip("."))
        if not result.holds:
            distances = (
                f"{result.replay_distance:.2g} on average, those of two eager attacks by {result.eager_distance:.2g}"
            )
            return self._fall_back(x_adv, f"pixels of the replay differ by {distances}")
        self._graphs[key] = graph
        return replayed

    def _fall_back(self, x_adv: Tensor, reason: str) -> Tensor:
        self._is_eager = True
        self._graphs.clear()
        warnings.warn(f"Attacks run eagerly, kernel by kernel: {reason}.", RuntimeWarning, stacklevel=3)
        return x_adv


class _Graph:
    def __init__(self, attack: Attack, network: nn.Module, inputs: tuple[Tensor, ...], capture: Capture) -> None:
        # Capture permuted rows, so that inputs baked into the graph are detected.
        self._inputs = tuple(torch.empty_like(tensor).copy_(tensor.detach().roll(1, 0)) for tensor in inputs)
        x, y, *noise = self._inputs
        self._replay = capture(lambda: attack(network, x, y, noise=noise[0] if noise else None))

    def replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given.detach())
        return self._replay().clone()


class CudaGraphs:
    """Captures work on a GPU as CUDA graphs.

    They share one memory pool and stream, so they need the memory of the largest only: replay one at a time, and copy
    a result out of the pool before the next replay. Nothing else can use the pool's memory between replays.
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
        """Warms `run` up, then captures it; returns its replay on the caller's stream.

        Raises:
            RuntimeError: when something in it cannot be captured.
        """
        caller, stream, graph = torch.cuda.current_stream(self._device), self._stream, torch.cuda.CUDAGraph()
        stream.wait_stream(caller)
        # A failed capture leaves its stream the current one; this block restores the caller's.
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):  # what libraries set up for a stream cannot be captured
                run()
            # Other threads may use the device meanwhile: NCCL's watchdog queries events, prefetching pins memory.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                x_adv = run()
        caller.wait_stream(stream)

        def replay() -> Tensor:
            graph.replay()
            return x_adv

        return replay
