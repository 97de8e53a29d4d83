"""Messages about the checks by stronger attacks: while a run trains, and in its result."""

from collections.abc import Sequence

from distributed_autolora.console import command
from distributed_autolora.evaluation.masking_test import LEAST_IMAGES, least_share, overstates, warns_from
from distributed_autolora.records import EpochRecord, MaskingCheck, MaskingSummary, RunResult
from distributed_autolora.reporting.format import attack_label


def warns(check: MaskingCheck | None) -> bool:
    """Tells whether a check found signs of masked gradients."""
    return check is not None and overstates(check.broken, check.images)


def masking_warning(record: EpochRecord, *, name: str, method: str, rule: str | None) -> str | None:
    """Returns the warning about an epoch with signs of masked gradients; None for others."""
    check = record.masking
    if check is None or not warns(check):
        return None
    least, smallest = least_share(check.broken, check.images), warns_from(check.images) / check.images
    return (
        f"epoch {record.epoch}: {check.broken} of {check.images} validation images are robust to "
        f"{attack_label(record.attack)} and broken by {_search(check.broken_by_loss)} ({_per_cent(check.gap)}; more "
        f"than {_per_cent(least)} at 95 % confidence; a check of {check.images} images warns from "
        f"{_per_cent(smallest)} on). {_meaning(record.attack, rule)} {_advice(name, method, rule)}"
    )


def masking_summary(history: Sequence[EpochRecord]) -> MaskingSummary | None:
    """Summarises a run's checks; None for a run without one.

    The gaps are those of the check nearest to the chosen epoch, the earlier of two: the nearest to the deployed model.
    """
    checked = {record.epoch: record.masking for record in history if record.masking is not None}
    if not checked:
        return None
    chosen = history[-1].best_epoch
    nearest = min(checked, key=lambda epoch: abs(epoch - chosen))
    largest = max(checked, key=lambda epoch: checked[epoch].gap)
    images = checked[nearest].images
    return MaskingSummary(
        checks=len(checked),
        images=images,
        epoch=nearest,
        robust_accuracy_stronger=checked[nearest].robust_accuracy,
        gap=checked[nearest].gap,
        loss_gap=checked[nearest].loss_gap,
        warns_from=warns_from(images) / images,
        largest_gap=checked[largest].gap,
        largest_gap_epoch=largest,
        warned_epochs=tuple(epoch for epoch, check in checked.items() if warns(check)),
    )


def masking_status(found: MaskingSummary | None) -> str:
    """Returns "unchecked", "too few", "clear" or "warned": a tag to filter runs by."""
    if found is None:
        return "unchecked"
    if found.images < LEAST_IMAGES:
        return "too few"
    return "warned" if found.warned_epochs else "clear"


def masking_sentences(result: RunResult) -> list[str]:
    """Returns the finding of a run's checks, and a warning where there was one; empty for a run without a check."""
    found = result.masking
    if found is None:
        return []
    if found.images < LEAST_IMAGES:
        return [f"Gradient masking: {found.images} checked images are too few to tell (at least {LEAST_IMAGES})."]
    sentences = [
        f"Gradient-masking gap: {_per_cent(found.gap)} of {found.images:,} validation images are robust to "
        f"{attack_label(result.attack)} and broken by {_search(found.loss_gap)} in epoch {found.epoch} (warns from "
        f"{_per_cent(found.warns_from)} on; largest of {found.checks} checks: {_per_cent(found.largest_gap)}, epoch "
        f"{found.largest_gap_epoch})."
    ]
    if found.warned_epochs:
        epochs = ", ".join(map(str, found.warned_epochs))
        advice = _advice(result.name, result.method, result.rule)
        sentences.append(f"Warning in epoch {epochs}: {_meaning(result.attack, result.rule)} {advice}")
    if found.loss_gap is not None:
        sentences.append(f"Loss gap: another loss breaks {_per_cent(found.loss_gap)} more; that is no sign of masking.")
    return sentences


def _search(by_loss: float | None) -> str:
    return "a stronger attack" if by_loss is None else "larger and more steps on the same loss"


def _per_cent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _meaning(attack: str, rule: str | None) -> str:
    decides = "sets the learning rate" if rule == "paired" else "sets the learning rate and chooses the model"
    return f"{attack_label(attack)} overstates the robust accuracy: gradients may be masked. It {decides}."


def _advice(name: str, method: str, rule: str | None) -> str:
    confirm = f"Evaluate the model with {command('evaluate')} --model {name} --attacks autoattack."
    fixes = ["--schedule.rule paired"] if rule != "paired" else []
    fixes += ["--method vanilla"] if method != "vanilla" else []
    return f"{confirm} If that confirms it, train with {' or '.join(fixes)}." if fixes else confirm
