"""The tasks of the cluster check on all nodes, and their results."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distributed_autolora.orchestration.cluster_check.findings import Finding, NodeFacts
from distributed_autolora.orchestration.cluster_check.node_probe import appears, clean_up, look, own_probe

_LOOK_S = 180.0
"""Seconds for a node to start a process and to import torch."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was seen on the nodes."""

    facts: dict[str, NodeFacts]
    """By node id; nodes that did not answer are missing."""
    arrived: set[str]
    """Names of the nodes whose probe was seen in the driver's output folder."""
    lost: list[Finding]
    """One for each node that did not answer."""


def survey(names: Mapping[str, str], output: str, cache: str | None, inputs: dict[str, str | None]) -> Survey:
    """Looks at every node.

    Args:
        names: of the nodes, by id.
        output: the output folder.
        cache: scaling.cache.
        inputs: "data" and "weights"; None: not looked at.
    """
    token = secrets.token_hex(8)
    driver = own_probe(output, token, "driver")
    driver.write_text(token)
    try:
        facts, lost = _on_every_node(look, names, token, output, cache, inputs)
        wrote = {key: one.node for key, one in facts.items() if not one.output_problem}
        arrived = {name for name in wrote.values() if appears(own_probe(output, token, name), token)}
        # What the driver does not see, it cannot remove.
        _on_every_node(clean_up, {key: name for key, name in wrote.items() if name not in arrived}, token, output)
    finally:
        for file in Path(output).glob(f".doctor-{token}-*"):
            file.unlink(missing_ok=True)
    return Survey(facts=facts, arrived=arrived, lost=lost)


def node_name(node: Mapping[str, Any]) -> str:
    """Returns the name of a node of `ray.nodes()`: its address and the start of its id."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def _on_every_node(
    function: Callable[..., Any], names: Mapping[str, str], *arguments: Any
) -> tuple[dict[str, Any], list[Finding]]:
    """Runs function(name, *arguments) on each node; returns results by node id, and a finding for each lost node."""
    # A process of its own each time: the function changes its environment.
    task = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(function)
    waiting = {
        key: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False)).remote(name, *arguments)
        for key, name in names.items()
    }
    ray.wait(list(waiting.values()), num_returns=len(waiting), timeout=_LOOK_S) if waiting else None
    returned, lost = {}, []
    for key, reference in waiting.items():
        try:
            returned[key] = ray.get(reference, timeout=1)
        except ray.exceptions.GetTimeoutError:
            ray.cancel(reference, force=True)
            lost.append(_lost(names[key], f"no answer within {_LOOK_S:g} s"))
        except ray.exceptions.RayError as error:
            lost.append(_lost(names[key], last_line(error)))
    return returned, lost


def last_line(error: BaseException) -> str:
    """Returns the line of an error that says what went wrong: Ray puts the trace of the other process before it."""
    lines = [line.strip() for line in str(getattr(error, "cause", None) or error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _lost(name: str, problem: str) -> Finding:
    advice = (
        "install this package and its dependencies there (`pip install -c constraints.txt -e .`), or remove the node."
    )
    return Finding("FAIL", "node", f"{name}: {problem}", advice)
