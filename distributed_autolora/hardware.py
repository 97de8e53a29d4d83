"""The hardware that a process may use: CPUs, and the number formats that it computes natively."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

_NATIVE_BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16"}
_LIMITS_WITHOUT_BFLOAT16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}


def cpu_precision() -> Literal["bfloat16", "float32"]:
    """Returns the format that this machine's CPU computes natively.

    Convolutions and matrix products are oneDNN's, so its limit ONEDNN_MAX_CPU_ISA counts; PyTorch's own
    ATEN_CPU_CAPABILITY does not.
    """
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _LIMITS_WITHOUT_BFLOAT16:
        return "float32"
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return "float32"
    return "bfloat16" if flags & _NATIVE_BFLOAT16 else "float32"


def dtype_of(precision: str) -> "torch.dtype":
    """Returns the torch type of a chosen format.

    Raises:
        ValueError: for "auto": the format is chosen when a run is created.
    """
    import torch

    if precision not in ("bfloat16", "float32"):
        raise ValueError(f'the precision is "{precision}": it must be chosen before training starts')
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def gpu_precision() -> Literal["bfloat16", "float32"]:
    """Returns the format that this process's GPU computes natively."""
    import torch

    return "bfloat16" if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8 else "float32"


def available_cpus() -> int:
    """Returns how many CPUs this process may use, at least 1: its affinity and its container's quota limit it."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, cpu_quota() or allowed))


def cpu_quota(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Returns the container's limit in CPUs, rounded up; None: there is none.

    The folder is that of the control group, of version 2 (cpu.max) or 1 (cpu/cpu.cfs_quota_us).
    """
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / f"cpu/cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    except OSError:
        return None
    return None if quota == "max" or int(quota) <= 0 else max(1, -(-int(quota) // int(period)))


def free_memory() -> int:
    """Returns the bytes of memory that processes of this node may still take: the machine's or the container's."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError):
            most, taken = (group / limit).read_text().strip(), int((group / used).read_text())
            free = free if most == "max" else min(free, int(most) - taken)
    return max(0, free)
