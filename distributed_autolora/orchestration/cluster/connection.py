"""Connecting to a Ray cluster, or starting a local one."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import ray
import ray.exceptions
from ray.autoscaler.sdk import request_resources

from distributed_autolora.config import ExperimentConfig, ScalingConfig
from distributed_autolora.console import is_quiet
from distributed_autolora.errors import RunFailedError, UserError, counted, first_line
from distributed_autolora.hardware import available_cpus, cpu_precision, gpu_precision
from distributed_autolora.orchestration.cluster import address as ray_address
from distributed_autolora.orchestration.cluster import ray_internals
from distributed_autolora.orchestration.cluster.processes import signals_held_back

LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
"""Name of the loopback interface."""

_POLL_S = 1.0
_GRACE_S = 3.0


def connect(scaling: ScalingConfig) -> None:
    """Joins the cluster named by RAY_ADDRESS (as a submitted job does), or starts a local one.

    Raises:
        UserError: when a local Ray would have too few CPUs, or the cluster does not answer.
    """
    # Ray Train hands its settings on to the controller and the workers. Checkpoints are registered at
    # this interval, so it bounds what a lost worker costs.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "").strip() or "local"
    if address == "local":
        check_local_cpus(scaling)
        # Nothing listens beyond the loopback interface then, so no token is written to the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray_address.stay_on_loopback()
        # Gloo would listen on the address that this machine's name resolves to.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    own = {"include_dashboard": False, "num_cpus": available_cpus(), "_node_ip_address": "127.0.0.1"}
    initialize(address, own if address == "local" else {})
    if address == "local":
        check_local_gpus(scaling)


def check_local_gpus(scaling: ScalingConfig, gpus: float | None = None) -> None:
    """Refuses a run that needs more GPUs than this machine has; None: those of Ray, once it is connected."""
    workers, gpus = scaling.num_workers, ray.cluster_resources().get("GPU", 0.0) if gpus is None else gpus
    if not scaling.use_gpu or gpus >= workers:
        return
    advice = "Lower --workers, give" if workers > 1 and gpus >= 1 else "Give"
    raise UserError(
        f"{counted(workers, 'worker')} {'needs' if workers == 1 else 'need'} {counted(workers, 'GPU')}, but Ray sees "
        f"{gpus:g} on this machine. {advice} --gpus 0, or submit the job to a cluster."
    )


def concurrent_runs(scaling: ScalingConfig, resources: Mapping[str, float]) -> int:
    """Returns how many runs a cluster has room for at a time, at least 1."""
    fits = int(resources.get("CPU", 0.0)) // (scaling.num_workers * scaling.cpus_per_worker)
    if scaling.use_gpu:
        fits = min(fits, int(resources.get("GPU", 0.0)) // scaling.num_workers)
    return max(1, fits)


def check_local_cpus(scaling: ScalingConfig, cpus: int | None = None) -> None:
    """Refuses a run that needs more CPUs than this machine has; None: those that this process may use."""
    workers, each, cpus = scaling.num_workers, scaling.cpus_per_worker, available_cpus() if cpus is None else cpus
    if workers * each <= cpus:
        return
    fewer = f"give --cpus-per-worker {max(1, cpus // workers)}"
    remedies = ["lower --workers"] * (workers > 1) + [fewer] * (each > 1)
    advice = ", ".join([*remedies, "or submit the job to a cluster."])
    raise UserError(
        f"{counted(workers, 'worker')} of {counted(each, 'CPU')} {'needs' if workers == 1 else 'need'} "
        f"{workers * each} CPUs, but this machine has {cpus}. {advice[0].upper()}{advice[1:]}"
    )


def initialize(address: str, own: dict[str, Any]) -> None:
    """Connects this process to a Ray cluster, or to a "local" one; `own` are more arguments of `ray.init`.

    Raises:
        UserError: when the cluster does not answer, or Ray's folder cannot be used.
        RunFailedError: when a local Ray does not start in time.
        KeyboardInterrupt: for a stop signal, once Ray has started.
    """
    ray_address.check_address(address)
    if warning := ray_internals.untested(ray.__version__):
        print(f"warning: {warning}", file=sys.stderr)
    # Ray prints warnings on this process's stdout, as of a worker that died, and would colour them in files as well.
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    try:
        # An interruption within Ray's start can be lost, or leave a lock taken for ever.
        with signals_held_back(), ray_internals.without_sigterm_handler(), start_in_time():
            jobs = ray_internals.DriverPath()
            ray.init(address=address, log_to_driver=False, logging_level="warning", job_config=jobs, **own)
    except ray.exceptions.AuthenticationError:
        raise UserError(
            f"Ray at {address} needs a token, and none was found: put it into ~/.ray/auth_token or RAY_AUTH_TOKEN, or "
            "unset RAY_AUTH_MODE for a cluster without one."
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise UserError(
            f"Ray at {address} does not answer ({reason}). Check RAY_ADDRESS, RAY_AUTH_MODE and the token."
        ) from None
    except OSError as error:
        place = os.environ.get("RAY_TMPDIR") or "/tmp/ray"
        raise UserError(
            f"Ray's folder {place} cannot be used ({error.strerror or first_line(error)}). Set RAY_TMPDIR to a "
            "folder that you may write to, with a short path."
        ) from None


@contextlib.contextmanager
def start_in_time() -> Iterator[None]:
    """Turns the bare `Exception` that Ray raises when its processes take over half a minute into a `RunFailedError`."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise RunFailedError(
            f"Ray could not start on this machine in time ({str(error).split('.', maxsplit=1)[0]}). It may be "
            "overloaded: the same command tries again."
        ) from None


