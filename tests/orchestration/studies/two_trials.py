"""A comparison small enough for a test, as a program: two trials of a search, then one final run.

python -m tests.orchestration.studies.two_trials HOME TASK_FOLDER [LEARNING_RATES]
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distributed_autolora.cli import run_program
from distributed_autolora.config.recipes import recipe
from distributed_autolora.orchestration.studies.compare import compare
from distributed_autolora.orchestration.studies.request import StudyRequest
from distributed_autolora.studies import Arm, Study
from tests.training.tasks import small_config

EPOCHS = 3
LRS = (0.05, 0.01)
NAME = "two-trials"


def request(home: Path, task: str, lrs: Sequence[float] = LRS) -> StudyRequest:
    """Returns the comparison: one arm, its learning rates, one seed."""
    config = small_config(task, epochs=EPOCHS, global_batch_size=32, method="vanilla")
    config = replace(
        config,
        model=recipe("demo").model,
        schedule=replace(config.schedule, name="step_decay"),
        scaling=replace(config.scaling, num_workers=1),
    )
    study = Study(
        name="two_trials",
        title="Two learning rates",
        paper_tables=(),
        arms=(Arm(id="vanilla-rft", label="Vanilla RFT", config=config, grid={"optimization.lr": tuple(lrs)}),),
        reference="vanilla-rft",
    )
    return StudyRequest(
        study=study, name=NAME, home=home, seeds=(0,), command="python -m tests.orchestration.studies.two_trials"
    )


def main() -> None:
    compare(request(Path(sys.argv[1]), sys.argv[2], [float(word) for word in sys.argv[3:]] or LRS))


if __name__ == "__main__":
    run_program(main)
