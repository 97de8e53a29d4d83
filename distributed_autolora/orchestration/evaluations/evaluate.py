"""One evaluation from request to result: planned, run by a pool of workers, kept, shown, exported."""

from __future__ import annotations

import time
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
from distributed_autolora.orchestration.evaluations.export import Tracking, export
from distributed_autolora.orchestration.evaluations.folder import joined
from distributed_autolora.orchestration.evaluations.plan import Plan, make_plan
from distributed_autolora.orchestration.evaluations.progress import chunk_progress
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest
from distributed_autolora.orchestration.evaluations.result import counts_of, describe
from distributed_autolora.orchestration.evaluations.worker_pool import Call, WorkerPool
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.reporting.evaluation import evaluation_table

_SANITY_IMAGES = 128


def evaluate(request: EvaluationRequest, run: RunFolder | None = None) -> Path:
    """Evaluates a model, resuming from the chunks that an earlier attempt finished, and prints the result.

    Args:
        request: the model, the attacks, and the rest of the flags.
        run: the finished run whose model it is; None: found by `request.model`, or no run.

    Returns:
        The folder with evaluation.json and outcomes.parquet.

    Raises:
        UserError: for bad input, before any work starts wherever it can be known.
        RunFailedError: for lost workers beyond the limit, or an export that computes something else.
    """
    plan = make_plan(request, run)
    with plan.folder.held(), Tracking(plan) as tracking:
        result = plan.folder.result()
        if result is None or not _complete(result, request):
            result = _evaluate(plan)
        print(f"\n{evaluation_table(result)}\n\nResults: {plan.place}", flush=True)
        export(plan, result, tracking)
    return plan.folder.path


def evaluate_run(
    run: RunFolder,
    *,
    attacks: str,
    num_workers: int,
    use_gpu: bool = False,
    sanity: bool = False,
    images: int | None = None,
) -> Path:
    """Evaluates the model of a finished run on its own test images, and logs the result to the run in MLflow.

    Args:
        run: the run.
        attacks: names separated by commas.
        num_workers: worker processes.
        use_gpu: one GPU for each.
        sanity: also check the attacks and the model.
        images: a stratified subset of this many; None: all.

    Returns:
        The folder with evaluation.json and outcomes.parquet: RUN/evaluation, or RUN/evaluation-N-images for a subset.

    Raises:
        UserError: for data that are no longer there.
        RunFailedError: for lost workers beyond the limit.
    """
    request = EvaluationRequest(
        model=str(run.path),
        attacks=attacks,
        num_workers=num_workers,
        use_gpu=use_gpu,
        sanity=sanity,
        images=images,
        cache=run.config().scaling.cache,
        export=False,
    )
    return evaluate(request, run)


def _complete(result: dict[str, Any], request: EvaluationRequest) -> bool:
    """Tells whether a kept result has all that is asked for."""
    return (bool(result["sanity"]) or not request.sanity) and ("curve" in result or not request.curve)


def _evaluate(plan: Plan) -> dict[str, Any]:
    """Evaluates what is missing, and writes and returns the result."""
    request, folder, chunks = plan.request, plan.folder, plan.chunks()
    start = time.perf_counter()
    done = {chunk.index: found for chunk in chunks if (found := folder.read_chunk(chunk)) is not None}
    missing = [chunk for chunk in chunks if chunk.index not in done]
    _announce(plan, len(chunks), len(done))
    wanted = {"curve": request.curve, "sanity": request.sanity}
    notes = {name: folder.read_note(name) for name, is_wanted in wanted.items() if is_wanted}
    if missing or None in notes.values():
        pool = _connected_pool(plan, len(missing) or len(chunks))
        done |= _evaluate_chunks(plan, pool, missing, len(chunks))
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


def _connected_pool(plan: Plan, calls: int) -> WorkerPool:
    """Connects to Ray, and returns a pool of as many workers as were asked for, but no more than there are calls."""
    request = plan.request
    num_workers, timeout_s = min(request.num_workers, calls), request.wait_for_resources_s
    scaling = ScalingConfig(num_workers=num_workers, use_gpu=request.use_gpu, wait_for_resources_s=timeout_s)
    connection.connect(scaling)
    connection.wait_for_resources(scaling)
    return WorkerPool(plan.task, num_workers=num_workers, use_gpu=request.use_gpu, timeout_s=timeout_s)


def _evaluate_chunks(
    plan: Plan, pool: WorkerPool, missing: list[Chunk], in_all: int
) -> dict[int, tuple[Columns, float]]:
    """Evaluates chunks and keeps each as soon as it is there."""
    found: dict[int, tuple[Columns, float]] = {}
    if not missing:
        return found
    with chunk_progress(in_all, in_all - len(missing)) as say:
        calls = [Call(f"Chunk {chunk.index}", "chunk", (chunk,)) for chunk in missing]
        for call, (columns, seconds) in pool.run(calls):
            (chunk,) = call.arguments
            plan.folder.write_chunk(chunk, columns, seconds)
            found[chunk.index] = columns, seconds
            say(chunk.index, counts_of(columns), seconds)
    return found


def _curve(pool: WorkerPool, chunks: tuple[Chunk, ...]) -> dict[str, Any]:
    """Returns the points of the curve over all images, and its mean."""
    sums: dict[float, AccuracyCount] = {}
    for _, counts in pool.run([Call(f"The curve of chunk {chunk.index}", "curve", (chunk,)) for chunk in chunks]):
        for epsilon, count in counts.items():
            sums[epsilon] = sums.get(epsilon, AccuracyCount()) + count
    points = [
        {"epsilon": epsilon, "correct": sums[epsilon].correct, "total": sums[epsilon].total} for epsilon in sorted(sums)
    ]
    return {"points": points, "expected_robustness": expected_robustness(sums)}


def _sanity(plan: Plan, pool: WorkerPool, outcomes: Columns) -> list[dict[str, Any]]:
    rows = torch.tensor(plan.task.rows)
    subset = stratified_subset(plan.table.labels[rows], min(_SANITY_IMAGES, len(rows)), plan.request.seed)
    print_line(f"Checking attacks and model on {len(subset)} images.")
    arguments = tuple(rows[subset].tolist()), counts_of(outcomes), plan.request.seed
    ((_, checks),) = pool.run([Call("The sanity check", "sanity", arguments)])
    return list(checks)


def _announce(plan: Plan, in_all: int, done: int) -> None:
    attacks = ", ".join(attack.name for attack in plan.task.attacks)
    chunks = f"{in_all} chunk{'' if in_all == 1 else 's'}"
    state = f"resumes after {done} of {chunks}" if done else f"starts, {chunks}"
    print_line(f'Evaluation of "{plan.found.name}" by {attacks} {state}, in {plan.place}')
