"""Sanity checks of the search: more effort never finds less, and no limit means no robustness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise

import torch
from torch import Tensor

from distributed_autolora.core.attacks import fgsm
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.evaluation.attacks import SQUARE_TOO_SMALL, Budget, parse, takes_square
from distributed_autolora.evaluation.sanity.rules import Subject, percent, slack, status_of, worst
from distributed_autolora.evaluation.trajectories import Trajectory, in_batches
from distributed_autolora.records import AccuracyCount, SanityCheck, Status

STEPS = (1, 5, 10, 20, 50, 100)
_STARTS = 5
START_STEPS = 10
_NOT_CONVERGED = 0.05
_MASKED = 0.05
_OVERSTATED = 0.1
_LOSS_FALL = 0.05
_GREY = 0.5
"""Of every pixel: grey is at most so far from any value."""
_LARGE_STEPS = 50
_LARGE_STEP_SHARE = 0.1
_LARGE_LIMITS = (0.01, 0.05)


@dataclass(frozen=True)
class Evidence:
    """Results of the searches on the same images: [n] bool, true where an image is correct without and with attack."""

    natural: Tensor
    fgsm: Tensor
    clean: Trajectory
    """PGD-100 from the clean images."""
    starts: Tensor
    """[starts, n] bool, by PGD-10 from each random start."""
    square: Tensor
    square_queries: int

    def robust(self, num_steps: int) -> int:
        """Counts the images that are robust to PGD from the clean image."""
        return int((self.natural & self.clean.correct[:, num_steps]).sum())


def gather(subject: Subject, square_queries: int) -> Evidence:
    """Runs the searches that several checks share."""
    natural = subject.correct()

    one_step = partial(fgsm, subject.model, threat_model=subject.threat_model)
    starts = [subject.trajectory(START_STEPS, start).correct[:, -1] & natural for start in range(_STARTS)]
    everything = torch.arange(len(subject), device=subject.x.device)
    runs = takes_square(subject.threat_model, subject.x.shape[2:])
    return Evidence(
        natural=natural,
        fgsm=natural & subject.correct(in_batches(one_step, subject.batch_size, subject.x, subject.y)),
        clean=subject.trajectory(STEPS[-1]),
        starts=torch.stack(starts),
        square=subject.robust_to(("square",), Budget(square_queries=square_queries), everything) if runs else natural,
        square_queries=square_queries if runs else 0,
    )


def steps(evidence: Evidence) -> SanityCheck:
    """Robust accuracy does not rise with the number of steps.

    All counts come from one PGD-100 on the same images. Compared is the largest rise above an earlier count
    (`status_of`): PGD's last iterate may lose single images again.
    """
    n = len(evidence.natural)
    counts = {step: evidence.robust(step) for step in STEPS}
    rise = max(0, *(later - earlier for earlier, later in combinations(counts.values(), 2)))
    line = ", ".join(f"PGD-{step} {percent(count, n)}" for step, count in counts.items())
    detail = f"{line} (largest rise: {rise} of {n} images)"
    figures = {"robust": {str(step): count for step, count in counts.items()}, "total": n, "largest_rise": rise}
    return SanityCheck("steps", status_of(rise, n), detail, figures)


def loss_by_step(evidence: Evidence) -> SanityCheck:
    """The mean loss of the correctly classified images rises along the search.

    FAIL when 100 steps do not raise it; WARN when it falls between two of the steps 0, 1, 5, 10, 20, 50, 100 by more
    than 5 % of the whole rise (sign steps oscillate a little around a maximum).
    """
    # Without those already wrong: their loss is often far larger, and may rise where that of the others cannot.
    loss = evidence.clean.loss[evidence.natural] if evidence.natural.any() else evidence.clean.loss
    means = {step: float(loss[:, step].double().mean()) for step in (0, *STEPS)}
    values = list(means.values())
    rise = values[-1] - values[0]
    fall = max(before - after for before, after in pairwise(values))
    status: Status = "FAIL" if rise <= 1e-6 else "WARN" if fall > _LOSS_FALL * rise else "PASS"
    detail = "mean loss after " + ", ".join(f"{step}: {mean:.3g}" for step, mean in means.items()) + " steps"
    return SanityCheck("loss by step", status, detail, {"loss": {str(step): mean for step, mean in means.items()}})


def restarts(evidence: Evidence) -> SanityCheck:
    """Five random starts are together no weaker than one clean start, and little stronger than one random start.

    An excess over the clean start counts by `status_of`. WARN when the other four starts break more than 5 % of the
    images beyond `slack`: the search from one start has then not converged, or each start sees another random model.
    """
    n = len(evidence.natural)
    together = evidence.starts.int().cumprod(0).sum(1).tolist()
    clean = evidence.robust(START_STEPS)
    not_converged = together[0] - together[-1] - slack(n) > _NOT_CONVERGED * n
    status = worst(status_of(together[-1] - clean, n), "WARN" if not_converged else "PASS")
    counts = ", ".join(percent(count, n) for count in together)
    detail = f"PGD-{START_STEPS} after 1 to {_STARTS} random starts: {counts}; clean start {percent(clean, n)}"
    return SanityCheck("restarts", status, detail, {"robust": together, "clean_start": clean, "total": n})


def random_start(evidence: Evidence) -> SanityCheck:
    """PGD-10 from one random start is not much stronger than from the clean image.

    Where leaving the image first helps, the gradient at the image is masked. PASS within `slack`, WARN up to 5 % of
    the images (or twice `slack`), FAIL beyond.
    """
    n = len(evidence.natural)
    clean, moved = evidence.robust(START_STEPS), int(evidence.starts[0].sum())
    gap = clean - moved
    status: Status = "WARN" if gap <= _MASKED * n and status_of(gap, n) == "FAIL" else status_of(gap, n)
    detail = f"PGD-{START_STEPS}: clean start {percent(clean, n)}, random start {percent(moved, n)}"
    return SanityCheck("random start", status, detail, {"clean_start": clean, "random_start": moved, "total": n})


def order(evidence: Evidence, accuracies: Mapping[str, AccuracyCount]) -> SanityCheck:
    """A stronger attack leaves no more images correct: FGSM >= PGD-10 >= PGD-100 >= AutoAttack.

    Compared within the subset, and within the given accuracies of the whole test set (`status_of`). WARN too when
    AutoAttack breaks over 10 % of the images more than the strongest PGD: only AutoAttack's number may then be
    called robust accuracy.
    """
    n = len(evidence.natural)
    subset = {
        "natural": AccuracyCount(int(evidence.natural.sum()), n),
        "fgsm": AccuracyCount(int(evidence.fgsm.sum()), n),
        "pgd10": AccuracyCount(evidence.robust(10), n),
        "pgd100": AccuracyCount(evidence.robust(100), n),
    }
    given = {name.removeprefix("robust_accuracy/"): count for name, count in accuracies.items()}
    ordered = _by_strength(given)
    pairs = [*pairwise(subset.values()), *pairwise(ordered.values())]
    status = worst(*(status_of(stronger.correct - weaker.correct, weaker.total) for weaker, stronger in pairs))
    measured = ordered if len(ordered) > 1 else subset
    detail = " >= ".join(f"{name} {percent(count.correct, count.total)}" for name, count in measured.items())
    pgd = [count.accuracy for name, count in given.items() if name.startswith("pgd")]
    if "autoattack" in given and pgd and min(pgd) - given["autoattack"].accuracy > _OVERSTATED:
        status = worst(status, "WARN")
        detail += "; PGD overstates: claim AutoAttack only"
    figures = {
        "subset": {name: [count.correct, count.total] for name, count in subset.items()},
        "given": {name: [count.correct, count.total] for name, count in given.items()},
    }
    return SanityCheck("order", status, detail, figures)


def _by_strength(given: Mapping[str, AccuracyCount]) -> dict[str, AccuracyCount]:
    named = [attack for name in given if name.startswith("pgd") for attack in parse(name)]
    pgd = [attack for attack in named if not attack.random_starts and attack.loss == "cross_entropy"]
    pgd_names = [attack.name for attack in sorted(pgd, key=lambda attack: attack.num_steps)]
    names = ["natural_accuracy", "fgsm", *pgd_names, "apgd-ce", "apgd", "autoattack"]
    return {name.removesuffix("_accuracy"): given[name] for name in names if name in given}


def large_epsilon(subject: Subject) -> SanityCheck:
    """Without a real limit nothing is robust: epsilon is so large that every image can be turned into uniform grey.

    That is 0.5, in L2 times the root of the number of pixel values. An image is broken when any of 50 steps of a tenth
    of that misclassifies it. PASS for at most 1 % of the images left (or one), WARN for at most 5 %, FAIL beyond: the
    search does not work.
    """
    n = len(subject)
    norm = subject.threat_model.norm
    epsilon = float(subject.threat_model.size(torch.full_like(subject.x[:1], _GREY)))
    ball = ThreatModel(norm, epsilon)
    found = subject.trajectory(_LARGE_STEPS, threat_model=ball, step_size=_LARGE_STEP_SHARE * epsilon)
    left = int(found.correct.all(1).sum())
    status: Status = "PASS" if left <= max(1, _LARGE_LIMITS[0] * n) else "WARN"
    if left > max(2, _LARGE_LIMITS[1] * n):
        status = "FAIL"
    detail = f"{percent(left, n)} are robust to PGD-{_LARGE_STEPS} at epsilon {epsilon:.4g}"
    return SanityCheck("large epsilon", status, detail, {"left": left, "total": n, "epsilon": epsilon})


def square(evidence: Evidence) -> SanityCheck:
    """Square, which sees no gradient and runs on all images, is not stronger than the white-box attacks.

    White-box: PGD-100 and PGD-10 from five random starts, together. An excess of what they leave over what
    Square leaves counts by `status_of`. WARN too when Square alone breaks more images than `slack`, and where it cannot
    run (`attacks.takes_square`).
    """
    n = len(evidence.natural)
    if not evidence.square_queries:
        return SanityCheck("square", "WARN", f"not run: {SQUARE_TOO_SMALL}", {"total": n})
    white = evidence.natural & evidence.clean.correct[:, -1] & evidence.starts.all(0)
    counts = (int(white.sum()), int(evidence.square.sum()))
    alone = int((white & ~evidence.square).sum())
    status = worst(status_of(counts[0] - counts[1], n), "WARN" if alone > slack(n) else "PASS")
    detail = (
        f"Square ({evidence.square_queries} queries) leaves {percent(counts[1], n)}, white-box attacks "
        f"{percent(counts[0], n)}; {alone} images broken by Square alone"
    )
    figures = {"white_box": counts[0], "square": counts[1], "square_alone": alone, "total": n}
    return SanityCheck("square", status, detail, figures)
