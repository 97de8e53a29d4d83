"""Attacks by name, and the labels of their results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.errors import UserError
from distributed_autolora.records import pgd_name
from distributed_autolora.records.reader import nearest

AUTOATTACK_PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
"""The attacks of standard AutoAttack, in its order (Croce and Hein, 2020)."""

_ENSEMBLES = {
    "autoattack": AUTOATTACK_PARTS,
    "apgd": ("apgd-ce", "apgd-t"),
    **{part: (part,) for part in AUTOATTACK_PARTS},
}
TRANSFER = "transfer"
"""PGD-20 on another model, whose images are evaluated on this one."""
CORRUPTIONS = "corruptions"
"""No attack: accuracy on images with common corruptions (`evaluation.corruptions`)."""
_EXAMPLES = ("fgsm", "pgd10", "pgd100", "pgd10x5", "pgd20-margin", *_ENSEMBLES, TRANSFER, CORRUPTIONS)
_PGD = re.compile(r"pgd([1-9]\d{0,4})(?:x([1-9]\d{0,2}))?(-margin)?")
_STANDARD_TARGETS = 9
_CLASSES_FOR_TARGETED_DLR = 4
_SQUARE_SIDE = 25
_TRANSFER_STEPS = 20
_NAMES = {"apgd-ce": "APGD-CE", "apgd-t": "APGD-T", "fab-t": "FAB-T", "square": "Square"}


@dataclass(frozen=True)
class NamedAttack:
    """An attack with a name.

    "fgsm" has one step of length epsilon from the clean image. "pgdK" has K steps from the clean image,
    "pgdKxR" K steps from each of R random starts; with the suffix "-margin" the loss is the margin of the logits. The
    others are AutoAttack or parts of it.
    """

    name: str
    num_steps: int = 0
    random_starts: int = 0
    """0: one start at the clean image."""
    loss: str = "cross_entropy"
    """One of `core.attacks.LOSSES`."""
    parts: tuple[str, ...] = ()
    """From `AUTOATTACK_PARTS`; empty for FGSM and PGD."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Search lengths of AutoAttack's parts; the defaults are the standard version's, others must be labelled."""

    apgd_steps: int = 100
    fab_steps: int = 100
    square_queries: int = 5000


STANDARD_BUDGET = Budget()


