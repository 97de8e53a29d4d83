"""Per-image outcomes of a study: pooled into one table, and counted again from there."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distributed_autolora.records import AccuracyCount
from distributed_autolora.reporting.study.loading import NATURAL, ROBUST, StudyResults, StudyRun

_FILE = "outcomes.parquet"


def pooled_outcomes(study: StudyResults) -> Any:
    """Returns one Arrow table of all evaluated final runs, None where no run kept its outcomes.

    Columns: arm, seed, run, then those of a run's outcomes.parquet (row, row_id, label, <attack>_prediction) and of
    its evaluations (robust/<attack>, broken_by), null for images or runs that were not evaluated.
    """
    runs = [(run, run.folder / _FILE) for run in study.evaluated() if run.folder]
    tables = [_of_run(run, own) for run, own in runs if own.is_file()]
    return pa.concat_tables(tables, promote_options="default") if tables else None


def right(pooled: Any, arm: str, seed: int, metric: str) -> tuple[NDArray[np.str_], NDArray[np.bool_]] | None:
    """Returns (row ids, correct) of one run's images for one accuracy, None where they were not kept."""
    if pooled is None:
        return None
    mine = pooled.filter(pc.and_(pc.equal(pooled["arm"], arm), pc.equal(pooled["seed"], seed)))
    name = NATURAL.removesuffix("_accuracy") if metric == NATURAL else metric.removeprefix(ROBUST)
    prediction, robust = f"{name}_prediction", f"robust/{name}"
    if prediction in mine.column_names and mine[prediction].null_count < len(mine):
        correct = pc.equal(mine[prediction], mine["label"])
    elif robust in mine.column_names and mine[robust].null_count < len(mine):
        correct = mine[robust]
    else:
        return None
    known = pc.is_valid(correct)
    return mine["row_id"].filter(known).to_numpy(), correct.filter(known).to_numpy().astype(bool)


def disagreements(study: StudyResults, pooled: Any) -> list[str]:
    """Returns one line for every accuracy of a result that its own outcomes do not give."""
    lines = []
    for run, metric in [(one, metric) for one in study.evaluated() for metric in one.counts]:
        counts, found = run.counts[metric], right(pooled, run.arm, run.seed, metric)
        again = counts if found is None else AccuracyCount(int(found[1].sum()), len(found[1]))
        if again != counts:
            both = f"{counts.correct} of {counts.total}, its outcomes {again.correct} of {again.total}"
            lines.append(f"{study.arm(run.arm).label}, seed {run.seed}, {metric}: the result says {both}")
    return lines


def only_one_right(pooled: Any, first: str, second: str, seed: int, metric: str) -> tuple[int, int] | None:
    """Returns (images that only arm `first` classifies correctly, that only `second` does); None: other images."""
    found = _on_shared_images(pooled, first, second, seed, metric)
    return found and (int((found[1] & ~found[2]).sum()), int((~found[1] & found[2]).sum()))


def differences(pooled: Any, first: str, second: str, seeds: Iterable[int], metric: str) -> NDArray[np.float64] | None:
    """Returns [seeds, images] of `first` less `second` (-1, 0 or 1), only of seeds whose outcomes both arms kept.

    None without such a seed, or where seeds were evaluated on different images.
    """
    found = [each for seed in seeds if (each := _on_shared_images(pooled, first, second, seed, metric))]
    if not found or not all(np.array_equal(found[0][0], ids) for ids, _, _ in found):
        return None
    return np.stack([one.astype(float) - other for _, one, other in found])


def _on_shared_images(
    pooled: Any, first: str, second: str, seed: int, metric: str
) -> tuple[NDArray[np.str_], NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Returns sorted row ids and what either arm has right of them; None where they have different images."""
    one, other = right(pooled, first, seed, metric), right(pooled, second, seed, metric)
    if one is None or other is None or sorted(one[0]) != sorted(other[0]) or len(set(one[0])) != len(one[0]):
        return None
    order = np.argsort(one[0])
    return one[0][order], one[1][order], other[1][np.argsort(other[0])]


def _of_run(run: StudyRun, file: Path) -> Any:
    own = pq.read_table(file)
    for evaluated in filter(Path.is_file, run.evaluations):
        extra = pq.read_table(evaluated)
        places = dict(zip(extra["row_id"].to_pylist(), range(len(extra)), strict=True))
        indices = pa.array([places.get(name) for name in own["row_id"].to_pylist()], pa.int64())
        for name in extra.column_names:
            if (name.startswith("robust/") or name == "broken_by") and name not in own.column_names:
                own = own.append_column(name, extra[name].take(indices))
    tags: tuple[tuple[str, Any], ...] = (("arm", run.arm), ("seed", run.seed), ("run", run.run or ""))
    for place, (name, value) in enumerate(tags):
        own = own.add_column(place, name, pa.array([value] * len(own)))
    return own
