"""What this machine lends to this process."""

from __future__ import annotations

__all__ = ["available_cpus"]


def available_cpus() -> int:
    """Returns how many CPUs this process may use: its affinity and its container's limit count, not the machine's."""
    import joblib

    return int(joblib.cpu_count())
