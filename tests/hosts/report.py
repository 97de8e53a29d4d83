"""The record of the scenarios: what was done at which second, what was seen, and whether the results are equal."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from distributed_autolora.reporting.format import table
from tests.hosts.comparing import Verdict

_CLOSING = """Times and rates (`seconds/...`, `worker_seconds`, `images_per_second`) are the only values
that were not compared; in MLflow each of them is there as often as the others."""
_COMMAND = "sudo .venv/bin/python tests/hosts/two_hosts.py --output docs/results/two-hosts"
_HEADS = ("run", "link cut for, s", "run took, s", "exit status", "results", "processes left")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is done to a run, and what it shows."""

    name: str
    cut_s: float = 0.0
    """Seconds without the link; 0: it is never cut."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """More environment variables of the Ray nodes."""
    why: str


@dataclass(frozen=True)
class Played:
    """A scenario, what came of it, and how it compares with the uninterrupted run."""

    scenario: Scenario
    status: int | None
    """The driver's exit status; None: it was killed at the time limit."""
    seconds: float
    """From the driver's start to its end."""
    events: list[tuple[float, str]]
    left: list[str]
    """Processes that outlived the run or its cluster."""
    output: str
    """The driver's last lines."""
    verdicts: list[Verdict]

    @property
    def is_equal(self) -> bool:
        return bool(self.verdicts) and all(verdict.is_equal for verdict in self.verdicts)

    @property
    def is_good(self) -> bool:
        return self.status == 0 and self.is_equal and not self.left


def as_markdown(played: Sequence[Played], train_images: int, collective_timeout_s: float) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "mlflow", "numpy"))
    introduction = f"""# Two hosts and a cable

Two network namespaces with addresses of their own (10.77.0.1, 10.77.0.2) hang on a switch in a third. The first has the
Ray head with one CPU, and `jobs/finetune.py`; the second has a raylet with one CPU, which is started again whenever it
ends, as an init system does. Two workers train AutoLoRa, one on each host: {train_images:,} synthetic images, gloo,
collectives that give up after {collective_timeout_s:g} s, a checkpoint every second at most. In the middle of an epoch
the second host's cable is pulled at the switch (its address stays, packets vanish without an error) and put back later.
Nothing else is done to the run. Both hosts share this machine's disk: the storage is not cut, the network is.

    {_COMMAND}

python {platform.python_version()}, {versions}. Seconds count from the start of `jobs/finetune.py`."""
    summary = [
        (
            f"`{each.scenario.name}`",
            f"{each.scenario.cut_s:g}" if each.scenario.cut_s else "never",
            f"{each.seconds:.0f}",
            str(each.status),
            ("equal" if each.is_equal else "DIFFERENT") if each.scenario.cut_s else "the reference",
            str(len(each.left)),
        )
        for each in played
    ]
    return "\n\n".join([introduction, table(_HEADS, summary), *map(_section, played), _CLOSING]) + "\n"


def _section(each: Played) -> str:
    parts = [f"## {each.scenario.name}: {each.scenario.why}"]
    if each.scenario.settings:
        settings = ", ".join(f"`{name}={value}`" for name, value in each.scenario.settings.items())
        parts.append(f"The nodes have {settings}.")
    events = [(f"{seconds:.1f}", what.replace("|", "/")) for seconds, what in sorted(each.events)]
    parts.append(table(("second", "what happened"), events))
    if each.scenario.cut_s:
        verdicts = [(what, "equal" if is_equal else "DIFFERENT", seen) for what, is_equal, seen in each.verdicts]
        parts.append(table(("compared with the uninterrupted run", "verdict", "seen"), verdicts))
    parts += [f"Left behind: {title}" for title in each.left]
    if each.status != 0:
        parts.append(f"The run's last lines:\n\n```\n{each.output}\n```")
    return "\n\n".join(parts)
