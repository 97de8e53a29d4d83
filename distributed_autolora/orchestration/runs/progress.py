"""The progress of a run: one line an epoch, and on a terminal a bar below them."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.console import print_line
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.step_file import read_steps, remove_steps
from distributed_autolora.progress import ProgressBar
from distributed_autolora.records import EpochRecord
from distributed_autolora.reporting.format import attack_label, duration, per_cent
from distributed_autolora.reporting.masking import masking_warning
from distributed_autolora.reporting.run.table import epoch_header, epoch_line, reading_warning
from distributed_autolora.training.reporter import StepProgress

_POLL_S = 0.3


@contextmanager
def epoch_lines(
    folder: RunFolder, config: ExperimentConfig, print_one: Callable[[str], None] = print_line
) -> Iterator[None]:
    """Prints one line for each epoch that the run's history gains while the block runs."""
    done, before = threading.Event(), len(folder.history())
    with ThreadPoolExecutor(1) as background:
        following = background.submit(_follow, folder, config, before, print_one, done)
        try:
            yield
        finally:
            done.set()
            remove_steps(folder.path)
    following.result()


def seconds_left(history: Sequence[EpochRecord], before: int, epochs: int) -> float | None:
    """Returns the mean duration of the last epochs, five at most, times those left; None: none was measured yet.

    The first `before` epochs are of an earlier process, whose workers may have been others.
    """
    recent = [record.epoch_seconds for record in history[before:][-5:]]
    return (epochs - len(history)) * sum(recent) / len(recent) if recent else None


def _follow(
    folder: RunFolder, config: ExperimentConfig, before: int, print_one: Callable[[str], None], done: threading.Event
) -> None:
    epochs, printed, is_last = config.optimization.epochs, before, False
    rule = config.schedule.rule if config.schedule.name == "automatic" else None
    try:
        with ProgressBar("epoch", epochs, before, "workers start", log=True) as bar:
            while not is_last:
                # The history is read once more after the run ended, so that its last epoch is printed too.
                is_last = done.wait(_POLL_S)
                history = folder.history()
                for record in history[printed:]:
                    if printed == before:
                        print_one(epoch_header(epochs))
                    left = seconds_left(history[: record.epoch], before, epochs)
                    print_one(epoch_line(record, epochs=epochs, seconds_left=left))
                    if warning := masking_warning(record, name=folder.name, method=config.method.name, rule=rule):
                        print(f"warning: {warning}", file=sys.stderr, flush=True)
                    if printed == before and (warning := reading_warning(record)):
                        print(f"warning: {warning}", file=sys.stderr, flush=True)
                    printed += 1
                    bar.show(record.epoch, _position(record, epochs))
                steps = read_steps(folder.path)
                if steps is not None and steps.epoch == len(history) + 1 and not is_last:
                    bar.show(len(history) + steps.step / steps.steps, _within(steps))
    except (UserError, OSError) as error:  # the run itself does not depend on it, nor on who reads its output
        print(f"warning: progress is no longer shown: {error}", file=sys.stderr, flush=True)


def _within(progress: StepProgress) -> str:
    """Returns "step 12/39, 66 images/s, 0:30 left of the epoch"; validation is not in it."""
    seconds = (progress.steps - progress.step) * progress.seconds_per_step
    step = f"step {progress.step}/{progress.steps}, {progress.images_per_second:.0f} images/s"
    return f"{step}, {duration(seconds)} left of the epoch"


def _position(record: EpochRecord, epochs: int) -> str:
    if record.stopped or record.epoch >= epochs:
        return "final evaluation"
    attack, accuracy = attack_label(record.attack), per_cent(record.best_robust_accuracy)
    return f"chosen: epoch {record.best_epoch} ({attack} {accuracy} %)"
