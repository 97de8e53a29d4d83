"""The facts of one node."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from distributed_autolora.data.parquet.locations import open_location, readable, split_bytes
from distributed_autolora.data.parquet.node_cache import cache_folder
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.cluster_check.findings import NodeFacts

PACKAGE = "distributed_autolora"
_SEEN_WITHIN_S = 10.0
"""Network file systems show another machine's new file some seconds later."""
_POLL_S = 0.2


def driver_file(output: str, token: str) -> Path:
    """Returns the file that the driver writes the token to; a node that reads it has the driver's output folder."""
    return Path(output, f".doctor-{token}")


def look(node: str, token: str, output: str, cache: str | None, inputs: dict[str, str | None]) -> NodeFacts:
    """Returns the facts of the node that this runs on.

    Args:
        node: its name.
        token: random text that the driver wrote into the output folder.
        output: the output folder.
        cache: scaling.cache.
        inputs: "data": folder or URI; "weights": file; None: not looked at.
    """
    cache_free, cache_problem = 0, ""
    try:
        cache_free = shutil.disk_usage(cache_folder(cache)).free
    except (UserError, OSError) as error:
        cache_problem = str(error)
    return NodeFacts(
        node=node,
        versions=versions(),
        output_problem=_output_problem(token, output),
        output_free=shutil.disk_usage(output).free if Path(output).is_dir() else 0,
        cache_free=cache_free,
        cache_problem=cache_problem,
        memory_free=free_memory(),
        torch_gpus=_torch_gpus(),
        inputs={name: _input(name, where) for name, where in inputs.items() if where is not None},
    )


def versions() -> dict[str, str]:
    """Returns the versions of all that must be the same everywhere; the package's is a digest of its source."""
    found = {"Python": platform.python_version(), "ray": _installed("ray"), "torch": torch.__version__}
    return found | {PACKAGE: f"source {_source_digest()}"}


def free_memory() -> int:
    """Returns the bytes of memory that processes of this node may still take: the machine's or the container's."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most = (group / limit).read_text().strip()
            taken = int((group / used).read_text())
        except OSError:
            continue
        if most != "max":
            free = min(free, int(most) - taken)
    return max(0, free)


def _output_problem(token: str, output: str) -> str:
    """Returns what is wrong with the output folder here; empty: it is the driver's, and can be written."""
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
    """Tells whether a file with this content is there within some seconds."""
    deadline = time.monotonic() + _SEEN_WITHIN_S
    while time.monotonic() < deadline:
        # Listing the folder makes NFS look again.
        with contextlib.suppress(OSError):
            if path.name in os.listdir(path.parent) and path.read_text() == content:
                return True
        time.sleep(_POLL_S)
    return False


def _torch_gpus() -> int:
    """Counts the node's GPUs, those too that Ray hides from a task that asked for none."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    return torch.cuda.device_count()


def _input(name: str, where: str) -> tuple[bool, str]:
    """Tells whether the data or the weights can be read here, and their size or what is wrong."""
    try:
        size = split_bytes(where, "train") + split_bytes(where, "test") if name == "data" else _file_bytes(where)
    except UserError as error:
        return False, str(error)
    return True, f"{where}, {size:,} bytes"


def _file_bytes(where: str) -> int:
    filesystem, path = open_location(where)
    with readable(where):
        size = filesystem.get_file_info(path).size
    if size is None:
        raise UserError(f"{where} is not there")
    return int(size)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _source_digest() -> str:
    """Returns the start of the SHA-256 of the package's own files, which a version number would not tell apart."""
    root, digest = Path(__file__).absolute().parents[2], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()[:8]
