"""Every image has the outcome of a plain evaluation, whatever the number of workers, and also if some are lost."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import ray
from mlflow import MlflowClient

from distributed_autolora.config import ScalingConfig
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.data.images import ImageSource
from distributed_autolora.errors import RunFailedError, UserError
from distributed_autolora.evaluation.attacks import parse
from distributed_autolora.evaluation.chunks import Columns, cut, evaluate_chunk
from distributed_autolora.models.portable import read_model
from distributed_autolora.orchestration.cluster import connection
from distributed_autolora.orchestration.evaluations.evaluate import evaluate
from distributed_autolora.orchestration.evaluations.folder import EvaluationFolder, joined
from distributed_autolora.orchestration.evaluations.plan import Plan, make_plan
from distributed_autolora.orchestration.evaluations.worker import EvaluationTask
from distributed_autolora.orchestration.evaluations.worker_pool import Call, WorkerPool, gpu_index
from distributed_autolora.records import AccuracyCount, CurvePoint
from tests.orchestration.evaluations.shared import TEST_IMAGES, Material, outcomes, result, write_material
from tests.programs import ROOT, wait_for
from tests.security.watching import descendants
from tests.training.tasks import write_task


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Material]:
    """The files, in an output folder of their own, and one Ray for all tests of this file."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DISTRIBUTED_AUTOLORA_HOME", str(folder / "home"))
        environment.delenv("RAY_ADDRESS", raising=False)
        connection.connect(ScalingConfig(num_workers=2))
        yield write_material(folder)
    ray.shutdown()


@pytest.fixture(scope="module")
def evaluated(material: Material) -> Path:
    output = material.weights.parent / "evaluated"
    everything = {"sanity": True, "curve": True, "export": True, "register": "halves"}
    return evaluate(material.request(output, num_workers=2, **everything))


def busy_workers() -> list[int]:
    titles = {pid: Path(f"/proc/{pid}/cmdline") for pid in descendants(os.getpid())}
    return [
        pid for pid, file in titles.items() if file.exists() and file.read_bytes().startswith(b"ray::run_evaluator")
    ]


def tracking_status(output: Path) -> str:
    (note,) = output.glob("chunks/*/mlflow.json")
    known = json.loads(note.read_text())
    return str(MlflowClient(known["uri"]).get_run(known["run_id"]).info.status)


def test_workers_leave_what_a_plain_loop_over_the_chunks_leaves(material: Material, evaluated: Path) -> None:
    plan = make_plan(material.request(evaluated))
    model = read_model(material.weights).build()
    (x,) = plan.batches()
    plain = joined(
        [
            evaluate_chunk(
                model,
                x[chunk.start : chunk.stop],
                plan.table.labels[chunk.start : chunk.stop],
                threat_model=ThreatModel(epsilon=0.03),
                attacks=parse("pgd3x2,apgd-ce"),
                seed=chunk.seed,
            )
            for chunk in cut(TEST_IMAGES, 5, 0)
        ]
    )
    found = outcomes(evaluated)
    assert {name: found[name] for name in plain} == {name: values.tolist() for name, values in plain.items()}
    assert found["row"] == list(range(TEST_IMAGES))
    assert found["row_id"] == list(plan.table.row_ids)
    assert 0 < sum(found["robust/apgd-ce"]) < TEST_IMAGES, "the attack must break some images and not all"


def test_the_result_counts_what_the_outcomes_say(evaluated: Path) -> None:
    found, columns = result(evaluated), outcomes(evaluated)
    for attack in found.attacks:
        assert attack.robust == AccuracyCount(sum(columns[f"robust/{attack.name}"]), TEST_IMAGES)
    assert [attack.name for attack in found.attacks] == ["pgd3x2", "apgd-ce"]
    assert len(found.sanity) == 14
    assert found.curve is not None
    assert found.curve.points[0] == CurvePoint(0.0, found.natural)


