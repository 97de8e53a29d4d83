"""A finished run in Markdown, for the page of an experiment tracker."""

from __future__ import annotations

from typing import Any

from distributed_autolora.reporting.history import (
    accuracy_counts,
    accuracy_names,
    attack_label,
    compact,
    pixel_fraction,
    value,
)
from distributed_autolora.reporting.masking import masking_sentences
from distributed_autolora.reporting.statistics import wilson_interval


def run_description(result: dict[str, Any], history: list[dict[str, Any]]) -> str:
    """Returns the result of a run, what its schedules did, and how to repeat it."""
    parts = [_accuracies(result), _data(result), _schedules(result, history), " ".join(masking_sentences(result))]
    return "\n\n".join(filter(None, [*parts, _reproduction(result)])) + "\n"


def _accuracies(result: dict[str, Any]) -> str:
    if result["test"] is None:
        return f"Test split not opened; the best epoch on validation is {result['best_epoch']}."
    attack = attack_label(result["attack"])
    rows = [
        f"| on {result['test_images']:,} test images | natural accuracy | {attack} accuracy |",
        "| --- | --- | --- |",
    ]
    parts = [(f"**final model** (best on validation, epoch {result['best_epoch']})", result["test"])]
    if result.get("linear_head"):
        parts.append(("untouched backbone, linear head", result["linear_head"]))
    for label, part in parts:
        cells = [_with_interval(*accuracy_counts(part, name)) for name in accuracy_names(result)]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _with_interval(correct: int, total: int) -> str:
    low, high = wilson_interval(correct, total)
    return f"{100 * correct / total:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _data(result: dict[str, Any]) -> str:
    tested = result["test"] is not None
    intervals = "In brackets: 95 % Wilson intervals. " if tested else ""
    closing = "; the test images were used once." if tested else "."
    return (
        f"{intervals}Perturbations: at most {pixel_fraction(result['epsilon'])} a pixel "
        f"(L-infinity, pixels in [0, 1]). {result['num_classes']} classes; {result['train_images']:,} training and "
        f"{result['val_images']:,} validation images. Validation chose the model{closing}{_task(result)}"
    )


def _task(result: dict[str, Any]) -> str:
    card = result.get("task_card")
    if not card:
        return ""
    overlaps = f" Known overlaps: {'; '.join(card['known_overlaps'])}." if card.get("known_overlaps") else ""
    return f"\n\nTask {card['task']}, protocol {card['protocol']}, licence: {card['licence']}.{overlaps}"


def _schedules(result: dict[str, Any], history: list[dict[str, Any]]) -> str:
    halvings = [str(metrics["epoch"]) for metrics in history if metrics.get("halved")]
    text = (
        f"{result['stopped_epoch']} epochs, learning rate {compact(history[0]['lr'])} to {compact(history[-1]['lr'])}"
    )
    text += f", halved after epoch {', '.join(halvings)}." if halvings else "."
    first, last = value(history[0], "natural_weight"), value(history[-1], "natural_weight")
    if first is not None and last is not None:
        kl = f"{history[0]['kl_weight']:.2f} to {history[-1]['kl_weight']:.2f}"
        text += f" lambda1 went from {first:.2f} to {last:.2f}, lambda2 from {kl}."
    return text


def _reproduction(result: dict[str, Any]) -> str:
    return (
        "To repeat this run, download its artifact `config.yaml` and type\n\n"
        "```\npython jobs/finetune.py --config config.yaml --fresh\n```\n\n"
        f"Recipe `{result['recipe']}`, seed {result['seed']}, config digest `{result['config_digest'][:12]}`; "
        f"files in `{result['folder']}`."
    )
