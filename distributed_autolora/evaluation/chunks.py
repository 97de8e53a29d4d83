"""The test set in fixed chunks, and the outcome of every image of one."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.attacks import (
    STANDARD_BUDGET,
    TRANSFER,
    Budget,
    NamedAttack,
    parts_for,
    pgd_step_size,
)
from distributed_autolora.evaluation.autoattack import PartsOutcome, run_parts
from distributed_autolora.evaluation.guard import prepared
from distributed_autolora.evaluation.trajectories import margins, pgd_from, start_noise

Columns = dict[str, NDArray[Any]]

_WHOLE, _SHARES, _SMALLEST, _LARGE = 3, 6, 4, 32
"""What is less than 3 whole chunks is cut into sixths of what is left, but none below a quarter of a chunk.

Smaller ones cost more than they gain: Square's 5,000 queries take 20 s on the small ResNet however few images are left.
"""


@dataclass(frozen=True)
class Chunk:
    """Rows start .. stop - 1 of the test set, evaluated in one batch with a seed of their own."""

    index: int
    start: int
    stop: int
    seed: int


def cut(num_images: int, chunk_size: int, seed: int, *, smaller_at_end: bool = False) -> tuple[Chunk, ...]:
    """Cuts a test set into chunks, the last of which may be shorter; AutoAttack's outcome depends on their sizes.

    With `smaller_at_end`, three chunks or more (of 32 images or more) end in smaller and smaller ones, down to a
    quarter, so that several workers end at about the same time (guided self-scheduling, Polychronopoulos and Kuck,
    1987; here for any number of workers).

    Raises:
        ValueError: for a negative number of images, or a chunk size below 1.
    """
    if num_images < 0 or chunk_size < 1:
        raise ValueError(f"num_images is {num_images} and chunk_size {chunk_size}")
    starts, shrinking = [0], smaller_at_end and num_images >= _WHOLE * chunk_size and chunk_size >= _LARGE
    while (left := num_images - starts[-1]) > 0:
        tail = max(-(-left // _SHARES), -(-chunk_size // _SMALLEST))
        starts.append(starts[-1] + min(left, tail if shrinking and left < _WHOLE * chunk_size else chunk_size))
    return tuple(
        Chunk(index, start, stop, chunk_seed(seed, index))
        for index, (start, stop) in enumerate(itertools.pairwise(starts))
    )


def chunk_seed(seed: int, index: int) -> int:
    """Returns the seed of a chunk: 31 bits of the SHA-256 of both numbers."""
    return int.from_bytes(hashlib.sha256(f"chunk {index} of seed {seed}".encode()).digest()[:4], "big") >> 1


def evaluate_chunk(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat_model: ThreatModel,
    attacks: Sequence[NamedAttack],
    seed: int,
    step_size: float | None = None,
    budget: Budget = STANDARD_BUDGET,
    surrogate: nn.Module | Tensor | None = None,
    keep_images: bool = False,
) -> Columns:
    """Evaluates every image of one chunk under every attack, in one batch and in float32.

    An image is robust to an attack when it is classified correctly both as it is and after the attack.
    An attack whose parts begin another's takes the results of that one's run, which are the same.

    Args:
        model: logits of images in [0, 1]; left as it was, like torch's random numbers (`guard.preserve_state`).
        x: [n, C, H, W] float32 images in [0, 1]; n may be 0. y: [n] labels.
        seed: the chunk's own.
        step_size: length of a PGD step; None: epsilon / 4.
        budget: another than the standard must be labelled (`attacks.label`).
        surrogate: for the attack "transfer": the model in eval mode that it searches on, or its images, like `x`.
        keep_images: also return the images.

    Returns:
        Arrays of n entries: "natural_prediction" int64, "robust/<attack>" bool, "broken_by" (the part of
        AutoAttack that first broke the image, else the first other attack that did; "natural": misclassified
        as it is; None: robust to all), "margin_natural" and "margin_adversarial" float32 (logit of the label
        minus the largest other, of the natural image and the smallest of it and of all images the attacks found); with
        `keep_images` "adversarial", the bytes of the image of that smallest margin, float32 [C, H, W].

    Raises:
        ValueError: for images that are not float32 [n, C, H, W].
        UserError: for images outside [0, 1], a model that cannot be evaluated, an attack it has too few classes for, or
            a surrogate's images outside the threat model.
    """
    step = pgd_step_size(threat_model) if step_size is None else step_size
    with prepared(model, x, y, threat_model) as (images, labels, logits):
        if isinstance(surrogate, Tensor):
            surrogate = surrogate.to(images)
            if not bool(threat_model.contains(surrogate, images).all()):
                raise UserError("The surrogate's images are not all in the threat model around the test images.")
        evaluator = _ChunkEvaluator(model, images, labels, logits, threat_model, seed, step, budget, surrogate)
        columns = evaluator.run(attacks)
        if keep_images:
            found = evaluator.found.cpu().numpy().astype("<f4")
            columns["adversarial"] = np.fromiter((image.tobytes() for image in found), dtype=object, count=len(found))
        return columns


@dataclass
class _ChunkEvaluator:
    """One chunk under several attacks; keeps the runs of AutoAttack's parts and the smallest margins."""

    model: nn.Module
    x: Tensor
    y: Tensor
    logits: Tensor
    threat_model: ThreatModel
    seed: int
    step_size: float
    budget: Budget
    surrogate: nn.Module | Tensor | None
    runs: list[PartsOutcome] = field(default_factory=list)

    def run(self, attacks: Sequence[NamedAttack]) -> Columns:
        natural, margin = self.logits.argmax(1), margins(self.logits, self.y)
        self.correct, self.smallest, self.found = natural == self.y, margin, self.x.clone()
        broken_by = np.full(len(self.x), None, dtype=object)
        broken_by[(~self.correct).cpu().numpy()] = "natural"
        robust = {}
        # Long ensembles first: shorter ones may then take their results.
        for attack in sorted(attacks, key=lambda attack: -len(attack.parts)):
            if len(self.x) == 0:
                robust[attack.name] = self.correct
                continue
            robust[attack.name], breakers = self._parts(attack) if attack.parts else self._gradient(attack)
            for row in (~robust[attack.name]).nonzero()[:, 0].tolist():
                if broken_by[row] is None:
                    broken_by[row] = breakers[row]
        return {
            "natural_prediction": natural.cpu().numpy(),
            **{f"robust/{attack.name}": robust[attack.name].cpu().numpy() for attack in attacks},
            "broken_by": broken_by,
            "margin_natural": margin.cpu().numpy(),
            "margin_adversarial": self.smallest.cpu().numpy(),
        }

    def _parts(self, attack: NamedAttack) -> tuple[Tensor, list[str]]:
        """Returns which images are robust to AutoAttack's parts, and the part that broke each of the others."""
        parts = parts_for(attack, self.logits.shape[1])
        run = next((run for run in self.runs if run.parts[: len(parts)] == parts), None)
        if run is None:
            ball, seed, budget = self.threat_model, self.seed, self.budget
            run = run_parts(self.model, self.x, self.y, threat_model=ball, parts=parts, seed=seed, budget=budget)
            self._keep(run.x_adv, self.model(run.x_adv))
            self.runs.append(run)
        names = [*run.parts, "", "natural"]  # NATURAL is -1, the last one
        return run.broken_by >= len(parts), [names[position] for position in run.broken_by.tolist()]

    def _gradient(self, attack: NamedAttack) -> tuple[Tensor, list[str]]:
        """Returns which images are robust to FGSM or to every start of PGD, and the attack's name for each image."""
        step_size = self.threat_model.epsilon if attack.name == "fgsm" else self.step_size
        search = {"threat_model": self.threat_model, "num_steps": attack.num_steps, "step_size": step_size}
        robust = self.correct
        for start in range(max(1, attack.random_starts)):
            noise = start_noise(self.x, self.seed, start) if attack.random_starts else None
            if attack.name == TRANSFER and isinstance(self.surrogate, Tensor):
                x_adv = self.surrogate
            else:
                model = self.surrogate if attack.name == TRANSFER else self.model
                assert isinstance(model, nn.Module)
                x_adv = pgd_from(noise, model, self.x, self.y, **search, loss=attack.loss)
            logits = self.model(x_adv)
            robust = robust & (logits.argmax(1) == self.y)
            self._keep(x_adv, logits)
        return robust, [attack.name] * len(self.x)

    def _keep(self, x_adv: Tensor, logits: Tensor) -> None:
        """Keeps the images whose margin is the smallest so far."""
        margin = margins(logits, self.y)
        self.found[margin < self.smallest] = x_adv[margin < self.smallest]
        self.smallest = torch.minimum(self.smallest, margin)
