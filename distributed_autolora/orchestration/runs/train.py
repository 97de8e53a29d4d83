"""One training run from a config to its result: found or created, trained on Ray, evaluated, tracked."""

import logging
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distributed_autolora.config import ExperimentConfig, output_home
from distributed_autolora.console import command_or_call, print_line, switch
from distributed_autolora.data.catalog import lasting_location
from distributed_autolora.errors import UserError
from distributed_autolora.files import claimed, write_json
from distributed_autolora.orchestration.cluster.processes import uninterrupted
from distributed_autolora.orchestration.runs.folder import RunFolder, check_writable
from distributed_autolora.orchestration.runs.names import (
    find_run,
    is_precision_open,
    next_run,
    run_name,
    with_precision,
)
from distributed_autolora.orchestration.runs.preflight import Inputs, check_inputs, find_inputs
from distributed_autolora.reporting.run.table import result_table

if TYPE_CHECKING:
    from distributed_autolora.orchestration.runs.results import FinishedRun

_log = logging.getLogger(__name__)


def train_run(
    config: ExperimentConfig,
    *,
    fresh: bool = False,
    checked: bool = False,
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[Any] = (),
    in_process: bool = False,
) -> "FinishedRun":
    """Starts, resumes or just shows the run that a config describes.

    With `checked` the inputs were looked at already, as those of a study are. With `in_process` this process trains,
    without Ray, as the only worker.

    Raises:
        UserError: for bad input, before any work starts wherever it can be known.
    """
    if in_process:
        config = replace(config, scaling=replace(config.scaling, num_workers=1, max_workers=None))
    _log.info("Finding the inputs.")
    config, inputs = find_inputs(config)
    found = None if fresh else find_run(config)
    if found is not None and found[1].is_finished():
        return _show_finished(found[1])
    with ExitStack() as stack, ExitStack() as starting:
        _claim(run_name(config), output_home(config.run) / "runs", starting)
        found = None if fresh else find_run(config)
        if found is None:
            _log.info("Checking the inputs.")
            for warning in [] if checked else check_inputs(config, inputs):
                print(f"warning: {warning}", file=sys.stderr)
        else:
            config, folder = found
            _acquire(folder, stack)
            _check_checkpoints(folder, in_process)
        _connect(config, None if found is None else _known_tracking(folder).get("uri"), in_process)
        if found is None:
            config, folder = _new_run(config, fresh, in_process, stack)
        if folder.is_finished():
            return _show_finished(folder)
        name, config = run_name(config), replace(config, run=replace(config.run, name=folder.name))
        if not folder.exists():
            folder.create(config, name)
        starting.close()
        return _train(config, folder, inputs, dict(tags or {}), callbacks, in_process)


def _check_checkpoints(folder: RunFolder, in_process: bool) -> None:
    """Refuses to resume a run of Ray in this process, or the other way round: neither reads the other's checkpoints."""
    own = any((folder.path / name).exists() for name in ("in_process", "in_process.new"))
    if in_process and not own and (folder.path / "train").exists():
        raise UserError(f'Run "{folder.name}" was started on Ray: resume it without {switch("in_process")}.')
    if own and not in_process:
        raise UserError(f'Run "{folder.name}" was started in one process: resume it with {switch("in_process")}.')


def _claim(name: str, runs: Path, starting: ExitStack) -> None:
    """Claims a run's name before anything slow: the same command may be started twice within these seconds."""
    check_writable(runs)
    what, otherwise = f'Run "{name}"', "give another --name"
    starting.enter_context(claimed(runs / f".{name}.starting", what=what, otherwise=otherwise, elsewhere="--output"))


def _acquire(folder: RunFolder, stack: ExitStack) -> None:
    folder.acquire()
    stack.callback(folder.release)
    folder.history()


def _connect(config: ExperimentConfig, tracking_uri: str | None, in_process: bool) -> None:
    """Connects to Ray, waits for the workers' resources, and meanwhile makes MLflow's store: either takes seconds."""
    from distributed_autolora.orchestration import mlflow_tracking
    from distributed_autolora.orchestration.cluster import connection

    if in_process:
        mlflow_tracking.reach_store(tracking_uri or _tracking_uri(config))
        return
    _log.info("Connecting to Ray.")
    with ThreadPoolExecutor(1) as background:
        store = background.submit(mlflow_tracking.reach_store, tracking_uri or _tracking_uri(config))
        connection.connect(config.scaling)
        _log.info("Waiting for resources.")
        connection.wait_for_resources(config.scaling)
    store.result()


def _new_run(
    config: ExperimentConfig, fresh: bool, in_process: bool, stack: ExitStack
) -> tuple[ExperimentConfig, RunFolder]:
    from distributed_autolora.orchestration.cluster.connection import hardware_precision, own_precision

    if is_precision_open(config):
        config = with_precision(config, (own_precision if in_process else hardware_precision)(config))
    # The name may depend on the format: then this is the first look at it.
    found = None if fresh else find_run(config)
    folder = found[1] if found else next_run(output_home(config.run), run_name(config))
    _acquire(folder, stack)
    return config, folder


