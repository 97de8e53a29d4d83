"""The paper's own numbers, as its Tables 1-6 and 8 print them, from `paper_results.csv`.

What the text of the paper does not hold: the seeds, whether a cell is a mean or the best of three, any standard
deviation, and which t-test Table 8 used. The column heads "AutoLoRa" and the two differences of Tables 1 and 2 and the
heads of Tables 4 and 6 are lost and follow from the columns themselves. "RA" in Tables 3-6 is PGD-10: their default
columns repeat Table 1 with a ResNet-18. The data set behind "DTD-57" has 47 classes; Table 5 prints "CIAFR-10" for
CIFAR-10. A few printed differences are not those of the printed numbers (ResNet-50, DOG-120, SA: 62.33 - 62.68 is
printed as +0.15); Table 6 prints 20.21 where its neighbours would suggest 30.

Columns of the file: table, backbone, task, arm (id), metric, value as printed. Beside accuracies in per cent, `metric`
is `difference/...` (AutoLoRa less the arm in Tables 1 and 2; with less without the automatic learning rate in Table 5),
`branch_parameters` (Table 3, for all tasks) or `p_value/...` (Table 8, the arm against AutoLoRa).
"""

import csv
from collections.abc import Sequence
from functools import cache
from importlib.resources import files


def printed(tables: Sequence[str], task: str, backbone: str, arm: str, metric: str) -> tuple[str, str] | None:
    """Returns (number of the table, value as printed) from the first of `tables` that has it; None: the paper has none.

    `task` is "" for `branch_parameters`; `arm` is an id in the study that repeats the table.
    """
    values = paper_results()
    keys = ((table, backbone, task, arm, metric) for table in tables)
    return next(((key[0], values[key]) for key in keys if key in values), None)


@cache
def paper_results() -> dict[tuple[str, ...], str]:
    """Returns {(table, backbone, task, arm, metric): value as printed}."""
    text = files("distributed_autolora.studies").joinpath("paper_results.csv").read_text()
    return {tuple(row[:-1]): row[-1] for row in list(csv.reader(text.splitlines()))[1:]}
