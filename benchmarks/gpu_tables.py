"""What `gpu.py` prints."""

from __future__ import annotations

from typing import Any

from benchmarks.timing import table

_HEADER = ("attack, ms", "step, ms", "images/s", "x plain", "allocated, GiB", "own, GiB", "of the peak")


def show_network(network: str, measured: dict[str, Any], peak: float | None) -> None:
    """Prints what was measured with one network.

    Args:
        network: its name.
        measured: as `gpu.py` writes it.
        peak: dense bfloat16 products a second of the device; None: unknown.
    """
    rows = [_row(name, measured, peak) for name in measured["images_per_second"]]
    print(f"\nWhole training steps; those of the peak are bfloat16's\n{table((network, *_HEADER), rows)}")
    for name, run in measured["first_run"].items():
        if run["failed"]:
            print(f"Left out: {name} ({run['failed']})")
    alone = [
        f"{name.removeprefix('step, ')} {1000 * seconds:.1f} ms"
        for name, seconds in measured["seconds"].items()
        if name.startswith("step, ")
    ]
    print(f"Both branches and the optimiser, without an attack: {', '.join(alone)}")
    parallel = measured["data_parallel"]
    _show_captured("Alone", measured["captured_against_eager"])
    _show_captured("Beside a process group", parallel["captured_against_eager"])
    print(
        f"Under DistributedDataParallel ({parallel['backend']}, one process) a step without an attack takes "
        f"{parallel['time_against_bare_step']:.2f} times as long; gradients differ by "
        f"{parallel['largest_relative_gradient_difference']:.2g} of their length at most"
    )


def _row(name: str, measured: dict[str, Any], peak: float | None) -> list[str]:
    run, seconds = measured["first_run"][name], measured["seconds"]
    rate = measured["flops_of_a_step"] / seconds[f"whole, {name}"]
    return [
        name,
        f"{1000 * seconds[f'attack, {name}']:.1f}",
        f"{1000 * seconds[f'whole, {name}']:.1f}",
        f"{measured['images_per_second'][name]:.1f}",
        f"{measured['speed_up_over_plain']['whole'][name]:.2f}",
        _gibibytes(run["peak_allocated_bytes"]),
        _gibibytes(run["reserved_bytes"]),
        "unknown" if peak is None else f"{rate / peak:.1%}",
    ]


def _show_captured(where: str, captured: dict[str, Any]) -> None:
    print(
        f"{where}, pixels of a replayed attack ({captured['captured_by']}) differ from the eager one's by "
        f"{captured['replay_distance']:.2g} on average, those of two eager attacks by {captured['eager_distance']:.2g}"
        f"{'' if captured['is_replayed'] else '; NOT REPLAYED: it fell back to the eager attack'}"
    )


def _gibibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**30:.2f}"


def show_hours(estimate: dict[str, Any]) -> None:
    """Prints what the paper's tables would take, and what that assumes."""
    print()
    for name, hours in estimate["hours"].items():
        print(f"{name}: {estimate['images_in_all']:,} images at the fastest rate take {hours:,.1f} device-hours")
    print(f"Assumed: {'; '.join(estimate['assumptions'])}.")
