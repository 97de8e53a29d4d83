"""Evaluation of a run after its training: the flag --evaluate."""

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.console import command, print_line
from distributed_autolora.data.parquet.reader import read_labels, read_texts
from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.attacks import CORRUPTIONS, TRANSFER, parse, parts_for
from distributed_autolora.orchestration.evaluations.evaluate import evaluate_run
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.records import EpochRecord, RunResult

QUICK, NONE = "quick", "none"
_QUICK_IMAGES = 32
_FEWEST_IMAGES = 16
_QUICK_SECONDS = 120.0
# Measured on the shipped network: the checks of one image take as long as so many of its attack steps in training.
_STEPS_PER_IMAGE = 1550


def evaluate_finished(run: RunFolder, attacks: str, *, in_process: bool = False) -> None:
    """Evaluates a finished run, unless its test split is to stay closed.

    Args:
        attacks: names separated by commas; "quick": the sanity checks on a few test images, if they take two minutes
            at most; "none": nothing.
        in_process: in this process, without Ray.

    Raises:
        UserError: for an unknown attack, or as `evaluate_run`.
    """
    if attacks == NONE:
        return
    result, scaling = run.result(), run.config().scaling
    if result.test is None:
        print_line("The model was not evaluated: this run does not open its test split.")
        return
    images = quick_images(run.config(), run.history(), result) if attacks == QUICK else None
    evaluating = f"{command('evaluate')} --model {run.path}"
    if images == 0:
        text = f"The checks of the attacks would take more than {_QUICK_SECONDS / 60:g} minutes on these workers"
        print(f"{text} and were left out: {evaluating} makes them.", flush=True)
        return
    print_line("")
    try:
        evaluate_run(
            run,
            attacks=result.attack if attacks == QUICK else attacks,
            num_workers=0 if in_process else scaling.num_workers,
            use_gpu=scaling.use_gpu,
            sanity=True,
            images=images,
        )
    except UserError as error:
        raise type(error)(f"{error} The run itself is finished; {evaluating} evaluates it.") from error


def quick_images(config: ExperimentConfig, history: list[EpochRecord], result: RunResult) -> int:
    """Returns how many test images the quick checks take; 0 where even a few would take minutes."""
    steps = config.train_attack.num_steps * result.train_images / history[-1].num_workers
    seconds_of_an_image = _STEPS_PER_IMAGE * history[-1].phase_seconds["attack"] / max(steps, 1)
    affordable = int(_QUICK_SECONDS / max(seconds_of_an_image, 1e-9))
    wanted = min(_QUICK_IMAGES, result.test_images or 0)
    return min(wanted, affordable) if affordable >= min(_FEWEST_IMAGES, wanted) else 0


def check_attacks(attacks: str, data_folder: str | None = None, images: int | None = None) -> None:
    """Refuses attacks that could not run, before the training of the model that they are for.

    Args:
        attacks: as `evaluate_finished` takes them.
        data_folder: folder or URI of the images; None: the number of classes is not checked.
        images: how many test images they are to run on; None: all.

    Raises:
        UserError: for an unknown attack, one that needs more classes, or fewer test images than that.
    """
    if attacks in (QUICK, NONE):
        return
    parsed = parse(attacks)
    for attack in parsed:
        if attack.name in (TRANSFER, CORRUPTIONS):
            raise UserError(f"{attack.name} needs flags of its own: run it by jobs/evaluate.py after training.")
    if data_folder is None:
        return
    for attack in parsed:
        parts_for(attack, len(read_texts(data_folder, "train")["class_names"]))
    if images is not None and images > (there := len(read_labels(data_folder, "test").rows)):
        raise UserError(
            f"Attacks on {images} test images were asked for, but {data_folder} has {there}: ask for fewer."
        )