def parse(text: str) -> tuple[NamedAttack, ...]:
    """Reads names separated by commas, such as "pgd10,autoattack"; a name given twice counts once.

    Raises:
        UserError: for no name, or an unknown one (names the nearest known one).
    """
    names = list(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError('Attacks: none is named. Give names separated by commas, such as "pgd10,autoattack".')
    return tuple(_named(name) for name in names)


def _named(name: str) -> NamedAttack:
    if name in _ENSEMBLES:
        return NamedAttack(name, parts=_ENSEMBLES[name])
    if name == CORRUPTIONS:
        return NamedAttack(name)
    if name in ("fgsm", TRANSFER):
        return NamedAttack(name, num_steps=1 if name == "fgsm" else _TRANSFER_STEPS)
    if match := _PGD.fullmatch(name):
        num_steps, random_starts, loss = int(match[1]), int(match[2] or 0), "margin" if match[3] else "cross_entropy"
        found = pgd_name(num_steps, random_starts=random_starts, loss=loss)
        return NamedAttack(found, num_steps=num_steps, random_starts=random_starts, loss=loss)
    raise UserError(
        f'There is no attack "{name}".{nearest(name, list(_EXAMPLES))} Known: {", ".join(_EXAMPLES)} '
        "(pgdK: K steps; pgdKxR: K steps from each of R random starts; suffix -margin: on the margin of the logits)."
    )


def pgd_step_size(threat_model: ThreatModel) -> float:
    """Returns the length of a PGD step where none is given: epsilon / 4, which is 2/255 at epsilon 8/255."""
    return threat_model.epsilon / 4


def parts_for(attack: NamedAttack, num_classes: int) -> tuple[str, ...]:
    """Returns the parts of AutoAttack that can run on a model with `num_classes` outputs, in order.

    With fewer than 4 classes the targeted DLR loss of APGD-T is not defined, and ensembles go without it.

    Raises:
        UserError: when nothing is left, or there are fewer than 2 classes.
    """
    if num_classes < 2:
        raise UserError(f"A model with {num_classes} output has nothing to attack: give one with at least 2 classes.")
    usable = tuple(part for part in attack.parts if part != "apgd-t" or num_classes >= _CLASSES_FOR_TARGETED_DLR)
    if attack.parts and not usable:
        raise UserError(
            f'The attack "{attack.name}" needs at least {_CLASSES_FOR_TARGETED_DLR} classes and the model has '
            f'{num_classes}. Use "autoattack", which omits it and is labelled so.'
        )
    return usable


SQUARE_TOO_SMALL = (
    "in L2 Square's first perturbation is a grid of 5 x 5 tiles, which needs images of at least 25 pixels"
)


def takes_square(threat_model: ThreatModel, sides: Sequence[int]) -> bool:
    """Returns whether Square can run on images with these sides: pyautoattack's L2 version stops on small ones."""
    return threat_model.norm == "linf" or min(sides) >= _SQUARE_SIDE


def num_targets(num_classes: int) -> int:
    """Returns how many target classes APGD-T and FAB-T aim at: 9 as in the standard version, or all there are."""
    return min(_STANDARD_TARGETS, num_classes - 1)


def label(
    attack: NamedAttack,
    num_classes: int,
    *,
    threat_model: ThreatModel | None = None,
    step_size: float | None = None,
    budget: Budget = STANDARD_BUDGET,
    surrogate: str = "",
) -> str:
    """Returns the label of the attack's result in a table or a model card.

    Args:
        threat_model: where PGD searched; None: the label states the step as a share of epsilon only.
        step_size: length of a PGD step; None: `pgd_step_size`.
        surrogate: name of the model, or of the file, that "transfer" takes its images from.

    Raises:
        UserError: when the attack cannot run on so many classes.
    """
    parts = parts_for(attack, num_classes)
    if attack.name == TRANSFER and surrogate.endswith(".parquet"):
        return f"transfer (images of {surrogate})"
    if not attack.parts:
        searched = _gradient_label(attack, threat_model, step_size)
        return f"transfer ({searched.replace(' (', ' on ' + surrogate + ', ', 1)}" if surrogate else searched
    is_whole = parts == attack.parts
    title = "AutoAttack" if attack.name == "autoattack" and is_whole else " + ".join(_NAMES[part] for part in parts)
    remarks = []
    if not is_whole:
        remarks.append(f"not standard AutoAttack: APGD-T needs {_CLASSES_FOR_TARGETED_DLR} classes")
    elif attack.name == "autoattack" and budget == STANDARD_BUDGET:
        remarks.append("standard")
    targets = num_targets(num_classes)
    if {"apgd-t", "fab-t"} & set(parts) and targets < _STANDARD_TARGETS:
        remarks.append(f"{targets} target{'s' if targets > 1 else ''}: {num_classes} classes")
    if budget != STANDARD_BUDGET:
        remarks.append(
            f"reduced: APGD {budget.apgd_steps} steps, FAB {budget.fab_steps} steps, "
            f"Square {budget.square_queries} queries"
        )
    return f"{title} ({', '.join(remarks)})" if remarks else title


def _gradient_label(attack: NamedAttack, threat_model: ThreatModel | None, step_size: float | None) -> str:
    if attack.name == "fgsm":
        name = "FGSM" if threat_model is None or threat_model.norm == "linf" else "FGM"
        return f"{name} (one step of epsilon, clean start)"
    step = "epsilon / 4" if threat_model is None else f"epsilon / 4 = {pgd_step_size(threat_model):.4g}"
    step = step if step_size is None else f"{step_size:.4g}"
    starts = attack.random_starts
    start = "clean start" if not starts else f"{starts} random start{'s' if starts > 1 else ''}"
    loss = "" if attack.loss == "cross_entropy" else f"{attack.loss} loss, "
    return f"PGD-{attack.num_steps} ({loss}step {step}, {start})"
