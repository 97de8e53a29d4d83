"""What is seen on every node of the cluster."""

import contextlib
import hashlib
import os
import platform
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distributed_autolora.data.parquet.locations import open_location, readable, split_bytes
from distributed_autolora.data.parquet.node_cache import cache_folder
from distributed_autolora.errors import UserError
from distributed_autolora.hardware import free_memory
from distributed_autolora.orchestration.cluster_check.findings import Finding, NodeFacts

_LOOK_S = 180.0
"""Seconds for a node to start a process and to import torch."""
_SEEN_WITHIN_S = 10.0
"""Network file systems show another machine's new file some seconds later."""
_POLL_S = 0.2
_INSTALL = (
    "install this package and its dependencies there (`pip install -c constraints.txt -e .`), or remove the node."
)


def survey(
    names: Mapping[str, str], output: str, cache: str | None, inputs: dict[str, str | None]
) -> tuple[dict[str, NodeFacts], list[Finding]]:
    """Returns the facts of every node by its id, and a finding for each node that did not answer.

    `names` are those of the nodes, by id; for the rest see `look`.
    """
    token = secrets.token_hex(8)
    driver = driver_file(output, token)
    driver.write_text(token)
    # A process of its own each time: the function changes its environment.
    task = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(look)
    waiting = {
        key: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False)).remote(
            name, token, output, cache, inputs
        )
        for key, name in names.items()
    }
    facts, lost = {}, {}
    try:
        ray.wait(list(waiting.values()), num_returns=len(waiting), timeout=_LOOK_S)
        for key, reference in waiting.items():
            try:
                facts[key] = ray.get(reference, timeout=1)
            except ray.exceptions.GetTimeoutError:
                ray.cancel(reference, force=True)
                lost[names[key]] = f"no answer within {_LOOK_S:g} s"
            except ray.exceptions.RayError as error:
                lost[names[key]] = _last_line(error)
    finally:
        driver.unlink(missing_ok=True)
    return facts, [
        Finding("FAIL", "node", f"{name}: {problem}", f"{_INSTALL}, or remove the node.")
        for name, problem in lost.items()
    ]


def node_name(node: Mapping[str, Any]) -> str:
    """Returns the name of a node of `ray.nodes()`: its address and the start of its id."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def _last_line(error: BaseException) -> str:
    """Ray puts the stack trace of the other process before it."""
    lines = [line.strip() for line in str(getattr(error, "cause", None) or error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def driver_file(output: str, token: str) -> Path:
    """Returns the file that the driver writes the token to; a node that reads it has the driver's output folder."""
    return Path(output, f".doctor-{token}")


def look(node: str, token: str, output: str, cache: str | None, inputs: dict[str, str | None]) -> NodeFacts:
    """Returns the facts of the node that this runs on.

    Args:
        token: random text that the driver wrote into the output folder.
        cache: scaling.cache.
        inputs: "data": folder or URI; "weights": file; None: not looked at.
    """
    cache_free, cache_problem = 0, ""
    try:
        cache_free = shutil.disk_usage(cache_folder(cache)).free
    except (UserError, OSError) as error:
        cache_problem = str(error)
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides the GPUs from a task that asked for none
    return NodeFacts(
        node=node,
        versions=versions(),
        output_problem=_output_problem(token, output),
        output_free=shutil.disk_usage(output).free if Path(output).is_dir() else 0,
        cache_free=cache_free,
        cache_problem=cache_problem,
        memory_free=free_memory(),
        torch_gpus=torch.cuda.device_count(),
        inputs={name: _input(name, where) for name, where in inputs.items() if where is not None},
    )


def versions() -> dict[str, str]:
    """Returns the versions of all that must be the same everywhere; the package's is a digest of its source."""
    root, digest = Path(__file__).absolute().parents[2], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    own = {"distributed_autolora": f"source {digest.hexdigest()[:8]}"}
    return {"Python": platform.python_version(), "ray": ray.__version__, "torch": torch.__version__} | own


def _output_problem(token: str, output: str) -> str:
    if not Path(output).is_dir():
        return "there is no such folder"
    if not _appears(driver_file(output, token), token):
        return "it is another folder there: what the driver wrote is not in it"
    try:
        with tempfile.NamedTemporaryFile(dir=output) as file:
            file.write(b"0")
    except OSError as error:
        return f"it cannot be written there ({error.strerror})"
    return ""


def _appears(path: Path, content: str) -> bool:
    deadline = time.monotonic() + _SEEN_WITHIN_S
    while time.monotonic() < deadline:
        # Listing the folder makes NFS look again.
        with contextlib.suppress(OSError):
            if path.name in os.listdir(path.parent) and path.read_text() == content:
                return True
        time.sleep(_POLL_S)
    return False


def _input(name: str, where: str) -> tuple[bool, str]:
    """Tells whether the data or the weights can be read here, and their size or what is wrong."""
    try:
        if name == "data":
            size = split_bytes(where, "train") + split_bytes(where, "test")
        else:
            filesystem, path = open_location(where)
            with readable(where):
                size = filesystem.get_file_info(path).size
    except UserError as error:
        return False, str(error)
    return (False, f"{where} is not there") if size is None else (True, f"{where}, {size:,} bytes")
