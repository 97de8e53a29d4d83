"""The tables that `gpu.py` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.timing import table


def show_network(network: str, measured: Mapping[str, Any]) -> None:
    """Prints the result of one network, as `gpu.py` writes it."""
    print(
        f"\nSteps with their attack; the share of the peak is that of bfloat16\n{table(network, measured['variants'])}"
    )
    for name, why in measured["failed"].items():
        print(f"Left out: {name} ({why})")
    alone = ", ".join(f"{name} {ms:.1f} ms" for name, ms in measured["step_ms"].items())
    print(f"Both branches and the optimiser, without an attack: {alone}")
    parallel = measured["data_parallel"]
    _show_captured("Alone", measured["captured_against_eager"])
    _show_captured("Beside a process group", parallel["captured_against_eager"])
    print(
        f"Under DistributedDataParallel ({parallel['backend']}, one process) a step without an attack takes "
        f"{parallel['time_against_bare_step']:.2f} times as long; gradients differ by "
        f"{parallel['largest_relative_gradient_difference']:.2g} of their length at most"
    )


def _show_captured(where: str, captured: Mapping[str, Any]) -> None:
    print(
        f"{where}, pixels of a replayed attack ({captured['captured_by']}) differ from the eager one's by "
        f"{captured['replay_distance']:.2g} on average, those of two eager attacks by {captured['eager_distance']:.2g}"
        f"{'' if captured['is_replayed'] else '; NOT REPLAYED: it fell back to the eager attack'}"
    )
