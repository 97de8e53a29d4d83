"""One evaluation from request to result: planned, run by a pool of workers, kept, shown, exported."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from distributed_autolora.config import ScalingConfig
from distributed_autolora.console import print_line
from distributed_autolora.data.splits import stratified_subset
from distributed_autolora.evaluation.chunks import Chunk, Columns
from distributed_autolora.evaluation.curve import expected_robustness
from distributed_autolora.models.portable import PortableModel
from distributed_autolora.orchestration.cluster import connection
from distributed_autolora.orchestration.evaluations.description import counts_of, described, with_worst_case
from distributed_autolora.orchestration.evaluations.export import export
from distributed_autolora.orchestration.evaluations.folder import OUTCOMES_FILE, RESULT_FILE, joined
from distributed_autolora.orchestration.evaluations.plan import Plan, make_plan
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest
from distributed_autolora.orchestration.evaluations.tracking import track, tracked_run
from distributed_autolora.orchestration.evaluations.transfer import ADVERSARIAL_FILE, COLUMN
from distributed_autolora.orchestration.evaluations.worker_pool import Call, ThisProcess, WorkerPool
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.progress import ProgressBar
from distributed_autolora.records import (
    AccuracyCount,
    Curve,
    CurvePoint,
    Evaluation,
    SanityCheck,
)
from distributed_autolora.reporting.corruptions import CORRUPTIONS_FIGURE, save_figure
from distributed_autolora.reporting.evaluation import chunk_line, evaluation_table

_SANITY_IMAGES = 128


def evaluate(request: EvaluationRequest, run: RunFolder | None = None, model: PortableModel | None = None) -> Path:
    """Evaluates a model, resuming after the chunks that an earlier attempt finished, and prints the result.

    The run is the finished one whose model it is; None: found by `request.model`, or no run. A `model` is evaluated
    instead, under the name `request.model`. Returns the folder with
    evaluation.json and outcomes.parquet.

    Raises:
        UserError: for bad input, before any work starts wherever it can be known.
        RunFailedError: for lost workers beyond the limit, or an export that computes something else.
    """
    plan = make_plan(request, run, model)
    with plan.folder.held(), tracked_run(plan) as tracked:
        evaluation = _evaluate(plan, plan.folder.result())
        print(f"\n{evaluation_table(evaluation)}\n\nResults: {plan.place}", flush=True)
        files = [plan.folder.path / RESULT_FILE, plan.folder.path / OUTCOMES_FILE]
        if evaluation.corruptions:
            files.append(save_figure(plan.folder.path / CORRUPTIONS_FIGURE, evaluation))
        if request.save_adversarial:
            print_line(f"Adversarial images: {ADVERSARIAL_FILE}")
        if request.export:
            exported = export(plan, evaluation)
            print_line(f"Exported: {', '.join(file.name for file in exported)}")
            files += exported
        track(plan, evaluation, files, tracked)
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

    The other arguments are flags of `EvaluationRequest`; the folder is RUN/evaluation, or RUN/evaluation-N-images for a
    subset. Returns and raises as `evaluate`.
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


def _evaluate(plan: Plan, evaluation: Evaluation | None) -> Evaluation:
    """Evaluates what an earlier attempt, if there was one, left out; keeps each part as soon as it is there."""
    request, folder, chunks = plan.request, plan.folder, plan.chunks()
    wants_curve = request.curve and (evaluation is None or evaluation.curve is None)
    wants_sanity = request.sanity and (evaluation is None or not evaluation.sanity)
    if evaluation is not None and not wants_curve and not wants_sanity:
        return evaluation
    start = time.perf_counter()
    done = {chunk.index: found for chunk in chunks if (found := folder.read_chunk(chunk)) is not None}
    missing = [chunk for chunk in chunks if chunk.index not in done]
    _announce(plan, len(chunks), len(done))
    if missing or wants_curve or wants_sanity:
        pool = _connected_pool(plan, len(missing) or len(chunks))
        done |= _evaluate_chunks(plan, pool, missing, len(chunks))
    names = [attack.name for attack in plan.task.attacks]
    outcomes = with_worst_case(joined([done[chunk.index][0] for chunk in chunks]), names)
    if plan.task.save_adversarial:
        plan.write_adversarial(outcomes)
        del outcomes[COLUMN]

    result = described(plan, outcomes, chunk_seconds=sum(seconds for _, seconds in done.values()))
    if evaluation is not None:
        result = replace(result, curve=evaluation.curve, sanity=evaluation.sanity)
    folder.write_result(result, outcomes)
    if wants_curve:
        result = replace(result, curve=_curve(pool, chunks))
        folder.write_result(result, outcomes)
    if wants_sanity:
        result = replace(result, sanity=_sanity(plan, pool, outcomes))
    result = replace(result, wall_seconds=time.perf_counter() - start)
    folder.write_result(result, outcomes)
    return result


def _connected_pool(plan: Plan, calls: int) -> WorkerPool | ThisProcess:
    """Connects to Ray; the pool has as many workers as were asked for, but no more than there are calls."""
    request = plan.request
    if request.num_workers == 0:
        return ThisProcess(plan.task, use_gpu=request.use_gpu)
    num_workers, timeout_s = min(request.num_workers, calls), request.wait_for_resources_s
    scaling = ScalingConfig(num_workers=num_workers, use_gpu=request.use_gpu, wait_for_resources_s=timeout_s)
    connection.connect(scaling)
    connection.wait_for_resources(scaling)
    return WorkerPool(plan.task, num_workers=num_workers, use_gpu=request.use_gpu, timeout_s=timeout_s)


def _evaluate_chunks(
    plan: Plan, pool: WorkerPool | ThisProcess, missing: list[Chunk], in_all: int
) -> dict[int, tuple[Columns, float]]:
    found: dict[int, tuple[Columns, float]] = {}
    if not missing:
        return found
    before, start, images = in_all - len(missing), time.monotonic(), sum(chunk.stop - chunk.start for chunk in missing)
    with ProgressBar("chunk", in_all, before) as bar:
        calls = [Call(f"Chunk {chunk.index}", "chunk", (chunk,)) for chunk in missing]
        for call, (columns, seconds) in pool.run(calls):
            (chunk,) = call.arguments
            plan.folder.write_chunk(chunk, columns, seconds)
            found[chunk.index] = columns, seconds
            done = before + len(found)
            left = (time.monotonic() - start) * (images / sum(len(own["row"]) for own, _ in found.values()) - 1)
            print_line(chunk_line(done, in_all, chunk.index, counts_of(columns), seconds, left))
            bar.show(done)
    return found


def _curve(pool: WorkerPool | ThisProcess, chunks: tuple[Chunk, ...]) -> Curve:
    sums: dict[float, AccuracyCount] = {}
    for _, counts in pool.run([Call(f"The curve of chunk {chunk.index}", "curve", (chunk,)) for chunk in chunks]):
        for epsilon, count in counts.items():
            sums[epsilon] = sums.get(epsilon, AccuracyCount()) + count
    points = tuple(CurvePoint(epsilon, sums[epsilon]) for epsilon in sorted(sums))
    return Curve(points, expected_robustness(sums))


def _sanity(plan: Plan, pool: WorkerPool | ThisProcess, outcomes: Columns) -> tuple[SanityCheck, ...]:
    rows = torch.tensor(plan.task.rows)
    subset = stratified_subset(plan.table.labels[rows], min(_SANITY_IMAGES, len(rows)), plan.request.seed)
    print_line(f"Checking attacks and model on {len(subset)} images.")
    arguments = tuple(rows[subset].tolist()), counts_of(outcomes), plan.request.seed
    ((_, checks),) = pool.run([Call("The sanity check", "sanity", arguments)])
    return tuple(checks)


def _announce(plan: Plan, in_all: int, done: int) -> None:
    attacks = ", ".join(name.strip() for name in plan.request.attacks.split(","))
    chunks = f"{in_all} chunk{'' if in_all == 1 else 's'}"
    state = f"resumes after {done} of {chunks}" if done else f"starts, {chunks}"
    print_line(f'Evaluation of "{plan.found.name}" by {attacks} {state}, in {plan.place}')
    if plan.task.label_map is not None:
        print_line("The images' classes are in another order than the model's: labels are matched by name.")
