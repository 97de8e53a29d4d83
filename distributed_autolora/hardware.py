"""Number formats: what this hardware computes natively, and what a config's words mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

_NATIVE_BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16"}


def cpu_precision() -> Literal["bfloat16", "float32"]:
    """Returns the format that this machine's CPU computes natively: "bfloat16" or "float32"."""
    try:
        with open("/proc/cpuinfo") as file:
            words = set(file.read().split())
    except OSError:
        return "float32"
    return "bfloat16" if words & _NATIVE_BFLOAT16 else "float32"


def dtype_of(precision: str) -> torch.dtype:
    """Returns the torch type of a chosen format.

    Raises:
        ValueError: for "auto": the format is chosen when a run is created.
    """
    import torch

    if precision not in ("bfloat16", "float32"):
        raise ValueError(f'the precision is "{precision}": it must be chosen before training starts')
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def gpu_precision() -> Literal["bfloat16", "float32"]:
    """Returns the format that this process's GPU computes natively: "bfloat16" or "float32"."""
    import torch

    return "bfloat16" if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8 else "float32"


def available_cpus() -> int:
    """Returns how many CPUs this process may use: its affinity and its container's limit count, not the machine's."""
    import joblib

    return int(joblib.cpu_count())
