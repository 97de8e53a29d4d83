"""The sanity checks pass an honest model and catch dishonest ones."""

import json
from dataclasses import asdict
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from distributed_autolora.core.attacks import pgd
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.evaluation.sanity.masking import Stronger, loss_gap, masking, stronger
from distributed_autolora.evaluation.sanity.model import batch_independence, inputs, zero_gradients
from distributed_autolora.evaluation.sanity.report import check_sanity
from distributed_autolora.evaluation.sanity.rules import Subject, slack, status_of
from distributed_autolora.evaluation.sanity.search import gather, order, random_start, restarts
from distributed_autolora.evaluation.trajectories import start_noise, trajectory
from distributed_autolora.records import AccuracyCount, SanityCheck
from tests.core.comparing import assert_near
from tests.evaluation.models import (
    THREAT_MODEL,
    Change,
    Changed,
    first_classes,
    noisy,
    robust_model,
    rounded,
    saturated,
    shipped_images,
)

NAMES = (
    *("inputs", "deterministic forward", "batch independence", "zero gradients", "random noise", "steps"),
    *("loss by step", "restarts", "random start", "order", "large epsilon", "square", "masking", "loss gap"),
)


def checks_of(model: nn.Module, threat_model: ThreatModel = THREAT_MODEL) -> dict[str, SanityCheck]:
    x, y = shipped_images(100)
    found = check_sanity(model, x, y, threat_model=threat_model, square_queries=200, batch_size=50)
    return {check.name: check for check in found}


@cache
def healthy() -> dict[str, SanityCheck]:
    return checks_of(robust_model())


def failed(checks: dict[str, SanityCheck]) -> set[str]:
    return {check.name for check in checks.values() if check.status == "FAIL"}


def test_a_healthy_adversarially_trained_model_passes_every_check() -> None:
    assert tuple(healthy()) == NAMES
    assert {check.name: check.status for check in healthy().values()} == dict.fromkeys(NAMES, "PASS")
    # It is robust but not perfectly so: the checks had something to look at.
    robust = healthy()["steps"].figures["robust"]["100"]
    assert 50 < robust < healthy()["random noise"].figures["natural"] - 5


def test_the_checks_in_l2_pass_a_healthy_model_and_catch_rounded_inputs() -> None:
    x, y = shipped_images(50)
    expected = {"zero gradients", "large epsilon"}
    for model, names in ((robust_model(), set[str]()), (rounded(robust_model()), expected)):
        checks = {check.name: check for check in check_sanity(model, x, y, threat_model=ThreatModel("l2", 0.5))}
        assert checks["large epsilon"].figures["epsilon"] == 7, "the root of 14 x 14 pixels times 0.5"
        assert checks.pop("square").status == "WARN", "Square does not take images that small"
        assert failed(checks) >= names
        assert names or {check.status for check in checks.values()} == {"PASS"}


def test_rounded_inputs_are_caught() -> None:
    checks = checks_of(rounded(robust_model()))
    assert failed(checks) == {"zero gradients", "loss by step", "large epsilon", "square"}
    assert checks["zero gradients"].figures["images"] == 100
    # The very reason for these checks: PGD alone calls this model robust.
    assert checks["steps"].figures["robust"]["100"] > healthy()["steps"].figures["robust"]["100"] + 5


def test_a_random_forward_is_caught() -> None:
    checks = checks_of(noisy(robust_model()))
    assert failed(checks) >= {"deterministic forward", "batch independence"}
    assert "logits the second time" in checks["deterministic forward"].detail


def test_saturated_logits_are_caught() -> None:
    checks = checks_of(saturated(robust_model()))
    assert failed(checks) == {"zero gradients", "loss by step", "large epsilon", "square"}
    assert checks["zero gradients"].figures["images_with_zero_loss"] > 80
    assert "exactly 0" in checks["zero gradients"].detail
    overlooked = checks["loss gap"]
    assert overlooked.status == "WARN", "the cross-entropy rounds to zero, however long its search is"
    assert abs(overlooked.figures["apgd_t"] - healthy()["loss gap"].figures["apgd_t"]) <= 1


def test_a_longer_search_on_the_same_loss_warns_and_another_loss_does_not() -> None:
    assert masking(Stronger(100, 75, 65, 60)).status == "WARN"
    assert masking(Stronger(100, 75, 73, 60)).status == "PASS"
    assert loss_gap(Stronger(100, 75, 74, 68)).status == "PASS", "six points are usual on natural images"
    assert loss_gap(Stronger(100, 75, 74, 50)).status == "WARN"
    few = masking(Stronger(24, 20, 10, 10))
    assert (few.status, "too few to tell" in few.detail) == ("PASS", True)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_what_pgd_overlooks_is_asked_without_targets_where_there_are_too_few_classes(num_classes: int) -> None:
    model, (x, y) = first_classes(robust_model(), num_classes), shipped_images(200)
    rows = (y < num_classes).nonzero()[:20, 0]
    with torch.no_grad():
        subject = Subject(model, x[rows], y[rows], THREAT_MODEL, seed=0, step_size=0.025, batch_size=50)
        found = stronger(subject, gather(subject, square_queries=1))
    assert (found.total, found.other_loss) == (20, None)
    assert "APGD-T needs 4 classes" in loss_gap(found).detail


