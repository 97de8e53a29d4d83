"""The report of a fault injection."""

import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from distributed_autolora.reporting.format import table
from tests.chaos.rounds import Round

_HEADS = ("run", "where", "workers", "kills (epochs recorded before)", "times started", "seconds", "lost or changed")


def write_report(rounds: Sequence[Round], folder: Path, flags: str, seconds: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kills = [kill for one in rounds for kill in one.kills]
    changed = sum(not one.is_equal for one in rounds)
    victims, moments = Counter(kill["victim"] for kill in kills), Counter(kill["moment"] for kill in kills)
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "mlflow-skinny"))
    parts = [
        "# Fault injection",
        f"    python -m tests.chaos {flags}",
        f"{len(kills)} kills in {len(rounds)} runs; {changed} runs ended with something lost or changed. "
        f"{seconds / 60:.0f} minutes, {versions}, Python {platform.python_version()}.",
        "Each run is compared with an uninterrupted one with the same number of workers: final weights and last "
        "checkpoint bit for bit, history and test result except times and rates, files of the run's folder, metrics in "
        "MLflow (each step once, one run, FINISHED), and no process left.",
        table(["killed", "times"], [[victim, str(count)] for victim, count in victims.most_common()]),
        table(["moment", "times"], [[moment, str(count)] for moment, count in moments.most_common()]),
        table(_HEADS, [_row(number, one) for number, one in enumerate(rounds, 1)]),
        "A driver that is killed, that ends because of a kill, or whose tracking server was away at its end, is "
        "started again with the same command. A hung worker is one that is stopped (SIGSTOP) for good. A killed node "
        "comes back at once as a new one.",
    ]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n")


def _row(number: int, one: Round) -> list[str]:
    kills = ", ".join(f"{kill['victim']} ({kill['epochs']})" for kill in one.kills)
    changed = "; ".join(verdict["what"] for verdict in one.verdicts if not verdict["is_equal"])
    cells = (number, one.place, one.num_workers, kills or "none", len(one.statuses), round(one.seconds))
    return [*map(str, cells), changed or "nothing"]
