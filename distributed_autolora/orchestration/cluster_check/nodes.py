"""The tasks of the cluster check on all nodes, and their results."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distributed_autolora.orchestration.cluster_check.findings import Finding, NodeFacts
from distributed_autolora.orchestration.cluster_check.node_probe import driver_file, look

_LOOK_S = 180.0
"""Seconds for a node to start a process and to import torch."""


def survey(
    names: Mapping[str, str], output: str, cache: str | None, inputs: dict[str, str | None]
) -> tuple[dict[str, NodeFacts], list[Finding]]:
    """Returns the facts of every node by its id, and a finding for each node that did not answer.

    Args:
        names: of the nodes, by id.
        output: the output folder.
        cache: scaling.cache.
        inputs: "data" and "weights"; None: not looked at.
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
    facts, lost = {}, []
    try:
        ray.wait(list(waiting.values()), num_returns=len(waiting), timeout=_LOOK_S)
        for key, reference in waiting.items():
            try:
                facts[key] = ray.get(reference, timeout=1)
            except ray.exceptions.GetTimeoutError:
                ray.cancel(reference, force=True)
                lost.append(_lost(names[key], f"no answer within {_LOOK_S:g} s"))
            except ray.exceptions.RayError as error:
                lost.append(_lost(names[key], _last_line(error)))
    finally:
        driver.unlink(missing_ok=True)
    return facts, lost


def node_name(node: Mapping[str, Any]) -> str:
    """Returns the name of a node of `ray.nodes()`: its address and the start of its id."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def _last_line(error: BaseException) -> str:
    """Returns the last line of an error: Ray puts the stack trace of the other process before it."""
    lines = [line.strip() for line in str(getattr(error, "cause", None) or error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _lost(name: str, problem: str) -> Finding:
    advice = (
        "install this package and its dependencies there (`pip install -c constraints.txt -e .`), or remove the node."
    )
    return Finding("FAIL", "node", f"{name}: {problem}", advice)
