"""Attacks by name, and what their results may be called."""

import pytest

from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.attacks import AUTOATTACK_PARTS, Budget, label, parse, parts_for, pgd_step_size


def test_names_are_read_in_order_once_and_in_lower_case() -> None:
    attacks = parse(" PGD10, autoattack,pgd10x5 ,pgd10,fgsm")
    assert [attack.name for attack in attacks] == ["pgd10", "autoattack", "pgd10x5", "fgsm"]
    assert [(attack.num_steps, attack.random_starts) for attack in attacks] == [(10, 0), (0, 0), (10, 5), (1, 0)]
    assert attacks[1].parts == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert parse("apgd")[0].parts == ("apgd-ce", "apgd-t")
    assert [parse(part)[0].parts for part in AUTOATTACK_PARTS] == [(part,) for part in AUTOATTACK_PARTS]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("autoatack", r'no attack "autoatack".*"autoattack"'),
        ("pgd10,apgd_ce", r'no attack "apgd_ce".*"apgd-ce"'),
        ("pgd0", r'no attack "pgd0"'),
        ("pgd10x0", r'no attack "pgd10x0"'),
        (" , ", r"none is named"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_known_one(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        parse(text)
    assert "\n" not in str(refusal.value)


def test_a_step_is_a_quarter_of_epsilon() -> None:
    assert pgd_step_size(ThreatModel(epsilon=8 / 255)) == pytest.approx(2 / 255, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("autoattack", 1000, "AutoAttack (standard)"),
        ("autoattack", 10, "AutoAttack (standard)"),
        ("autoattack", 5, "AutoAttack (standard, 4 targets: 5 classes)"),
        (
            "autoattack",
            3,
            "APGD-CE + FAB-T + Square (not standard AutoAttack: APGD-T needs 4 classes, 2 targets: 3 classes)",
        ),
        ("apgd", 10, "APGD-CE + APGD-T"),
        ("apgd", 5, "APGD-CE + APGD-T (4 targets: 5 classes)"),
        ("apgd", 2, "APGD-CE (not standard AutoAttack: APGD-T needs 4 classes)"),
        ("fab-t", 2, "FAB-T (1 target: 2 classes)"),
        ("square", 2, "Square"),
        ("pgd10", 10, "PGD-10 (step epsilon / 4, clean start)"),
        ("pgd100x5", 10, "PGD-100 (step epsilon / 4, 5 random starts)"),
        ("pgd20-margin", 10, "PGD-20 (margin loss, step epsilon / 4, clean start)"),
        ("pgd20x1-margin", 10, "PGD-20 (margin loss, step epsilon / 4, 1 random start)"),
        ("fgsm", 10, "FGSM (one step of epsilon, clean start)"),
    ],
)
def test_a_label_says_what_ran(name: str, num_classes: int, expected: str) -> None:
    assert label(parse(name)[0], num_classes) == expected


def test_a_label_tells_a_reduced_budget_and_the_step() -> None:
    reduced = label(parse("autoattack")[0], 10, budget=Budget(square_queries=100))
    assert reduced == "AutoAttack (reduced: APGD 100 steps, FAB 100 steps, Square 100 queries)"
    assert label(parse("pgd10")[0], 10, threat_model=ThreatModel(epsilon=0.1)).startswith(
        "PGD-10 (step epsilon / 4 = 0.025"
    )
    assert label(parse("pgd10")[0], 10, step_size=0.01).startswith("PGD-10 (step 0.01")


def test_with_three_classes_ensembles_go_without_the_targeted_dlr_loss_and_alone_it_is_refused() -> None:
    assert parts_for(parse("autoattack")[0], 3) == ("apgd-ce", "fab-t", "square")
    assert parts_for(parse("autoattack")[0], 4) == AUTOATTACK_PARTS
    for refused in (parts_for, label):
        with pytest.raises(UserError, match=r'"apgd-t" needs at least 4 classes and the model has 3.*"autoattack"'):
            refused(parse("apgd-t")[0], 3)
    with pytest.raises(UserError, match="1 output"):
        parts_for(parse("pgd10")[0], 1)