CHANGES: dict[str, Change] = {
    "wants 0 to 255": lambda x: x / 255,
    "wants normalised": lambda x: 0.35 * x + 0.29,
    "clamps": lambda x: x.clamp(1e-3, 1 - 1e-3),
    "looks at the batch": lambda x: x - x.mean(0, keepdim=True),
}


def subject_of(model: nn.Module) -> Subject:
    x, y = shipped_images(100)
    return Subject(model.eval(), x, y, THREAT_MODEL, seed=0, step_size=0.025, batch_size=50)


@pytest.mark.parametrize("change", ["wants 0 to 255", "wants normalised"])
def test_a_model_that_expects_other_images_is_found_out(change: str) -> None:
    with torch.no_grad():
        check = inputs(subject_of(Changed(robust_model(), CHANGES[change])))
    assert check.status == "FAIL", check


def test_a_model_that_looks_at_the_batch_is_found_out() -> None:
    with torch.no_grad():
        check = batch_independence(subject_of(Changed(robust_model(), CHANGES["looks at the batch"])))
    assert check.status == "FAIL", check


def test_a_clamp_inside_the_model_hides_black_and_white_pixels() -> None:
    check = zero_gradients(subject_of(Changed(robust_model(), CHANGES["clamps"])))
    assert check.status == "WARN", check
    assert check.figures["pixel_share_at_0_and_1"] == 1.0
    assert check.figures["pixel_share_between"] < 0.05


def test_a_masked_gradient_at_the_clean_image_is_seen_from_a_random_start() -> None:
    def flat_on_grey_levels(x: Tensor) -> Tensor:
        on_grid = ((x * 1020 - (x * 1020).round()).abs() < 1e-2).flatten(1).all(1).view(-1, 1, 1, 1)
        return torch.where(on_grid, x.detach(), x)

    evidence = gather(subject_of(Changed(robust_model(), flat_on_grey_levels)), square_queries=1)
    assert random_start(evidence).status == "FAIL"
    assert restarts(evidence).status == "PASS"


def test_given_accuracies_out_of_order_fail_and_a_large_gap_below_pgd_warns() -> None:
    evidence = gather(subject_of(robust_model()), square_queries=1)

    def judge_order(**correct: int) -> SanityCheck:
        given = {f"robust_accuracy/{name}": AccuracyCount(count, 1000) for name, count in correct.items()}
        return order(evidence, {"natural_accuracy": AccuracyCount(900, 1000)} | given)

    fine = judge_order(autoattack=700, pgd100=720, pgd10=725, fgsm=800, pgd10x5=722)
    assert fine.status == "PASS"
    assert fine.detail == "natural 90.0 % >= fgsm 80.0 % >= pgd10 72.5 % >= pgd100 72.0 % >= autoattack 70.0 %"
    assert judge_order(autoattack=725, pgd100=720).status == "PASS"
    assert judge_order(autoattack=730, pgd100=720).status == "WARN"
    assert judge_order(autoattack=740, pgd100=720).status == "FAIL"
    overstated = judge_order(autoattack=500, pgd10=720)
    assert overstated.status == "WARN"
    assert "claim AutoAttack only" in overstated.detail


def test_the_slack_is_two_deviations_of_a_percent_of_turning_images() -> None:
    assert [slack(total) for total in (1, 100, 1000, 10_000)] == [1, 2, 7, 20]
    assert [status_of(excess, 1000) for excess in (-50, 7, 8, 14, 15)] == ["PASS", "PASS", "WARN", "WARN", "FAIL"]


def test_two_equally_strong_attacks_hardly_ever_fail_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    for total in (100, 1000):
        turned = torch.rand(2000, total, generator=generator) < 0.01
        signs = 2 * torch.randint(2, (2000, total), generator=generator) - 1
        statuses = [status_of(int(excess), total) for excess in (turned * signs).sum(1)]
        assert statuses.count("PASS") > 0.95 * 2000
        assert statuses.count("FAIL") <= 4


@pytest.mark.parametrize("start", [None, 0])
def test_the_way_of_pgd_passes_through_the_end_of_every_shorter_pgd(start: int | None) -> None:
    model, (x, y) = robust_model(), shipped_images(30)
    noise = None if start is None else start_noise(x, 5, start)
    way = trajectory(noise, model, x, y, ball=THREAT_MODEL, num_steps=6, step_size=0.02)
    for num_steps in (0, 1, 6):
        search = {"num_steps": num_steps, "step_size": 0.02, "random_start": noise is not None, "noise": noise}
        x_adv = pgd(model, x, y, threat_model=THREAT_MODEL, **search)  # type: ignore[arg-type]
        with torch.no_grad():
            logits = model(x_adv)
        assert way.correct[:, num_steps].tolist() == (logits.argmax(1) == y).tolist()
        loss = nn.functional.cross_entropy(logits, y, reduction="none")
        assert_near(way.loss[:, num_steps], loss)


def test_the_report_is_plain_data_and_leaves_no_trace() -> None:
    model, (x, y) = robust_model().train(), shipped_images(6)
    random = torch.get_rng_state()
    checks = check_sanity(model, x, y, threat_model=THREAT_MODEL, square_queries=2)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    for check in checks:
        assert json.loads(json.dumps(asdict(check))) == asdict(check)
        assert "\n" not in check.detail
        assert check.detail
    with pytest.raises(ValueError, match="at least one image"):
        check_sanity(model, x[:0], y[:0], threat_model=THREAT_MODEL)
