"""The test set in fixed chunks, and the outcome of every image of one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distributed_autolora.core.attacks import fgsm, pgd
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.evaluation.attacks import STANDARD_BUDGET, Budget, NamedAttack, parts_for, pgd_step_size
from distributed_autolora.evaluation.autoattack import PartsOutcome, run_parts
from distributed_autolora.evaluation.guard import check_differentiable, check_inputs, check_logits, undisturbed
from distributed_autolora.evaluation.trajectories import margins, start_noise

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Chunk:
    """Rows start .. stop - 1 of the test set, judged in one batch with a seed of their own."""

    index: int
    start: int
    stop: int
    seed: int


def cut(num_images: int, chunk_size: int, seed: int) -> tuple[Chunk, ...]:
    """Cuts a test set into chunks that depend on nothing but these three numbers; the last may be shorter.

    Args:
        num_images: size of the test set, not negative.
        chunk_size: images per chunk, at least 1. AutoAttack's outcome depends on it for a few images.
        seed: seed of the evaluation.

    Raises:
        ValueError: for a size out of range.
    """
    if num_images < 0 or chunk_size < 1:
        raise ValueError(f"num_images is {num_images} and chunk_size {chunk_size}")
    starts = range(0, num_images, chunk_size)
    return tuple(
        Chunk(index, start, min(start + chunk_size, num_images), chunk_seed(seed, index))
        for index, start in enumerate(starts)
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
) -> Columns:
    """Judges every image of one chunk under every attack, in one batch and in float32.

    An image is robust to an attack when it is classified rightly both as it is and as the attack leaves it.
    An attack whose parts begin another's is read off that one's run: it would do exactly the same again.

    Args:
        model: logits of images in [0, 1]; its modes, gradients and flags are as before afterwards, and so are
            torch's global random numbers and the interpreter's trace function.
        x: [n, C, H, W] float32 images in [0, 1]; n may be 0.
        y: [n] labels.
        threat_model: what the adversary may do.
        attacks: from `attacks.parse`.
        seed: the chunk's own.
        step_size: length of a PGD step; None: epsilon / 4.
        budget: of AutoAttack's parts; another than the standard must be labelled (`attacks.label`).

    Returns:
        Arrays of n entries: "natural_prediction" int64, "robust/<attack>" bool, "broken_by" (the part of
        AutoAttack that first broke the image, else the first other attack that did; "natural": misclassified
        as it is; None: it withstood all), "margin_natural" and "margin_adversarial" float32 (logit of the label
        minus the largest other, of the natural image and the smallest of it and of all images the attacks found).

    Raises:
        ValueError: for images that are not float32 [n, C, H, W].
        UserError: for images outside [0, 1], a model that cannot be judged, or an attack it has too few classes for.
    """
    check_inputs(model, x, y, threat_model)
    with undisturbed(model) as device:
        judge = _Judge(model, x.to(device), y.to(device).long(), threat_model, seed, step_size, budget)
        return judge.columns(attacks)


@dataclass
class _Verdict:
    """What one attack did: which images withstood it, and what broke each of the others."""

    withstood: Tensor
    broken_by: list[str]


class _Judge:
    """One chunk under several attacks; keeps the runs of AutoAttack's parts and the smallest margins."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat_model: ThreatModel,
        seed: int,
        step_size: float | None,
        budget: Budget,
    ) -> None:
        self.model, self.x, self.y = model, x, y
        self.threat_model, self.seed, self.budget = threat_model, seed, budget
        self.step_size = pgd_step_size(threat_model) if step_size is None else step_size
        self.runs: list[PartsOutcome] = []
        if len(x) == 0:
            self.num_classes = 0
            self.natural, self.margin = self.y, x.new_empty(0)
        else:
            check_differentiable(model, x)
            logits = self._logits(x)
            check_logits(logits, y)
            self.num_classes = logits.shape[1]
            self.natural, self.margin = logits.argmax(1), margins(logits, y)
        self.smallest = self.margin.clone()

    def columns(self, attacks: Sequence[NamedAttack]) -> Columns:
        """Runs the attacks and returns the columns of the outcome."""
        # Long ensembles first: shorter ones may then be read off them.
        order = sorted(attacks, key=lambda attack: -len(attack.parts))
        verdicts = {attack.name: self._verdict(attack) for attack in order}
        broken_by = np.full(len(self.x), None, dtype=object)
        broken_by[(self.natural != self.y).cpu().numpy()] = "natural"
        for verdict in verdicts.values():
            for row in (~verdict.withstood).nonzero()[:, 0].tolist():
                if broken_by[row] is None:
                    broken_by[row] = verdict.broken_by[row]
        return {
            "natural_prediction": self.natural.cpu().numpy(),
            **{f"robust/{attack.name}": verdicts[attack.name].withstood.cpu().numpy() for attack in attacks},
            "broken_by": broken_by,
            "margin_natural": self.margin.cpu().numpy(),
            "margin_adversarial": self.smallest.cpu().numpy(),
        }

    def _verdict(self, attack: NamedAttack) -> _Verdict:
        if len(self.x) == 0:
            return _Verdict(self.y == self.natural, [])
        if attack.parts:
            run = self._run(parts_for(attack, self.num_classes))
            names = [*run.parts, "", "natural"]  # NATURAL is -1, the last one
            count = len(parts_for(attack, self.num_classes))
            return _Verdict(run.broken_by >= count, [names[position] for position in run.broken_by.tolist()])
        withstood = self.natural == self.y
        for x_adv in self._images(attack):
            logits = self._logits(x_adv)
            withstood = withstood & (logits.argmax(1) == self.y)
            self.smallest = torch.minimum(self.smallest, margins(logits, self.y))
        return _Verdict(withstood, [attack.name] * len(self.x))

    def _run(self, parts: tuple[str, ...]) -> PartsOutcome:
        for run in self.runs:
            if run.parts[: len(parts)] == parts:
                return run
        run = run_parts(
            self.model,
            self.x,
            self.y,
            threat_model=self.threat_model,
            parts=parts,
            num_classes=self.num_classes,
            seed=self.seed,
            budget=self.budget,
        )
        self.smallest = torch.minimum(self.smallest, margins(self._logits(run.x_adv), self.y))
        self.runs.append(run)
        return run

    def _images(self, attack: NamedAttack) -> Iterator[Tensor]:
        """Yields what FGSM or each start of PGD leaves."""
        if attack.name == "fgsm":
            yield fgsm(self.model, self.x, self.y, threat_model=self.threat_model)
            return
        for start in range(max(1, attack.random_starts)):
            noise = start_noise(self.x, self.seed, start) if attack.random_starts else None
            yield pgd(
                self.model,
                self.x,
                self.y,
                threat_model=self.threat_model,
                num_steps=attack.num_steps,
                step_size=self.step_size,
                random_start=noise is not None,
                noise=noise,
                loss=attack.loss,
            )

    def _logits(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(x)
        return logits