def test_a_terminated_evaluation_continues_from_its_finished_chunks(
    material: Material, evaluated: Path, tmp_path: Path
) -> None:
    address = ray.get_runtime_context().gcs_address
    flags = ["--model", str(material.weights), "--data", material.task, "--attacks", "pgd3x2,apgd-ce"]
    flags += ["--epsilon", "3/100", "--chunk-size", "5", "--output", str(tmp_path), "--no-sanity", "--no-export"]
    process = subprocess.Popen(
        [sys.executable, "jobs/evaluate.py", *flags, "--num-workers", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: any(tmp_path.glob("chunks/*/chunk_*.parquet")), "the first chunk", 100)
    kept = list(tmp_path.glob("chunks/*/chunk_*.parquet"))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Finished chunks are kept" in said
    assert tracking_status(tmp_path) == "KILLED"
    assert not (tmp_path / "evaluation.json").exists(), "it must be stopped before its end"
    written = {file: file.stat().st_mtime_ns for file in kept}
    evaluate(material.request(tmp_path))
    assert outcomes(tmp_path) == outcomes(evaluated)
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert tracking_status(tmp_path) == "FINISHED"


def test_a_damaged_chunk_is_evaluated_again(material: Material, evaluated: Path, tmp_path: Path) -> None:
    plan = make_plan(material.request(tmp_path))
    kept = EvaluationFolder(evaluated, plan.folder.digest)
    plan.folder.chunks.mkdir(parents=True)
    for file in kept.chunks.glob("chunk_*.parquet"):
        (plan.folder.chunks / file.name).write_bytes(file.read_bytes())
    damaged = plan.folder.chunks / "chunk_00003.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    evaluate(material.request(tmp_path))
    assert outcomes(tmp_path) == outcomes(evaluated)


def calls_of(plan: Plan) -> list[Call]:
    return [Call(f"Chunk {chunk.index}", "chunk", (chunk,)) for chunk in plan.chunks()]


def test_with_one_of_two_workers_killed_every_chunk_has_the_same_numbers(
    material: Material, evaluated: Path, tmp_path: Path
) -> None:
    plan = make_plan(material.request(tmp_path))
    parts: dict[str, Columns] = {}
    killed: list[int] = []
    for call, (columns, _) in WorkerPool(plan.task, num_workers=2).run(calls_of(plan)):
        assert call.name not in parts
        parts[call.name] = columns
        if not killed and (killed := busy_workers()):
            os.kill(killed[0], signal.SIGKILL)
    assert killed
    found = joined([parts[call.name] for call in calls_of(plan)])
    expected = outcomes(evaluated)
    del expected["robust/worst_case"]  # of all chunks together, when they are written
    assert {name: values.tolist() for name, values in found.items()} == expected


class DeadlyTask(EvaluationTask):
    """Ends every process that opens its images."""

    def open_images(self) -> ImageSource:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_chunk_that_costs_three_workers_ends_the_evaluation(material: Material, tmp_path: Path) -> None:
    plan = make_plan(material.request(tmp_path))
    deadly = DeadlyTask(**vars(plan.task))
    with pytest.raises(RunFailedError, match="Chunk 0 was lost with its worker 3 times"):
        list(WorkerPool(deadly, num_workers=1).run(calls_of(plan)[:1]))


def test_a_cluster_without_room_for_a_worker_ends_the_evaluation(material: Material, tmp_path: Path) -> None:
    plan = make_plan(material.request(tmp_path))
    pool = WorkerPool(plan.task, num_workers=1, use_gpu=True, timeout_s=1.0)
    with pytest.raises(RunFailedError, match="no room for a worker for 1 s"):
        list(pool.run(calls_of(plan)))


def test_a_worker_uses_the_gpu_that_ray_assigned() -> None:
    assert [gpu_index("1", visible) for visible in (None, "", "3,1", "1")] == [1, 1, 1, 0]


def test_what_a_worker_refuses_is_one_line(material: Material, tmp_path: Path) -> None:
    plan = make_plan(material.request(tmp_path))
    Path(material.task, "test.parquet").rename(tmp_path / "test.parquet")
    try:
        with pytest.raises(UserError, match="test"):
            list(WorkerPool(plan.task, num_workers=1).run(calls_of(plan)))
        write_task(Path(material.task), train=60, test=TEST_IMAGES, seed=1)
        with pytest.raises(UserError, match="same files"):
            list(WorkerPool(plan.task, num_workers=1).run(calls_of(plan)))
    finally:
        write_task(Path(material.task), train=60, test=TEST_IMAGES)
        assert (tmp_path / "test.parquet").read_bytes() == Path(material.task, "test.parquet").read_bytes()


def test_a_subset_is_labelled_and_keeps_the_earlier_result(material: Material, tmp_path: Path) -> None:
    evaluate(material.request(tmp_path, images=6, attacks="fgsm"))
    first = result(tmp_path)
    evaluate(material.request(tmp_path, images=9, attacks="fgsm"))
    assert (first.test_images, first.test_images_available) == (6, TEST_IMAGES)
    assert result(tmp_path).test_images == 9
    (kept,) = tmp_path.glob("evaluation-*.json")
    assert first.digest.startswith(kept.stem.removeprefix("evaluation-"))


def test_two_evaluations_in_one_folder_do_not_run_at_once(tmp_path: Path) -> None:
    with EvaluationFolder(tmp_path, "a").held(), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        EvaluationFolder(tmp_path, "b").held().__enter__()
    with EvaluationFolder(tmp_path, "b").held():
        assert (tmp_path / "chunks" / "b").is_dir()


def test_mlflow_has_the_figures_the_files_and_the_registered_model(material: Material, evaluated: Path) -> None:
    home = Path(os.environ["DISTRIBUTED_AUTOLORA_HOME"])
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    (version,) = client.search_model_versions("name = 'halves'")
    assert version.run_id is not None
    run = client.get_run(version.run_id)
    found = result(evaluated).attack("apgd-ce")
    assert found is not None
    assert run.info.status == "FINISHED"
    assert run.data.metrics["evaluation/robust_accuracy_apgd-ce"] == found.robust.accuracy
    assert version.tags["evaluation.apgd-ce"] == found.label
    assert found.label in run.data.tags["mlflow.note.content"]
    files = {Path(file.path).name for file in client.list_artifacts(version.run_id)}
    assert files == {"evaluation.json", "outcomes.parquet", "model.safetensors", "model.pt2", "model_card.md"}


def test_an_export_that_was_checked_is_kept_and_a_damaged_one_is_written_and_checked_again(
    material: Material, evaluated: Path
) -> None:
    files = {name: evaluated / name for name in ("model.safetensors", "model.pt2")}
    request = material.request(evaluated, num_workers=2, sanity=True, curve=True, export=True)
    before = {name: (file.stat().st_ino, file.read_bytes()) for name, file in files.items()}
    evaluate(request)
    assert {name: (file.stat().st_ino, file.read_bytes()) for name, file in files.items()} == before
    files["model.safetensors"].write_bytes(before["model.safetensors"][1][:-1])
    evaluate(request)
    read_model(files["model.safetensors"])
    assert files["model.pt2"].stat().st_ino != before["model.pt2"][0], "both are checked again"


def test_a_model_is_registered_once_whatever_store_mlflow_was_last_told_of(
    material: Material, evaluated: Path, tmp_path: Path
) -> None:
    home = Path(os.environ["DISTRIBUTED_AUTOLORA_HOME"])
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'other.db'}")
    evaluate(material.request(evaluated, num_workers=2, sanity=True, curve=True, register="halves"))
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    assert [str(version.version) for version in client.search_model_versions("name = 'halves'")] == ["1"]


def test_a_registered_model_is_evaluated_by_its_uri(material: Material, evaluated: Path, tmp_path: Path) -> None:
    assert evaluated.is_dir()
    plan = make_plan(material.request(tmp_path, model="models:/halves/1"))
    assert plan.found.model.digest() == read_model(material.weights).digest()
    with pytest.raises(UserError, match="has no model models:/nothing/1"):
        make_plan(material.request(tmp_path, model="models:/nothing/1"))
