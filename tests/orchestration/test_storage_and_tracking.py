"""A disk that is full, read-only or gone, and a tracking server that is away: what happens is defined."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from distributed_autolora.config.experiment import config_text, read_config
from distributed_autolora.errors import RunFailedError, UserError
from distributed_autolora.evaluation.chunks import Chunk
from distributed_autolora.files import write_json
from distributed_autolora.models import save_weights
from distributed_autolora.models.export import export_model, export_program
from distributed_autolora.models.portable import NetworkDescription, PortableModel
from distributed_autolora.orchestration.evaluations.folder import EvaluationFolder
from distributed_autolora.orchestration.mlflow_tracking import MetricWriter, TrackingError, connect, open_run
from distributed_autolora.orchestration.runs.folder import RunFolder, check_writable
from distributed_autolora.orchestration.runs.results import _save_figure
from distributed_autolora.reporting.study.report import write_report
from tests.orchestration.mlflow_tracking.tracking_server import TrackingServer, assert_each_point_once
from tests.orchestration.runs.test_survival import assert_as_uninterrupted, driver, epochs_of, write_config
from tests.programs import wait_for
from tests.reporting import runs
from tests.reporting.evaluations import evaluation
from tests.reporting.study import studies


def mount(*words: str) -> bool:
    """Mounts something, and tells whether that worked."""
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


class Disk:
    """A disk of its own in memory, which can be filled, made read-only and taken away."""

    def __init__(self, folder: Path, mebibytes: int) -> None:
        self.folder, self._size = folder, f"size={mebibytes}m"
        folder.mkdir()
        self.is_there = mount("-t", "tmpfs", "-o", self._size, "tmpfs", str(folder))

    def fill(self) -> None:
        with (self.folder / "ballast").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(2**20)) == 2**20:
                    pass
            except OSError:
                return

    def free(self) -> None:
        """Gives back what `fill` took."""
        (self.folder / "ballast").unlink()

    def allow_writing(self, allowed: bool) -> None:
        """Mounts it again, writable or not; a file that is open for writing does not hinder that."""
        option = f"remount,{'rw' if allowed else 'ro'},{self._size}"
        wait_for(lambda: mount("-o", option, str(self.folder)), option, 20)

    def remove(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)


@contextmanager
def mounted(folder: Path, mebibytes: int) -> Iterator[Disk]:
    disk = Disk(folder, mebibytes)
    if not disk.is_there:
        pytest.skip("this process may not mount a disk of its own (it takes root and CAP_SYS_ADMIN)")
    try:
        yield disk
    finally:
        disk.remove()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", 4) as small:
        yield small


def test_a_nearly_full_disk_is_refused_before_a_run_starts(disk: Disk) -> None:
    with pytest.raises(UserError, match=r"less than 200 MiB free.*--output") as refused:
        check_writable(disk.folder / "runs")
    assert "\n" not in str(refused.value)


def test_a_read_only_disk_is_refused_before_a_run_starts(disk: Disk) -> None:
    (disk.folder / "runs").mkdir()
    disk.allow_writing(False)
    for folder in (disk.folder / "runs", disk.folder / "new"):
        with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\)") as refused:
            check_writable(folder)
        assert "--output" in str(refused.value)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "records.json": lambda path, value: write_json(path, {"text": "x" * 5000, "value": value}),
    "tensors.safetensors": lambda path, value: save_weights({"w": torch.full((5000,), float(value))}, path),
    "chunk_00000.parquet": lambda path, value: chunks_in(path.parent).write_chunk(
        Chunk(0, 0, 2000, 0), {"label": np.random.default_rng(value).integers(9, size=2000)}, 1.0
    ),
    "curves.png": lambda path, value: _save_figure(Figure(figsize=(value, 1)), path),
}


def chunks_in(folder: Path) -> EvaluationFolder:
    evaluation = EvaluationFolder(folder, "digest")
    evaluation.chunks = folder
    return evaluation


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_on_a_full_disk_stays_the_old_one_or_becomes_the_new_one(disk: Disk, name: str) -> None:
    path, write = disk.folder / name, WRITERS[name]
    write(path, 1)
    before = path.read_bytes()
    disk.fill()
    with pytest.raises(RunFailedError, match="No space left on device") as failed:
        write(path, 2)
    assert "\n" not in str(failed.value)
    assert path.read_bytes() == before
    assert {file.name for file in disk.folder.iterdir()} == {name, "ballast"}, "an unfinished file is left"
    disk.free()
    write(path, 2)
    assert path.read_bytes() != before


def test_a_result_on_a_full_disk_leaves_the_earlier_one_under_its_digest(disk: Disk) -> None:
    first, second = (EvaluationFolder(disk.folder, digest) for digest in ("a" * 64, "b" * 64))
    first.write_result(evaluation(digest="a" * 64), {"label": np.zeros(5)})
    disk.fill()
    with pytest.raises(RunFailedError, match=r"outcomes\.parquet cannot be written \(.*No space left on device\)"):
        second.write_result(evaluation(digest="b" * 64), {"label": np.ones(5)})
    assert second.result() is None
    kept = {file.name for file in disk.folder.iterdir()} - {"ballast"}
    assert kept == {"evaluation-aaaaaaaa.json", "outcomes-aaaaaaaa.parquet"}
    disk.free()
    second.write_result(evaluation(digest="b" * 64), {"label": np.ones(5)})
    assert second.result() == evaluation(digest="b" * 64)


def test_an_export_on_a_full_disk_is_refused_in_one_line_and_leaves_nothing(disk: Disk) -> None:
    description = NetworkDescription(backbone="small_resnet", num_classes=3, mean=(0.2,), std=(0.3,))
    model = PortableModel(description, description.build().backbone.state_dict())
    disk.fill()
    with pytest.raises(RunFailedError, match=r"model.* cannot be written \(.*No space left on device"):
        export_model(model, disk.folder, [torch.rand(2, 1, 8, 8)])
    with pytest.raises(RunFailedError, match=r"model\.pt2 cannot be written \(No space left on device\)"):
        export_program(model.build(), torch.rand(2, 1, 8, 8), disk.folder / "model.pt2")
    assert {file.name for file in disk.folder.iterdir()} == {"ballast"}


def test_a_report_on_a_full_disk_leaves_the_earlier_one_and_is_refused_in_one_line(disk: Disk) -> None:
    study = studies.study(disk.folder / "study", seeds=1, images=40)
    report = write_report(study)
    before = {file.name: file.read_bytes() for file in report.parent.iterdir()}
    disk.fill()
    with pytest.raises(RunFailedError, match=r"report/\S+ cannot be written \(.*No space left on device") as failed:
        write_report(study)
    assert "\n" not in str(failed.value)
    assert {file.name: file.read_bytes() for file in report.parent.iterdir()} == before


def test_a_disk_that_goes_read_only_leaves_every_file_whole(disk: Disk) -> None:
    path = disk.folder / "records.json"
    write_json(path, {"value": 1})
    disk.allow_writing(False)
    with pytest.raises(RunFailedError, match="Read-only file system"):
        write_json(path, {"value": 2})
    disk.allow_writing(True)
    assert json.loads(path.read_text()) == {"value": 1}
    write_json(path, {"value": 2})
    assert {file.name for file in disk.folder.iterdir()} == {"records.json"}


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=r"gone/records\.json cannot be written \(No such file"):
        write_json(tmp_path / "gone" / "records.json", {})
    with pytest.raises(UserError, match=r"run\.json cannot be read"):
        RunFolder(tmp_path / "gone").read("run.json")


def test_metrics_that_a_full_disk_refused_are_written_once_when_there_is_space(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with mounted(tmp_path / "disk", 8) as disk:
        uri = f"sqlite:///{disk.folder}/mlflow.db"
        run_id = open_run(uri=uri, experiment="e", run_name="r", params={}, tags={}, run_id=None, home=disk.folder)
        history = runs.history(40)
        writer = MetricWriter(uri, run_id, retry_after_s=0.0)
        assert writer.write(history[:2])
        disk.fill()
        assert not writer.write(history)
        with pytest.raises(
            TrackingError, match=r"did not take everything \(its disk (is full|cannot be read or written)\)"
        ):
            writer.send(history)
        assert "Traceback" not in "".join(capfd.readouterr())
        disk.free()
        assert writer.write(history)
        assert_each_point_once(uri, run_id, history)


# --- in the middle of a real run


def full(disk: Disk, _: Path) -> Callable[[], None]:
    disk.fill()
    return disk.free


def vanished(disk: Disk, elsewhere: Path) -> Callable[[], None]:
    def move(source: Path, target: Path) -> None:
        assert mount("--move", str(source), str(target))

    move(disk.folder, elsewhere)
    return partial(move, elsewhere, disk.folder)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("trouble", [full, vanished])
def test_a_run_whose_disk_fails_says_so_and_is_continued_by_the_same_command(
    tmp_path: Path, trouble: Callable[[Disk, Path], Callable[[], None]]
) -> None:
    write_config(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    mount("--make-rprivate", "/")
    with mounted(tmp_path / "home", 260) as disk:
        folder = disk.folder / "runs" / "mine"
        with driver(tmp_path, subprocess.STDOUT) as process:
            wait_for(lambda: epochs_of(folder / "history.json") >= 1, "epoch 1", 250)
            end = trouble(disk, elsewhere)
            output, _ = process.communicate(timeout=280)
        assert process.returncode in (1, 2), output
        assert "Traceback" not in output
        end()
        assert 1 <= epochs_of(folder / "history.json") < 6, "the disk must fail before the end of the run"
        with driver(tmp_path, subprocess.STDOUT) as process:
            output, _ = process.communicate(timeout=280)
        assert process.returncode == 0, output
        assert_as_uninterrupted(folder, tmp_path / "task", tmp_path / "checkpoints")


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("returns", ["during the run", "after it"])
def test_a_run_goes_on_without_its_tracking_server_and_loses_nothing(tmp_path: Path, returns: str) -> None:
    write_config(tmp_path)
    (tmp_path / "server").mkdir()
    server = TrackingServer(tmp_path / "server")
    server.start()
    config = read_config(tmp_path / "config.yaml")
    config = replace(config, run=replace(config.run, mlflow_uri=server.uri))
    (tmp_path / "config.yaml").write_text(config_text(config))
    folder = tmp_path / "home" / "runs" / "mine"
    try:
        with driver(tmp_path, subprocess.STDOUT) as process:
            wait_for(lambda: epochs_of(folder / "history.json") >= 1, "epoch 1", 250)
            server.kill()
            if returns == "during the run":
                wait_for(lambda: epochs_of(folder / "history.json") >= 3, "epoch 3")
                server.start()
            process.communicate(timeout=280)
        assert process.returncode == 0
        if returns == "after it":
            assert not RunFolder(folder).result().tracked
            server.start()
        # Also where the run was over before the server had started.
        if not RunFolder(folder).result().tracked:
            with driver(tmp_path, subprocess.STDOUT) as process:
                process.communicate(timeout=280)
            assert process.returncode == 0
        result = RunFolder(folder).result()
        assert result.tracked
        run_id = result.mlflow.run_id
        run = connect(server.uri).get_run(run_id)
        assert run.info.status == "FINISHED"
        for record in RunFolder(folder).history():
            found = connect(server.uri).get_metric_history(run_id, "lr")
            assert [metric.step for metric in found].count(record.epoch) == 1
    finally:
        server.kill()
