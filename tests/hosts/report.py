"""The record of the scenarios: what was done at which second, what was seen, and whether the results are equal."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from distributed_autolora.reporting.markdown import table
from tests.hosts.comparing import Verdict
from tests.hosts.scenarios import COLLECTIVE_TIMEOUT_S, Outcome, Scenario

_CLOSING = """Times and rates (`seconds/...`, `worker_seconds`, `images_per_second`) are the only values
that were not compared; in MLflow each of them is there as often as the others."""
_COMMAND = "sudo .venv/bin/python tests/hosts/two_hosts.py --output docs/results/two-hosts"


@dataclass(frozen=True)
class Played:
    """A scenario, what came of it, and how it compares with the uninterrupted run."""

    scenario: Scenario
    outcome: Outcome
    verdicts: list[Verdict]

    @property
    def is_good(self) -> bool:
        """Whether the run ended in order, with the same results, and left no process."""
        is_equal = bool(self.verdicts) and all(verdict.is_equal for verdict in self.verdicts)
        return self.outcome.status == 0 and is_equal and not self.outcome.left


def as_json(played: Sequence[Played]) -> dict[str, Any]:
    """Returns everything as JSON values."""
    return {
        "versions": _versions(),
        "scenarios": [
            {
                **asdict(each.scenario),
                "is_good": each.is_good,
                **asdict(each.outcome),
                "output": each.outcome.output if each.outcome.status != 0 else "",
                "events": [event._asdict() for event in each.outcome.events],
                "verdicts": [verdict._asdict() for verdict in each.verdicts],
            }
            for each in played
        ],
    }


def as_markdown(played: Sequence[Played], train_images: int) -> str:
    """Returns the report."""
    summary = [
        (
            f"`{each.scenario.name}`",
            f"{each.scenario.cut_s:g}" if each.scenario.cut_s else "never",
            f"{each.outcome.seconds:.0f}",
            str(each.outcome.status),
            _verdict(each),
            str(len(each.outcome.left)),
        )
        for each in played
    ]
    heads = ("run", "link cut for, s", "run took, s", "exit status", "results", "processes left")
    parts = [_introduction(train_images), table(heads, summary), *map(_section, played), _CLOSING]
    return "\n\n".join(parts) + "\n"


def _introduction(train_images: int) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in _versions().items())
    return f"""# Two hosts and a cable

Two network namespaces with addresses of their own (10.77.0.1, 10.77.0.2) hang on a switch in a third. The first has the
Ray head with one CPU, and `jobs/finetune.py`; the second has a raylet with one CPU, which is started again whenever it
ends, as an init system does. Two workers train AutoLoRa, one on each host: {train_images:,} synthetic images, gloo,
collectives that give up after {COLLECTIVE_TIMEOUT_S:g} s, a checkpoint every second at most. In the middle of an epoch
the second host's cable is pulled at the switch (its address stays, packets vanish without an error) and put back later.
Nothing else is done to the run. Both hosts share this machine's disk: the storage is not cut, the network is.

    {_COMMAND}

{versions}. Seconds count from the start of `jobs/finetune.py`."""


def _section(each: Played) -> str:
    events = [(f"{event.seconds:.1f}", event.what.replace("|", "/")) for event in each.outcome.events]
    settings = ", ".join(f"`{name}={value}`" for name, value in each.scenario.head_settings.items())
    parts = [f"## {each.scenario.name}: {each.scenario.why}"]
    if settings:
        parts.append(f"The head has {settings}.")
    parts.append(table(("second", "what happened"), events))
    if each.scenario.cut_s:
        verdicts = [(what, "equal" if is_equal else "DIFFERENT", seen) for what, is_equal, seen in each.verdicts]
        parts.append(table(("compared with the uninterrupted run", "verdict", "seen"), verdicts))
    parts += [f"Left behind: {title}" for title in each.outcome.left]
    if each.outcome.status != 0:
        parts.append(f"The run's last lines:\n\n```\n{each.outcome.output}\n```")
    return "\n\n".join(parts)


def _verdict(each: Played) -> str:
    if not each.scenario.cut_s:
        return "the reference"
    return "equal" if each.verdicts and all(verdict.is_equal for verdict in each.verdicts) else "DIFFERENT"


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("ray", "torch", "mlflow", "numpy")},
    }
