"""The report of a fault injection."""

import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from distributed_autolora.reporting.format import table
from tests.chaos.rounds import NEW_NODE, TWICE, Round

_HEADS = (
    "run",
    "version",
    "where",
    "workers",
    "kills (epochs recorded before)",
    "times started",
    "seconds",
    "lost or changed",
)


def write_report(rounds: Sequence[Round], folder: Path, flags: str, seconds: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    faults = [fault for one in rounds for fault in one.kills]
    kills = sum(fault["victim"] not in (TWICE, NEW_NODE) for fault in faults)
    twice = sum(fault["victim"] == TWICE for fault in faults)
    changed = sum(not one.is_equal for one in rounds)
    victims, moments = Counter(fault["victim"] for fault in faults), Counter(fault["moment"] for fault in faults)
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "mlflow-skinny"))
    parts = [
        "# Fault injection",
        f"    python -m tests.chaos {flags}",
        f"{kills} kills in {len(rounds)} runs, and {twice} drivers started twice; {changed} runs ended "
        "with something lost or changed. "
        f"{seconds / 60:.0f} minutes, {versions}, Python {platform.python_version()}.",
        "Each run is compared with an uninterrupted one with the same number of workers: final weights and last "
        "checkpoint bit for bit, history and test result except times and rates, files of the run's folder, metrics in "
        "MLflow (each step once, one run, FINISHED), and no process left.",
        table(
            ["killed, started twice, or joining", "times"],
            [[victim, str(count)] for victim, count in victims.most_common()],
        ),
        table(["moment", "times"], [[moment, str(count)] for moment, count in moments.most_common()]),
        table(_HEADS, [_row(number, one) for number, one in enumerate(rounds, 1)]),
        "A driver that is killed, that ends because of a kill, or whose tracking server was away at its end, is "
        "started again with the same command. A hung worker is one that is stopped (SIGSTOP) for good. A killed node "
        "comes back at once as a new one. While Ray starts, some drivers get SIGTERM, and some are started twice: the "
        "second is refused.",
        "Where nodes come and go, a run on 1 to 2 workers loses one of two nodes for good, resumes with one worker, "
        "and with two once a new node has joined. It is compared with a run without Ray that has the same numbers of "
        "workers in the same epochs: the last checkpoint bit for bit, and the history.",
    ]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n")


def _row(number: int, one: Round) -> list[str]:
    kills = ", ".join(f"{kill['victim']} ({kill['epochs']})" for kill in one.kills)
    changed = "; ".join(verdict["what"] for verdict in one.verdicts if not verdict["is_equal"])
    cells = (number, one.version, one.place, one.num_workers, kills or "none", len(one.statuses), round(one.seconds))
    return [*map(str, cells), changed or "nothing"]
