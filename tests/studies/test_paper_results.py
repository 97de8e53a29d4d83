"""The paper's numbers against one another: its tables repeat and subtract themselves."""

from collections import Counter

import pytest

from distributed_autolora.studies.paper_results import paper_results, printed

NATURAL, PGD, AUTOATTACK = "natural_accuracy", "robust_accuracy/pgd10", "robust_accuracy/autoattack"
# Where the difference that the paper prints is not the difference of the numbers that it prints.
MISPRINTS = {
    ("1", "caltech256", "vanilla-rft", PGD): ("+0.90", "+0.91"),
    ("1", "caltech256", "twins", PGD): ("+0.76", "+0.77"),
    ("2", "dtd", "twins", PGD): ("+1.28", "+1.27"),
    ("2", "dogs", "vanilla-rft", NATURAL): ("+0.15", "-0.35"),
    ("2", "cub", "twins", NATURAL): ("-0.81", "-0.80"),
}


def test_the_printed_differences_are_those_of_the_printed_numbers_but_for_known_misprints() -> None:
    values, wrong = paper_results(), {}
    for (table, backbone, task, arm, kind), value in values.items():
        if kind.startswith("difference/"):
            metric = kind.removeprefix("difference/")
            own, other = ("autolora", arm) if table != "5" else (arm, "twins")
            first, second = (float(values[table, backbone, task, name, metric]) for name in (own, other))
            if value != f"{first - second:+.2f}":
                wrong[table, task, arm, metric] = (value, f"{first - second:+.2f}")
    assert wrong == MISPRINTS


DEFAULTS = {("3", "autolora-rank-8"): "autolora", ("6", "autolora-sharpening-1"): "autolora", ("5", "twins"): "twins"}
DEFAULTS |= {("4", f"{arm}-4-255"): arm for arm in ("autolora", "twins", "vanilla-rft")}


def test_the_ablations_repeat_table_1_at_their_default() -> None:
    values, compared = paper_results(), 0
    for (table, backbone, task, arm, metric), value in values.items():
        if (table, arm) in DEFAULTS and metric in (NATURAL, PGD):
            assert values["1", backbone, task, DEFAULTS[table, arm], metric] == value
            compared += 1
    assert compared == 2 * (4 + 2 + 4 + 2 * 3)


def test_every_table_has_every_number_that_it_prints() -> None:
    cells = Counter((key[0], key[-1].split("/")[0]) for key in paper_results())
    accuracies = {table: cells[table, "natural_accuracy"] + cells[table, "robust_accuracy"] for table in "123456"}
    assert accuracies == {"1": 54, "2": 54, "3": 32, "4": 60, "5": 16, "6": 28}
    assert {table: cells[table, "difference"] for table in "125"} == {"1": 36, "2": 36, "5": 8}
    assert (cells["8", "p_value"], cells["3", "branch_parameters"]) == (72, 4)


@pytest.mark.parametrize(
    ("tables", "task", "backbone", "arm", "metric", "expected"),
    [
        (["1", "2", "8"], "cifar10", "resnet50", "autolora", AUTOATTACK, ("2", "52.00")),
        (["1", "2", "8"], "dogs", "resnet18", "vanilla-rft", AUTOATTACK, ("1", "8.14")),
        (["3"], "cub", "resnet18", "autolora-rank-16", PGD, ("3", "21.92")),
        (["4"], "dtd", "resnet18", "vanilla-rft-0", PGD, ("4", "7.23")),
        (["4"], "cifar100", "resnet18", "twins-8-255", NATURAL, ("4", "62.51")),
        (["5"], "dtd", "resnet18", "twins-automatic-lr", PGD, ("5", "23.56")),
        (["6"], "cifar100", "resnet18", "autolora-sharpening-5", PGD, ("6", "20.21")),
        (["1"], "fashion-mnist-5-9", "small_resnet", "autolora", PGD, None),
        (["3"], "cub", "resnet18", "autolora-rank-8", AUTOATTACK, None),
        (["3"], "", "resnet18", "autolora-rank-8", "branch_parameters", ("3", "4.87%")),
        (["8"], "cub", "resnet50", "vanilla-rft", f"p_value/{AUTOATTACK}", ("8", "2e-06")),
        (["8"], "cifar10", "resnet18", "twins", f"p_value/{NATURAL}", ("8", "0.0088")),
        (["1"], "cifar10", "resnet18", "twins", f"p_value/{NATURAL}", None),
    ],
)
def test_an_arm_finds_its_number_or_none(
    tables: list[str], task: str, backbone: str, arm: str, metric: str, expected: tuple[str, str] | None
) -> None:
    assert printed(tables, task, backbone, arm, metric) == expected
