"""The preflight check of a cluster: one line for each check, with what to do."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import ray

from distributed_autolora.config import ExperimentConfig, output_home
from distributed_autolora.console import is_quiet
from distributed_autolora.data.catalog import data_folder
from distributed_autolora.data.decoding import ImageDecodeError, inspect_image
from distributed_autolora.data.parquet.locations import unpacked_bytes
from distributed_autolora.data.parquet.reader import row_groups
from distributed_autolora.errors import RunFailedError, UserError, counted
from distributed_autolora.orchestration import mlflow_tracking
from distributed_autolora.orchestration.cluster import connection
from distributed_autolora.orchestration.cluster.address import is_open_to_others
from distributed_autolora.orchestration.cluster.ray_internals import get_dashboard_url, is_token_auth_enabled
from distributed_autolora.orchestration.cluster_check import findings
from distributed_autolora.orchestration.cluster_check.all_reduce import all_reduce
from distributed_autolora.orchestration.cluster_check.findings import Finding, NodeFacts
from distributed_autolora.orchestration.cluster_check.nodes import node_name, survey
from distributed_autolora.orchestration.mlflow_tracking.connection import OPENING_S, failures, problem_of, timeouts
from distributed_autolora.orchestration.runs.folder import check_writable
from distributed_autolora.orchestration.runs.names import is_precision_open, with_precision
from distributed_autolora.orchestration.runs.preflight import weights_location
from distributed_autolora.training.memory_estimate import PROCESS_BYTES, Estimate, estimate
from distributed_autolora.training.methods.registry import method_of


def report(config: ExperimentConfig) -> None:
    """Prints one line a check.

    Raises:
        RunFailedError: when a check fails.
        UserError: see `examine`.
    """
    levels = []
    for finding in examine(config):
        levels.append(finding.level)
        if finding.level != "PASS" or not is_quiet():
            print(finding, flush=True)
    if failed := levels.count("FAIL"):
        raise RunFailedError(f"{failed} of {len(levels)} checks failed; what to do is in each line.")
    warned = levels.count("WARN")
    print(f"No check failed{f'; read the {warned} marked WARN' if warned else ''}.")


def examine(config: ExperimentConfig) -> Iterator[Finding]:
    """Connects as a training run would, and yields one finding a check as soon as it is made.

    Nothing is left behind but empty folders and, where tracking is SQLite, an empty store.

    Raises:
        UserError: for a config, an output folder of this machine or a Ray that cannot be used at all.
    """
    config.validate()
    method_of(config)
    home = output_home(config.run)
    check_writable(home)
    data = data_problem = None
    try:
        data = data_folder(config.data)
    except UserError as error:
        data_problem = str(error)
    if os.environ.get("RAY_ADDRESS", "local") == "local" and not ray.is_initialized() and not is_quiet():
        print("RAY_ADDRESS names no cluster: a local Ray is started for the checks, as for a run.", file=sys.stderr)
    connection.connect(config.scaling)
    if data_problem:
        yield Finding("WARN", "data", "not checked", data_problem)
    is_room, precision = True, "float32"
    try:
        connection.wait_for_resources(config.scaling)
        precision = connection.hardware_precision(config) if is_precision_open(config) else precision
    except UserError as error:
        is_room = False
        yield Finding("FAIL", "room", "the workers cannot be placed", str(error))
    config = with_precision(config, precision)
    needed = estimate(config, _image_size(config, data))
    names = {node["NodeID"]: node_name(node) for node in ray.nodes() if node["Alive"]}
    facts, lost = survey(names, str(home), config.scaling.cache, {"data": data, "weights": weights_location(config)})
    yield from lost
    if facts:
        yield from _about_nodes(config, list(facts.values()), needed, data)
    if is_room:
        yield from _about_workers(config, facts, needed)
    yield _about_tracking(config, len(names))
    yield _about_access()


def _about_nodes(
    config: ExperimentConfig, nodes: Sequence[NodeFacts], needed: Estimate, data: str | None
) -> Iterator[Finding]:
    yield findings.check_versions(nodes)
    yield findings.check_output(str(output_home(config.run)), nodes)
    yield from findings.check_inputs(nodes)
    cached = 0
    with contextlib.suppress(UserError):  # that the data cannot be read is said above
        cached = unpacked_bytes(data, "train") + unpacked_bytes(data, "test") if data is not None else 0
    yield findings.check_disks(nodes, needed.checkpoints, cached)
    ray_gpus = {node_name(node): int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]}
    yield findings.check_gpus(nodes, ray_gpus, config.scaling.num_workers if config.scaling.use_gpu else 0)


def _about_workers(config: ExperimentConfig, facts: Mapping[str, NodeFacts], needed: Estimate) -> Iterator[Finding]:
    made = all_reduce(config.scaling, needed.gradients)
    on = {place.node_id for place in made.places}
    who = f"{made.backend}, {counted(config.scaling.num_workers, 'worker')} on {counted(len(on), 'node')}"
    yield findings.check_all_reduce(who, needed.gradients, made.milliseconds, made.problem)
    if on and on <= facts.keys():
        tensors = needed.on_device(use_gpu=config.scaling.use_gpu)
        yield findings.check_memory(made.places, facts, tensors, PROCESS_BYTES)


def _about_tracking(config: ExperimentConfig, nodes: int) -> Finding:
    uri = config.run.mlflow_uri or mlflow_tracking.default_tracking_uri(output_home(config.run))
    problem = ""
    with timeouts(OPENING_S):
        try:
            mlflow_tracking.connect(uri).search_experiments(max_results=1)
        except UserError as error:
            problem = str(error)
        except failures() as error:
            problem = f"{uri} does not answer: {problem_of(error)}"
    return findings.check_tracking(uri, problem, nodes)


def _about_access() -> Finding:
    addresses = {"head": ray.get_runtime_context().gcs_address, "dashboard": get_dashboard_url()}
    services = {name: (address, is_open_to_others(address)) for name, address in addresses.items() if address}
    return findings.check_access("token" if is_token_auth_enabled() else "disabled", services)


def _image_size(config: ExperimentConfig, data: str | None) -> tuple[int, int] | None:
    """Returns height and width of the first training image; None: it cannot be read, or is resized anyway."""
    if data is None or config.data.image_size is not None:
        return None
    try:
        width, height = inspect_image(next(row_groups(data, "train")).rows["image"][0].as_py()).size
        return height, width
    except (UserError, ImageDecodeError):
        return None
