"""Fault injection: kills runs at random, and compares their results with those of uninterrupted runs.

    python -m tests.chaos --kills 50 --seed 0 --output docs/results/chaos

Victims and moments are drawn from the seed and the round; the effect of a kill also depends on the machine's speed. The
same command resumes after the rounds in the output folder.
"""

import json
import random
import shlex
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro

from tests.chaos.elastic import nodes_come_and_go
from tests.chaos.report import write_report
from tests.chaos.rounds import ELASTIC, FaultInjection, Place, Round
from tests.training.tasks import small_config, write_task

_ROUNDS: tuple[tuple[Place, int], ...] = (
    ("one machine", 2),
    ("three nodes", 2),
    ("tracking server", 2),
    ("three nodes", 3),
    ("one machine", 2),
    (ELASTIC, 2),
)


@dataclass(frozen=True)
class Flags:
    """What to do."""

    kills: int = 50
    """Kills in all, at least."""
    kills_a_run: int = 10
    """Kills of one run, at most."""
    seed: int = 0
    """Of places, victims and moments."""
    epochs: int = 16
    """Epochs of a run."""
    place: Place | None = None
    """Further rounds of this place only."""
    output: Path = Path("chaos")
    """Folder for the report."""


def main() -> None:
    """Runs rounds until there were enough kills; ends with status 1 if anything was lost or changed."""
    flags = tyro.cli(Flags, description=__doc__)
    identity = {key: value for key, value in asdict(flags).items() if key not in ("kills", "place", "output")}
    rounds = _rounds_so_far(flags.output, identity)
    with tempfile.TemporaryDirectory(prefix="ch") as folder:
        config = small_config(write_task(Path(folder) / "task", train=300), epochs=flags.epochs, global_batch_size=32)
        scaling = replace(config.scaling, check_finite_every=1, max_failures=1000, collective_timeout_s=15.0)
        schedule = replace(config.schedule, rule="paired", interval=4)
        chaos = FaultInjection(replace(config, scaling=scaling, schedule=schedule), Path(folder))
        while sum(len(one.kills) for one in rounds) < flags.kills:
            planned = [one for one in _ROUNDS if flags.place in (None, one[0])]
            place, num_workers = planned[len(rounds) % len(planned)]
            chance = random.Random(f"{flags.seed} {len(rounds)}")
            if place == ELASTIC:
                one = nodes_come_and_go(Path(folder) / f"r{len(rounds)}", chance)
            else:
                one = chaos.run(place, num_workers, flags.kills_a_run, f"r{len(rounds)}", chance)
            rounds.append(one)
            victims = ", ".join(f"{kill['victim']} ({kill['moment']})" for kill in one.kills)
            changed = [f"{verdict['what']} ({verdict['seen']})" for verdict in one.verdicts if not verdict["is_equal"]]
            print(f"{one.seconds:5.0f} s  {place}, {num_workers} workers: {victims or 'no kill'}", flush=True)
            print(f"         {'CHANGED: ' + '; '.join(changed) if changed else 'nothing lost or changed'}", flush=True)
            write_report(rounds, flags.output, shlex.join(sys.argv[1:]), sum(one.seconds for one in rounds))
            record = {"flags": identity, "rounds": [asdict(each) for each in rounds]}
            (flags.output / "rounds.json").write_text(json.dumps(record, indent=1) + "\n")
            if changed:
                log = Path(folder) / (f"r{len(rounds) - 1}/home.log" if place == ELASTIC else f"r{len(rounds) - 1}.log")
                print(log.read_text(errors="replace")[-6000:], file=sys.stderr)
    sys.exit(0 if all(one.is_equal for one in rounds) else 1)


def _rounds_so_far(output: Path, identity: dict[str, object]) -> list[Round]:
    file = output / "rounds.json"
    if not file.is_file():
        return []
    record = json.loads(file.read_text())
    if record["flags"] != identity:
        sys.exit(f"{file} holds rounds of other flags ({record['flags']}): give another --output.")
    print(f"{len(record['rounds'])} rounds are taken over from {file}.", flush=True)
    return [Round(**one) for one in record["rounds"]]


if __name__ == "__main__":
    main()