def _show_finished(folder: RunFolder) -> "FinishedRun":
    """Prints the result of a finished run, and gives the tracking server what it could not take then."""
    from distributed_autolora.orchestration.runs.results import FinishedRun, track

    result = folder.result()
    if not result.tracked:
        result = replace(result, tracked=track(folder.config(), folder, result))
        folder.write_result(result)
    print(f'Run "{folder.name}" is finished. Its result:\n\n{result_table(result, folder.history())}')
    print_line(f"\nThe same {command_or_call()} with {switch('fresh')} runs it again under a new number.")
    return FinishedRun(folder, result)


def _train(
    config: ExperimentConfig,
    folder: RunFolder,
    inputs: Inputs,
    tags: dict[str, str],
    callbacks: Sequence[Any],
    in_process: bool,
) -> "FinishedRun":
    from distributed_autolora.orchestration import mlflow_tracking
    from distributed_autolora.orchestration.runs.in_process import train_in_process
    from distributed_autolora.orchestration.runs.progress import epoch_lines
    from distributed_autolora.orchestration.runs.ray_trainer import ProgressCallback, train_on_ray
    from distributed_autolora.orchestration.runs.results import finish

    epochs = len(folder.history())
    verb = f"continues after epoch {epochs}" if epochs else "starts"
    print_line(f'Run "{folder.name}" {verb}: {config.method.name} on {config.data.task}, in {folder.path}')
    _log.info("Opening the MLflow run.")
    mlflow = _open_tracking(config, folder, inputs.data_folder, tags)
    payload = _payload(config, inputs)
    callback = ProgressCallback(folder.path, **mlflow)
    status: Literal["FAILED", "KILLED"] | None = "FAILED"
    try:
        _log.info("Handing over to Ray Train.")
        with epoch_lines(folder, config), _system_metrics(config, mlflow, payload, in_process):
            if in_process:
                returned = train_in_process(config, folder, payload, mlflow)
            else:
                returned = train_on_ray(config, folder, payload, [callback, *callbacks])
        finished = finish(config, folder, returned, mlflow)
        status = None
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if status is not None:
            with uninterrupted():
                mlflow_tracking.finish_run(**mlflow, status=status)
    return finished


def _system_metrics(
    config: ExperimentConfig, mlflow: dict[str, str], payload: dict[str, Any], in_process: bool
) -> AbstractContextManager[None]:
    """Returns what logs system metrics from this process; in the place of it, workers log those of their nodes."""
    from distributed_autolora.orchestration import mlflow_tracking

    if not config.run.system_metrics:
        return nullcontext()
    if in_process or mlflow_tracking.is_sqlite(mlflow["uri"]):
        return mlflow_tracking.system_metrics(mlflow["uri"], mlflow["run_id"])
    payload["system_metrics"] = mlflow
    return nullcontext()


def _payload(config: ExperimentConfig, inputs: Inputs) -> dict[str, Any]:
    from distributed_autolora.models.own_backbone import OWN

    own = OWN.get(config.model.backbone)
    places = {"data_folder": inputs.data_folder, "weights": inputs.weights}
    return {"config": config.to_dict(), "own_backbone": own, **places}


def _tracking_uri(config: ExperimentConfig) -> str:
    from distributed_autolora.orchestration import mlflow_tracking

    return config.run.mlflow_uri or mlflow_tracking.default_tracking_uri(output_home(config.run))


def _known_tracking(folder: RunFolder) -> dict[str, str]:
    return dict(folder.read("run.json").get("mlflow", {}))


def _open_tracking(config: ExperimentConfig, folder: RunFolder, location: str, tags: dict[str, str]) -> dict[str, str]:
    from distributed_autolora.orchestration import mlflow_tracking

    known = _known_tracking(folder)
    uri = known.get("uri") or _tracking_uri(config)
    own = {
        "recipe": config.recipe,
        "method": config.method.name,
        "task": config.data.task,
        "backbone": config.model.backbone,
        "rule": config.schedule.rule if config.schedule.name == "automatic" else config.schedule.name,
        "seed": str(config.seed),
    }
    run_id = mlflow_tracking.open_run(
        uri=uri,
        experiment=config.run.mlflow_experiment,
        run_name=folder.name,
        params=config.flat(),
        tags={**own, **tags},
        run_id=known.get("run_id"),
        home=output_home(config.run),
        data=mlflow_tracking.DataInput(
            config.data.task, config.data.digest or "", lasting_location(location), "training"
        ),
    )
    mlflow = {"uri": uri, "run_id": run_id}
    write_json(folder.path / "run.json", {**folder.read("run.json"), "mlflow": mlflow})
    return mlflow
