"""A finished run in Markdown, for the page of an experiment tracker."""

from __future__ import annotations

from typing import Any

from distributed_autolora.records import accuracy_counts, accuracy_names, value
from distributed_autolora.reporting.format import attack_label, compact, pixel_fraction
from distributed_autolora.reporting.masking import masking_sentences
from distributed_autolora.reporting.statistics import wilson_interval


def run_description(result: dict[str, Any], history: list[dict[str, Any]]) -> str:
    """Returns the result of a run, what its schedules did, and how to repeat it."""
    warning = " ".join(masking_sentences(result))
    parts = [_accuracies(result), _what(result), warning, _schedules(result, history), _data(result)]
    return "\n\n".join(filter(None, [*parts, _reproduction(result)])) + "\n"


def _what(result: dict[str, Any]) -> str:
    """What was trained on what; "" for a result that does not say."""
    if "method" not in result:
        return ""
    rule = "step decay" if result["schedule"] == "step_decay" else f"automatic, rule `{result['rule']}`"
    return (
        f"`{result['method']}` on `{result['task']}`, backbone `{result['backbone']}`, learning rate: {rule}, "
        f"seed {result['seed']}. The picture `curves.png` under Artifacts shows the run by epoch."
    )


def _accuracies(result: dict[str, Any]) -> str:
    if result["test"] is None:
        return f"Test split not opened; the epoch chosen on validation is {result['best_epoch']}."
    attack = attack_label(result["attack"])
    # MLflow sets the columns of a table without any space between them: a list reads better.
    rows = [f"On {result['test_images']:,} test images:\n"]
    parts = [(f"**final model** (chosen on validation, epoch {result['best_epoch']})", result["test"])]
    if result.get("linear_head"):
        parts.append(("untouched backbone, linear head", result["linear_head"]))
    for label, part in parts:
        natural, robust = (_with_interval(*accuracy_counts(part, name)) for name in accuracy_names(result))
        rows.append(f"- {label}: natural {natural}, {attack} {robust}")
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
    restores = [metrics for metrics in history if metrics.get("restored")]
    if restores:
        back = ", ".join(f"{metrics['restored_epoch']} after epoch {metrics['epoch']}" for metrics in restores)
        text += f" Went back to the weights of epoch {back}."
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
