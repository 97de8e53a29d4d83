"""A finished run in Markdown, for the page of an experiment tracker."""

from collections.abc import Sequence

from distributed_autolora.console import command
from distributed_autolora.records import EpochRecord, RunResult
from distributed_autolora.reporting.format import attack_label, compact, threat_text, with_interval
from distributed_autolora.reporting.masking import masking_sentences


def run_description(result: RunResult, history: Sequence[EpochRecord]) -> str:
    """Returns the result of a run, what its schedules did, and how to repeat it."""
    warning = " ".join(masking_sentences(result))
    parts = [_accuracies(result), _what(result), warning, _schedules(history), _data(result), _task(result)]
    return "\n\n".join(filter(None, [*parts, _reproduction(result)])) + "\n"


def _what(result: RunResult) -> str:
    rule = "step decay" if result.rule is None else f"automatic, rule `{result.rule}`"
    return (
        f"`{result.method}` on `{result.task}`, backbone `{result.backbone}`, learning rate: {rule}, "
        f"seed {result.seed}. The artifact `curves.png` shows the run by epoch."
    )


def _accuracies(result: RunResult) -> str:
    if result.test is None:
        return f"Test split not opened; the epoch chosen on validation is {result.best_epoch}."
    attack = attack_label(result.attack)
    # MLflow sets the columns of a table without any space between them: a list reads better.
    rows = [f"On {result.test_images:,} test images, with 95 % Wilson intervals:\n"]
    parts = [(f"**final model** (chosen on validation, epoch {result.best_epoch})", result.test)]
    if result.linear_head is not None:
        parts.append(("untouched backbone, linear head", result.linear_head))
    for label, part in parts:
        natural, robust = (with_interval(count, " % ") for count in (part.natural, part.robust))
        rows.append(f"- {label}: natural {natural}, {attack} {robust}")
    return "\n".join(rows)


def _data(result: RunResult) -> str:
    return (
        f"Perturbations: {threat_text(result.norm, result.epsilon)}, pixels in [0, 1]. "
        f"{result.num_classes} classes; {result.train_images:,} training and {result.val_images:,} validation images."
    )


def _task(result: RunResult) -> str:
    card = result.task_card
    if not card:
        return ""
    overlaps = f" Known overlaps: {'; '.join(card['known_overlaps'])}." if card.get("known_overlaps") else ""
    return f"Task {card['task']}, protocol {card['protocol']}, licence: {card['licence']}.{overlaps}"


def _schedules(history: Sequence[EpochRecord]) -> str:
    first, last = history[0], history[-1]
    text = f"{len(history)} epochs, learning rate {compact(first.lr)} to {compact(last.lr)}"
    halvings = ", ".join(str(record.epoch) for record in history if record.halved)
    text += f", halved after epoch {halvings}." if halvings else "."
    restores = [f"{record.restored_epoch} after epoch {record.epoch}" for record in history if record.restored]
    if restores:
        text += f" Restored the weights of epoch {', '.join(restores)}."
    if first.natural_weight is not None and last.natural_weight is not None:
        kl = f"{first.kl_weight:.2f} to {last.kl_weight:.2f}"
        text += f" lambda1 went from {first.natural_weight:.2f} to {last.natural_weight:.2f}, lambda2 from {kl}."
    return text


def _reproduction(result: RunResult) -> str:
    return (
        "To repeat this run, download its artifact `config.yaml` and type\n\n"
        f"```\n{command('finetune')} --config config.yaml --fresh\n```\n\n"
        f"Recipe `{result.recipe}`, seed {result.seed}, config digest `{result.config_digest[:12]}`; "
        f"files in `{result.folder}`."
    )