def wait_for_resources(scaling: ScalingConfig) -> None:
    """Requests the workers' CPUs and GPUs from the autoscaler, and waits until they are free.

    Raises:
        UserError: when the limit of the config passes first.
    """
    per_worker = {"CPU": float(scaling.cpus_per_worker)} | ({"GPU": 1.0} if scaling.use_gpu else {})
    wanted = {name: amount * scaling.num_workers for name, amount in per_worker.items()}
    # A run that has just ended returns its CPUs a moment later.
    grace = time.monotonic() + _GRACE_S
    while (missing := _missing(wanted)) and time.monotonic() < grace:
        time.sleep(_POLL_S / 5)
    if not missing:
        return
    if not is_quiet():
        print(f"Waiting for {missing} on the cluster, {scaling.wait_for_resources_s:g} s at most.", file=sys.stderr)
    deadline = time.monotonic() + scaling.wait_for_resources_s
    request_resources(bundles=[per_worker] * scaling.num_workers)
    try:
        while missing := _missing(wanted):
            if time.monotonic() > deadline:
                raise UserError(
                    f"After {scaling.wait_for_resources_s:g} s the cluster still lacks {missing}. Lower "
                    f"--workers{' or --cpus-per-worker' * (scaling.cpus_per_worker > 1)}, "
                    "add nodes, or wait longer (scaling.wait_for_resources_s)."
                )
            time.sleep(_POLL_S)
    finally:
        # A request holds until it is replaced, and would keep idle nodes alive.
        request_resources(bundles=[])


def _missing(wanted: dict[str, float]) -> str:
    """Returns what the cluster lacks, such as "2 CPU (free: 1)"; empty when it has everything free."""
    free = ray.available_resources()
    lacking = {name: amount for name, amount in wanted.items() if free.get(name, 0.0) < amount}
    return ", ".join(f"{amount:g} {name} (free: {free.get(name, 0.0):g})" for name, amount in lacking.items())


def own_precision(config: ExperimentConfig) -> str:
    """Returns the attack precision that this process's hardware computes natively: "bfloat16" or "float32"."""
    return gpu_precision() if config.scaling.use_gpu else cpu_precision()


def hardware_precision(config: ExperimentConfig) -> str:
    """Returns the attack precision that the workers' hardware computes natively: "bfloat16" or "float32".

    Raises:
        UserError: when no node has room for a worker.
    """
    scaling = config.scaling
    alive = [node for node in ray.nodes() if node["Alive"]]
    if not scaling.use_gpu and len(alive) == 1:
        return cpu_precision()
    probe = ray.remote(num_cpus=scaling.cpus_per_worker, num_gpus=1 if scaling.use_gpu else 0)(
        gpu_precision if scaling.use_gpu else cpu_precision
    )
    try:
        return str(ray.get(probe.remote(), timeout=scaling.wait_for_resources_s))
    except ray.exceptions.GetTimeoutError:
        raise UserError(
            f"No worker could be started within {scaling.wait_for_resources_s:g} s. Check that one node has "
            f"{scaling.cpus_per_worker} CPUs{' and a GPU' if scaling.use_gpu else ''} free."
        ) from None
