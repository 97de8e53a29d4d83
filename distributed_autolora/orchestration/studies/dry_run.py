"""The runs of a study and their passes of images through the network, before anything is started."""

from distributed_autolora.config import DataConfig
from distributed_autolora.data.catalog import data_folder
from distributed_autolora.data.parquet.reader import read_images
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.studies.folder import DONE, StudyFolder
from distributed_autolora.orchestration.studies.request import StudyRequest
from distributed_autolora.records import Passes
from distributed_autolora.studies import Study
from distributed_autolora.training.methods.cost import run_passes
from distributed_autolora.training.task_data import split_rows

_NOTHING = Passes(0, 0)


def dry_run(request: StudyRequest) -> str:
    """Returns every run of a study with its passes, and their sum; reads what is there and starts nothing."""
    folder = StudyFolder(request.folder)
    folder.plan(request.study, request.seeds)
    runs = [run for run in folder.runs if request.wants(run.arm)]
    passes = passes_by_arm(request.study)
    width = max(len(run.label) for run in runs)
    lines = [f"{request.study.title}: {len(runs)} runs", ""]
    for run in runs:
        notes = [_text(passes[run.arm])]
        notes += [] if run.run else ["(settings: best trial of its search)"]
        notes += [] if run.status == "pending" else [f"({run.status.replace('_', ' ')})"]
        lines.append(f"  {run.label:<{width}}  {'  '.join(notes)}")
    left = [run for run in runs if run.status not in DONE]
    for what, part in (("In all", runs), ("Still to do", left)):
        known = [found for run in part if (found := passes[run.arm]) is not None]
        lines += [f"{what}: {_text(sum(known, _NOTHING) if len(known) == len(part) else None)}."]
    return "\n".join([*lines, "Not included: the tests of the final runs."])


def passes_by_arm(study: Study) -> dict[str, Passes | None]:
    """Returns the passes of one run of each arm; None where no images were named.

    Raises:
        UserError: for images that were named and cannot be read, or are too few.
    """
    tables = {}
    sizes: dict[DataConfig, tuple[int, int] | None] = {}
    for data, config in {arm.config.data: arm.config for arm in study.arms}.items():
        try:
            if data.path not in tables:
                tables[data.path] = read_images(data_folder(data), "train")
            split = split_rows(config, tables[data.path])
            sizes[data] = (len(split.train), len(split.val))
        except UserError:
            if data.path is not None:
                raise
            sizes[data] = None
    return {
        arm.id: None if (size := sizes[arm.config.data]) is None else run_passes(arm.config, *size)
        for arm in study.arms
    }


def _text(passes: Passes | None) -> str:
    if passes is None:
        return "passes not known: give --data"
    return f"{passes.forward:,} forward and {passes.backward:,} backward passes"
