"""Mutation testing: puts small faults into modules, one at a time, and counts those that a test notices.

python -m tests.mutants                                  # the fixed sample
python -m tests.mutants --sample 20 --only "core/*"      # 20 of some modules
"""

import argparse
import os
import sys
from collections.abc import Sequence
from fnmatch import fnmatch

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

# Children need not import these again.
import hypothesis  # noqa: F401
import scipy.stats  # noqa: F401
import timm  # noqa: F401
import torch
import torchvision  # noqa: F401

from distributed_autolora.hardware import available_cpus
from tests.mutants.modules import EQUIVALENT, PACKAGE, covering, modules
from tests.mutants.mutations import Mutant, mutants
from tests.mutants.running import ROOT, run_mutants, run_tests


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints each mutant's end and the score; returns 1 if a mutant survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=60, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", default="*", help="pattern of module paths inside the package, such as core/*")
    flags = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = sample(flags.only, flags.sample, flags.seed)
    killers, survivors = [], []
    jobs = [(mutant, covering(mutant.path)) for mutant in chosen]
    for mutant, killer, seconds in run_mutants(jobs, min(2, available_cpus())):
        print(f"{'killed' if killer else 'SURVIVED'}  {seconds:3.0f} s  {mutant.name}  {killer or ''}", flush=True)
        if killer is None:
            survivors.append(mutant)
        else:
            killers.append(killer)
    named = sorted({killer for killer in killers if "::" in killer})
    status, failed = run_tests(named) if named else (0, "")
    if status:
        print(f"{failed} fails without a mutant: the score means nothing.", file=sys.stderr)
        return 1
    killed = len(killers)
    print(f"{killed} of {len(chosen)} mutants were killed: {killed / max(1, len(chosen)):.0%}.")
    return 1 if survivors else 0


def sample(only: str, count: int, seed: int) -> list[Mutant]:
    """Returns the first `count` mutants in a random order that is fixed by the seed, without the equivalent ones."""
    paths = [path for path in modules() if fnmatch(path.removeprefix(f"{PACKAGE}/"), only)]
    every = [mutant for path in paths for mutant in mutants(path, (ROOT / path).read_text())]
    every.sort(key=lambda mutant: mutant.order(seed))
    return [mutant for mutant in every if mutant.name not in EQUIVALENT][:count]


if __name__ == "__main__":
    sys.exit(main())
