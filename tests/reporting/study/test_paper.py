"""The paper's numbers against one another: its tables repeat and subtract themselves."""

from __future__ import annotations

import pytest

from distributed_autolora.studies import paper_results as paper

NATURAL, PGD, AUTOATTACK = paper.METRICS.values()
# Where the difference that the paper prints is not the difference of the numbers that it prints.
MISPRINTS = {
    ("1", "Caltech-256", "PGD-10"): ("+0.90 +0.76", "+0.91 +0.77"),
    ("2", "DTD-57", "PGD-10"): ("+2.85 +1.28", "+2.85 +1.27"),
    ("2", "DOG-120", "SA"): ("+0.15 -1.31", "-0.35 -1.31"),
    ("2", "CUB-200", "SA"): ("+5.51 -0.81", "+5.51 -0.80"),
}


@pytest.mark.parametrize(("number", "table"), [("1", paper.TABLE_1), ("2", paper.TABLE_2)])
def test_the_printed_differences_are_those_of_the_printed_numbers_but_for_known_misprints(
    number: str, table: str
) -> None:
    wrong = {}
    for task, groups in paper.rows(table):
        for metric, (vanilla, twins, own, *printed) in zip(paper.METRICS, groups, strict=True):
            true = " ".join(f"{float(own) - float(baseline):+.2f}" for baseline in (vanilla, twins))
            if " ".join(printed) != true:
                wrong[number, task, metric] = (" ".join(printed), true)
    assert wrong == {key: value for key, value in MISPRINTS.items() if key[0] == number}


@pytest.mark.parametrize("task", paper.TASKS)
def test_the_ablations_repeat_table_1_at_their_default(task: str) -> None:
    defaults = {"3": "AutoLoRa, rank 8", "4": "AutoLoRa, 4/255", "6": "AutoLoRa, sharpening 1"}
    found = []
    for metric in (NATURAL, PGD):
        for number, arm in defaults.items():
            for name, plain in ((arm, "AutoLoRa"), (arm.replace("AutoLoRa", "TWINS"), "TWINS")):
                ablation = paper.accuracy([number], task, "resnet18", name, metric)
                if ablation and (plain == "AutoLoRa" or number == "4"):
                    found.append((ablation[1], paper.accuracy(["1"], task, "resnet18", plain, metric)))
        fixed = paper.accuracy(["5"], task, "resnet18", "TWINS", metric)
        found += [(fixed[1], paper.accuracy(["1"], task, "resnet18", "TWINS", metric))] if fixed else []
    assert all(("1", ablation) == plain for ablation, plain in found)
    assert len(found) == {"cifar10": 6, "cifar100": 10, "dtd": 8, "dogs": 0, "cub": 2, "caltech256": 2}[task]


def test_a_table_has_every_number_that_it_prints() -> None:
    assert [len(list(paper.rows(t))) for t in (paper.TABLE_1, paper.TABLE_2, paper.TABLE_3)] == [6, 6, 4]
    assert [len(list(paper.rows(t))) for t in (*paper.TABLE_4.values(), paper.TABLE_5, paper.TABLE_6)] == [3, 3, 4, 7]
    assert len(paper._accuracies()) == 2 * 54 + 4 * 4 * 2 + 2 * 15 * 2 + 4 * 2 * 2 + 7 * 2 * 2
    for task, groups in paper.rows(paper.TABLE_5):
        for before, after, difference in groups:
            assert f"{float(after) - float(before):+.2f}" == difference, task


@pytest.mark.parametrize(
    ("tables", "task", "backbone", "arm", "metric", "expected"),
    [
        (["1", "2", "8"], "cifar10", "resnet50", "AutoLoRa", AUTOATTACK, ("2", "52.00")),
        (["1", "2", "8"], "dogs", "resnet18", "Vanilla RFT", AUTOATTACK, ("1", "8.14")),
        (["3"], "cub", "resnet18", "AutoLoRa, rank 16", PGD, ("3", "21.92")),
        (["4"], "dtd", "resnet18", "Vanilla RFT, 0", PGD, ("4", "7.23")),
        (["4"], "cifar100", "resnet18", "TWINS, 8/255", NATURAL, ("4", "62.51")),
        (["5"], "dtd", "resnet18", "TWINS, automatic LR", PGD, ("5", "23.56")),
        (["6"], "cifar100", "resnet18", "AutoLoRa, sharpening 5", PGD, ("6", "20.21")),
        (["1"], "cifar10", "resnet18", "AutoLoRa, fixed decay", PGD, None),
        (["1"], "fashion-mnist-5-9", "small_resnet", "AutoLoRa", PGD, None),
        (["3"], "cub", "resnet18", "AutoLoRa, rank 8", AUTOATTACK, None),
        (["1"], "cifar10", "resnet34", "TWINS", PGD, None),
    ],
)
def test_an_arm_finds_its_number_or_none(
    tables: list[str], task: str, backbone: str, arm: str, metric: str, expected: tuple[str, str] | None
) -> None:
    assert paper.accuracy(tables, task, backbone, arm, metric) == expected


def test_p_values_are_printed_for_the_two_baselines_alone() -> None:
    assert paper.p_value(["8"], "cub", "resnet50", "Vanilla RFT", AUTOATTACK) == "2e-06"
    assert paper.p_value(["8"], "cifar10", "resnet18", "TWINS", NATURAL) == "0.0088"
    assert paper.p_value(["8"], "cifar10", "resnet18", "AutoLoRa", NATURAL) is None
    assert paper.p_value(["1"], "cifar10", "resnet18", "TWINS", NATURAL) is None
    assert paper.p_value(["8"], "custom", "resnet18", "TWINS", NATURAL) is None
    assert (paper.parameter_ratio("AutoLoRa, rank 8"), paper.parameter_ratio("AutoLoRa, rank 5")) == ("4.87%", None)
