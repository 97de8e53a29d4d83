"""Measures AutoLoRa's training step on a GPU by variant. It needs torch and torchvision, and nothing else.

    python benchmarks/gpu.py                              # ResNet-18 and ResNet-50, 224 pixels, batch 128, PGD-10
    python benchmarks/gpu.py --networks resnet18 --no-compile
    python benchmarks/gpu.py --device cpu --networks resnet18 --side 32 --batch 4 --steps 2 --rounds 1 --no-compile

Variants take turns, so that their ratios hold on a shared device. Prints tables and writes JSON.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.gpu_variants import EAGER, PLAIN, Trained, Variant, Work, builders, first_run, run_again, training_steps
from benchmarks.timing import interleaved, ratio, table, write
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.core.fast_attack.cuda_graphs import CudaGraphAttack, agreement
from distributed_autolora.core.fast_attack.tf32 import tf32_off
from distributed_autolora.training.distributed.collectives import wrapped_in_ddp

_PEAK_FLOPS = (("H100 PCIe", 756e12), ("H100", 989e12), ("H200", 989e12), ("A100", 312e12))
"""Dense bfloat16 operations a second by data sheet; the first name that is part of the device's counts."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    flags = _parse(arguments)
    device = torch.device(flags.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        device = torch.device("cuda", torch.cuda.current_device())
    tf32_off()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "peak_flops": _peak_flops(device),
        "setting": {name: getattr(flags, name) for name in ("networks", "side", "batch", "steps", "rounds")},
        "networks": {},
    }
    for network in flags.networks:
        work = Work(network, device, flags.side, flags.batch, flags.steps)
        measured = _measure(work, flags.rounds, compile_too=not flags.no_compile, peak=result["peak_flops"])
        result["networks"][network] = measured
        _show_network(network, measured)
        del work
    write(result, flags.output)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help=f'"cuda", "cuda:1" or "cpu" (here: {default})')
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"], help="torchvision ResNets")
    parser.add_argument("--side", type=int, default=224, help="of the square images, in pixels")
    parser.add_argument("--batch", type=int, default=128, help="images of a step")
    parser.add_argument("--steps", type=int, default=10, help="gradient steps of an attack")
    parser.add_argument("--rounds", type=int, default=10, help="that are counted; one more before them is not")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="file to write the numbers to")
    return parser.parse_args(arguments)


def _measure(work: Work, rounds: int, *, compile_too: bool, peak: float | None) -> dict[str, Any]:
    """Returns the result of one network; `peak`: bfloat16 operations a second of the device, None: unknown."""
    steps = training_steps(work)
    variants: dict[str, Variant] = {}
    memory: dict[str, dict[str, float | None]] = {}
    failed: dict[str, str] = {}
    for name, build in builders(work, compile_too=compile_too).items():
        try:
            variants[name], memory[name] = first_run(build, work.device)
        except RuntimeError as error:
            failed[name] = str(error).partition("\n")[0]
            if name in (PLAIN, EAGER):
                raise SystemExit(f"{work.network}: {name} failed ({failed[name]}). Lower --batch or --side.") from None
    calls: dict[str, Callable[[], object]] = {f"step, {name}": step for name, step in steps.items()}
    calls |= {f"attack, {name}": variant.attack for name, variant in variants.items()}
    calls |= {f"whole, {name}": variant.whole for name, variant in variants.items()}
    seconds = interleaved(calls, rounds, _wait(work.device))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    with _Flops() as counter:
        variants[EAGER].whole()
    return {
        "flops_of_a_step": counter.total,
        "variants": {
            name: {
                "attack_ms": 1000 * median[f"attack, {name}"],
                "step_ms": 1000 * median[f"whole, {name}"],
                "images_per_second": work.batch / median[f"whole, {name}"],
                "attack_speed_over_plain": 1 / ratio(seconds, f"attack, {name}", f"attack, {PLAIN}"),
                "speed_over_plain": 1 / ratio(seconds, f"whole, {name}", f"whole, {PLAIN}"),
                **memory[name],
                "share_of_peak": None if peak is None else counter.total / median[f"whole, {name}"] / peak,
            }
            for name in variants
        },
        "failed": failed,
        "step_ms": {name: 1000 * median[f"step, {name}"] for name in steps},
        "captured_against_eager": _captured_against_eager(work),
        "data_parallel": _data_parallel(work, rounds),
    }


class _Flops(TorchDispatchMode):
    """Counts floating-point operations. PyTorch's own counter follows modules and refuses autograd.grad."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.total += 0 if count is None else count(*args, **(kwargs or {}), out_val=out)
        return out


def _captured_against_eager(work: Work) -> dict[str, Any]:
    """Returns the agreement of a replayed attack with the eager one on new images, and what captured it."""
    on_gpu = work.device.type == "cuda"
    network = AttackNetwork(work.fast.model, torch.bfloat16)
    replayed = CudaGraphAttack(work.search, network, work.capture if on_gpu else run_again)
    replayed(network, work.x, work.y, noise=work.noise)
    x, y, noise = work.x.flip(0), work.y.flip(0), work.noise.flip(1)
    eager, again = (work.search(network, x, y, noise=noise) for _ in range(2))
    found = agreement(eager, again, replayed(network, x, y, noise=noise))
    return {
        "captured_by": "CUDA graph" if on_gpu else "running again: no CUDA graph on this device",
        "is_replayed": replayed.is_replaying,
        **asdict(found),
    }


def _data_parallel(work: Work, rounds: int) -> dict[str, Any]:
    """Returns time and gradients of a step under DistributedDataParallel in a group of one process."""
    on_gpu = work.device.type == "cuda"
    bare = Trained(copy.deepcopy(work.fast.model), fused=on_gpu)
    inside = Trained(copy.deepcopy(work.fast.model), fused=on_gpu)
    inside.objective.load_state_dict(bare.objective.state_dict())
    with _group_of_one(work.device):
        inside.wrapped = wrapped_in_ddp(inside.objective, work.device)
        calls = {
            "bare": lambda: bare.step(work.x, work.noise, work.y, bfloat16=True),
            "wrapped": lambda: inside.step(work.x, work.noise, work.y, bfloat16=True),
        }
        seconds = interleaved(calls, rounds, _wait(work.device))
        # The process group's own thread watches the device while a graph is captured.
        captured = _captured_against_eager(work)
        backend = dist.get_backend()
    return {
        "backend": backend,
        "time_against_bare_step": ratio(seconds, "wrapped", "bare"),
        "largest_relative_gradient_difference": max(
            float((one - other).norm() / one.norm().clamp_min(1e-12))
            for one, other in zip(bare.gradients(), inside.gradients(), strict=True)
        ),
        "captured_against_eager": captured,
    }


@contextmanager
def _group_of_one(device: torch.device) -> Iterator[None]:
    """Runs the block in a process group of one."""
    with tempfile.TemporaryDirectory() as folder:
        backend, where = "nccl" if device.type == "cuda" else "gloo", f"file://{folder}/group"
        dist.init_process_group(backend, init_method=where, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _show_network(network: str, measured: Mapping[str, Any]) -> None:
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


def _wait(device: torch.device) -> Callable[[], None]:
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def _peak_flops(device: torch.device) -> float | None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((flops for part, flops in _PEAK_FLOPS if part in name), None)


if __name__ == "__main__":
    main()
