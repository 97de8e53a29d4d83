"""One evaluation from request to result: planned, judged by a pool of workers, kept, shown, published."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distributed_autolora.config import ScalingConfig
from distributed_autolora.console import print_line
from distributed_autolora.core.metrics import AccuracyCount
from distributed_autolora.data.splits import stratified_subset
from distributed_autolora.evaluation.chunks import Chunk, Columns
from distributed_autolora.evaluation.curve import expected_robustness
from distributed_autolora.orchestration.cluster import connection
from distributed_autolora.orchestration.evaluations.export import Tracking, publish
from distributed_autolora.orchestration.evaluations.folder import joined
from distributed_autolora.orchestration.evaluations.plan import Plan, make_plan
from distributed_autolora.orchestration.evaluations.pool import Pool
from distributed_autolora.orchestration.evaluations.progress import chunk_progress
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest
from distributed_autolora.orchestration.evaluations.result import counts_of, describe
from distributed_autolora.orchestration.evaluations.worker import SanityQuestion
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.reporting.evaluation import evaluation_table

_SANITY_IMAGES = 128


def evaluate(request: EvaluationRequest) -> Path:
    """Judges a model, continuing from the chunks that an earlier attempt finished, and prints the result.

    Args:
        request: what to judge and how.

    Returns:
        The folder with evaluation.json and outcomes.parquet.

    Raises:
        UserError: for bad input, before any work starts wherever it can be known.
        RunFailedError: for lost workers beyond the limit, or an export that computes something else.
    """
    plan = make_plan(request)
    with plan.folder.held(), Tracking(plan) as tracking:
        result = plan.folder.result()
        if result is None or not _complete(result, request):
            result = _judge(plan)
        print(f"\n{evaluation_table(result)}\n\nResults: {plan.place}", flush=True)
        publish(plan, result, tracking)
    return plan.folder.path


def evaluate_run(
    folder: RunFolder,
    *,
    attacks: str,
    num_workers: int,
    use_gpu: bool = False,
    sanity: bool = False,
    images: int | None = None,
) -> Path:
    """Judges the model of a finished run on its own test images, and logs the result to the run in MLflow.

    Args:
        folder: the run.
        attacks: names separated by commas.
        num_workers: processes that judge.
        use_gpu: one GPU for each.
        sanity: also check the attacks and the model.
        images: judge a stratified subset of this many; None: all.

    Returns:
        The folder with evaluation.json and outcomes.parquet: RUN/evaluation, or RUN/evaluation-N-images for a subset.

    Raises:
        UserError: for an unfinished run, or data that are no longer there.
        RunFailedError: for lost workers beyond the limit.
    """
    return evaluate(
        EvaluationRequest(
            model=str(folder.path),
            attacks=attacks,
            num_workers=num_workers,
            use_gpu=use_gpu,
            sanity=sanity,
            images=images,
            cache=folder.config().scaling.cache,
            export=False,
        )
    )


def _complete(result: dict[str, Any], request: EvaluationRequest) -> bool:
    """Tells whether a kept result has all that is asked for."""
    return (bool(result["sanity"]) or not request.sanity) and ("curve" in result or not request.curve)


def _judge(plan: Plan) -> dict[str, Any]:
    """Judges what is missing, and writes and returns the result."""
    request, folder, chunks = plan.request, plan.folder, plan.chunks()
    start = time.perf_counter()
    done = {chunk.index: found for chunk in chunks if (found := folder.read_chunk(chunk)) is not None}
    missing = [chunk for chunk in chunks if chunk.index not in done]
    _announce(plan, len(chunks), len(done))
    wanted = {"curve": request.curve, "sanity": request.sanity}
    notes = {name: folder.read_note(name) for name, is_wanted in wanted.items() if is_wanted}
    if missing or None in notes.values():
        with _pool(plan, len(missing) or len(chunks)) as pool:
            done |= _judge_chunks(plan, pool, missing, len(chunks))
            if "curve" in notes and notes["curve"] is None:
                notes["curve"] = _curve(pool, chunks)
                folder.write_note("curve", notes["curve"])
            if "sanity" in notes and notes["sanity"] is None:
                outcomes = joined([done[chunk.index][0] for chunk in chunks])
                notes["sanity"] = _sanity(plan, pool, outcomes)
                folder.write_note("sanity", notes["sanity"])
    outcomes = joined([done[chunk.index][0] for chunk in chunks])
    seconds = {"chunks": sum(taken for _, taken in done.values()), "wall": time.perf_counter() - start}
    result = describe(plan, outcomes, seconds, notes.get("sanity") or [], notes.get("curve"))
    folder.write_result(result, outcomes)
    return {**result, "digest": folder.digest}


@contextmanager
def _pool(plan: Plan, tasks: int) -> Iterator[Pool]:
    """Connects to Ray and starts the workers, no more than there are tasks."""
    request = plan.request
    num_workers = min(request.num_workers, tasks)
    patience = request.wait_for_resources_s
    scaling = ScalingConfig(num_workers=num_workers, use_gpu=request.use_gpu, wait_for_resources_s=patience)
    connection.connect(scaling)
    connection.wait_for_resources(scaling)
    with Pool(plan.assignment, num_workers=num_workers, use_gpu=request.use_gpu, start_timeout_s=patience) as pool:
        yield pool


def _judge_chunks(plan: Plan, pool: Pool, missing: list[Chunk], in_all: int) -> dict[int, tuple[Columns, float]]:
    """Judges chunks and keeps each as soon as it is there."""
    by_index = {chunk.index: chunk for chunk in missing}
    found: dict[int, tuple[Columns, float]] = {}
    if not missing:
        return found
    with chunk_progress(in_all, in_all - len(missing)) as say:
        for index, (columns, seconds) in pool.work_off([(chunk.index, "chunk", chunk) for chunk in missing]):
            plan.folder.write_chunk(by_index[index], columns, seconds)
            found[index] = columns, seconds
            say(index, counts_of(columns), seconds)
    return found


def _curve(pool: Pool, chunks: tuple[Chunk, ...]) -> dict[str, Any]:
    """Returns the points of the curve over all images, and its mean."""
    sums: dict[float, AccuracyCount] = {}
    for _, counts in pool.work_off([(f"curve {chunk.index}", "curve", chunk) for chunk in chunks]):
        for epsilon, count in counts.items():
            sums[epsilon] = sums.get(epsilon, AccuracyCount()) + count
    points = [
        {"epsilon": epsilon, "correct": sums[epsilon].correct, "total": sums[epsilon].total} for epsilon in sorted(sums)
    ]
    return {"points": points, "expected_robustness": expected_robustness(sums)}


def _sanity(plan: Plan, pool: Pool, outcomes: Columns) -> list[dict[str, Any]]:
    rows = torch.tensor(plan.assignment.rows)
    subset = stratified_subset(plan.table.labels[rows], min(_SANITY_IMAGES, len(rows)), plan.request.seed)
    question = SanityQuestion(rows=tuple(rows[subset].tolist()), accuracies=counts_of(outcomes), seed=plan.request.seed)
    print_line(f"Checking attacks and model on {len(subset)} images.")
    ((_, checks),) = pool.work_off([("The sanity check", "sanity", question)])
    return list(checks)


def _announce(plan: Plan, in_all: int, done: int) -> None:
    attacks = ", ".join(attack.name for attack in plan.assignment.attacks)
    chunks = f"{in_all} chunk{'' if in_all == 1 else 's'}"
    state = f"continues after {done} of {chunks}" if done else f"starts, {chunks}"
    print_line(f'Evaluation of "{plan.found.name}" by {attacks} {state}, in {plan.place}')
