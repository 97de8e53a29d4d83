"""Chunks are fixed; one chunk's outcome is pyautoattack's, image by image, and leaves no trace."""

import logging
import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyautoattack import AutoAttack
from torch import Tensor, nn

from distributed_autolora.core.attacks import pgd
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.attacks import AUTOATTACK_PARTS, STANDARD_BUDGET, Budget, parse
from distributed_autolora.evaluation.autoattack import configured
from distributed_autolora.evaluation.chunks import Columns, chunk_seed, cut, evaluate_chunk
from tests.core.comparing import assert_near
from tests.evaluation.models import (
    NUM_CLASSES,
    THREAT_MODEL,
    Changed,
    first_classes,
    robust_model,
    saturated,
    shipped_images,
)

BUDGET = Budget(apgd_steps=10, fab_steps=8, square_queries=40)
SEED = 11
WIDE = ThreatModel(epsilon=0.2)
"""A ball in which a short search breaks many images and not all."""
WIDE_L2 = ThreatModel("l2", 6.0)
IN_BOTH_NORMS = pytest.mark.parametrize("wide", [WIDE, WIDE_L2], ids=["linf", "l2"])
NORMS: dict[str, Any] = {"linf": "Linf", "l2": "L2"}


def evaluated(model: nn.Module, x: Tensor, y: Tensor, names: str, **changed: Any) -> Columns:
    settings: dict[str, Any] = {"threat_model": THREAT_MODEL, "seed": SEED, "budget": BUDGET} | changed
    return evaluate_chunk(model, x, y, attacks=parse(names), **settings)


def plain_autoattack(
    model: nn.Module, x: Tensor, y: Tensor, parts: list[str] | None, targets: int, wide: ThreatModel = WIDE
) -> Tensor:
    """Returns which images are robust to pyautoattack's own evaluation of the whole chunk, settings written out.

    Without parts it is the standard version, whose other settings stay as they are.
    """
    chosen: dict[str, Any] = {"version": "standard"} if parts is None else {"version": "custom", "attacks": parts}
    attack = AutoAttack(model, eps=wide.epsilon, norm=NORMS[wide.norm], seed=SEED, **chosen)
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = BUDGET.apgd_steps
    attack.fab.n_iter, attack.square.n_queries = BUDGET.fab_steps, BUDGET.square_queries
    if parts is not None:
        attack.apgd.n_restarts = attack.fab.n_restarts = 1
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
    trace = sys.gettrace()
    with torch.random.fork_rng(devices=[]):
        _, predictions = attack.run_standard_evaluation(x, y, batch_size=len(x))
    sys.settrace(trace)
    robust: Tensor = predictions == y
    return robust


def test_chunks_cover_the_test_set_once_and_depend_only_on_size_and_seed() -> None:
    chunks = cut(1000, 64, seed=3)
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(1000))
    assert [chunk.index for chunk in chunks] == list(range(16))
    assert chunks[-1].stop - chunks[-1].start == 1000 - 15 * 64
    assert len({chunk.seed for chunk in chunks}) == 16
    assert all(0 <= chunk.seed < 2**31 for chunk in chunks)
    assert cut(1000, 64, seed=3) == chunks
    # A longer test set only adds chunks; another seed changes all of them.
    assert cut(2000, 64, seed=3)[:15] == chunks[:15]
    assert not {chunk.seed for chunk in cut(1000, 64, seed=4)} & {chunk.seed for chunk in chunks}
    assert cut(0, 64, seed=3) == ()
    with pytest.raises(ValueError, match="chunk_size 0"):
        cut(10, 0, seed=3)


def busy(sizes: list[int], workers: int) -> float:
    """Returns the share of the time that workers work, when each takes the next chunk and an image takes a second."""
    free_at = [0] * workers
    for size in sizes:
        free_at[free_at.index(min(free_at))] += size
    return sum(sizes) / (workers * max(free_at))


def test_smaller_chunks_at_the_end_keep_any_number_of_workers_busy() -> None:
    for images in (300, 301, 1000, 10_000):
        chunks = cut(images, 100, seed=3, smaller_at_end=True)
        assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(images))
        sizes = [chunk.stop - chunk.start for chunk in chunks]
        assert sizes == sorted(sizes, reverse=True), images
        assert min(sizes[:-1]) >= 100 / 4, "small batches cost more by image"
        plain = [chunk.stop - chunk.start for chunk in cut(images, 100, seed=3)]
        for workers in (2, 3, 4, 8):
            expected = 0.92 if images >= 1000 else min(0.92, busy(plain, workers))
            assert busy(sizes, workers) >= expected, (images, workers)
    for images, size in ((0, 100), (1, 100), (299, 100), (1000, 31)):
        assert cut(images, size, seed=3, smaller_at_end=True) == cut(images, size, seed=3)


def test_the_seed_of_a_chunk_never_changes() -> None:
    """Finished chunks of older evaluations are continued from: the number is part of the format."""
    assert [chunk_seed(0, 0), chunk_seed(0, 1), chunk_seed(1, 0)] == [766398393, 1505690908, 39649824]


@pytest.mark.parametrize("num_classes", [3, NUM_CLASSES])
def test_the_outcome_is_that_of_plain_pyautoattack_image_by_image(num_classes: int) -> None:
    model, (x, y) = first_classes(robust_model(), num_classes), shipped_images(60)
    x, y = x[y < num_classes], y[y < num_classes]
    parts = ["apgd-ce", "apgd-t", "fab-t", "square"] if num_classes > 3 else ["apgd-ce", "fab-t", "square"]
    expected = plain_autoattack(model, x, y, parts, targets=num_classes - 1)
    found = evaluated(model, x, y, "autoattack", threat_model=WIDE)
    assert found["robust/autoattack"].tolist() == expected.tolist()
    assert 5 < expected.sum() < (model(x).argmax(1) == y).sum() - 2
    # The part that broke an image is the last of the shortest run of parts that breaks it.
    for count, part in enumerate(parts[:-1], start=1):
        robust = plain_autoattack(model, x, y, parts[:count], targets=num_classes - 1)
        broken = np.isin(found["broken_by"].astype(str), ["natural", *parts[:count]])
        assert broken.tolist() == (~robust).tolist(), part
    assert set(found["broken_by"]) >= {None, "natural", "apgd-ce"}
    assert set(found["broken_by"]) <= {None, "natural", *parts}


def ten_class_model() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
        x = torch.rand(40, 1, 4, 4)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    return model, x, y


def test_with_ten_classes_the_parts_agree_with_the_standard_version_in_l2() -> None:
    """The standard version's own settings, apart from how long each part searches."""
    model, x, y = ten_class_model()
    # Square takes larger images only.
    model, x = Changed(model, before=lambda x: F.avg_pool2d(x, 7)).eval(), F.interpolate(x, scale_factor=7)
    expected = plain_autoattack(model, x, y, None, targets=9, wide=WIDE_L2)
    found = evaluated(model, x, y, "autoattack", threat_model=WIDE_L2)
    assert found["robust/autoattack"].tolist() == expected.tolist()
    assert 3 < found["robust/autoattack"].sum() < 37


@IN_BOTH_NORMS
def test_the_standard_budget_and_settings_are_those_of_the_standard_version(wide: ThreatModel) -> None:
    model = ten_class_model()[0]
    chosen: dict[str, Any] = {"eps": wide.epsilon, "norm": NORMS[wide.norm], "seed": SEED, "version": "standard"}
    standard = AutoAttack(model, device=torch.device("cpu"), **chosen)
    ours = configured(
        model, parts=AUTOATTACK_PARTS, threat_model=wide, num_classes=10, seed=SEED, budget=STANDARD_BUDGET
    )
    assert ours.attacks_to_run == standard.attacks_to_run == list(AUTOATTACK_PARTS)
    for part in ("apgd", "apgd_targeted", "fab", "square"):
        settings = [
            {name: value for name, value in vars(getattr(attack, part)).items() if isinstance(value, int | float | str)}
            for attack in (ours, standard)
        ]
        assert settings[0] == settings[1], part
        assert len(settings[0]) > 5


def test_an_ensemble_read_off_a_longer_one_is_what_it_finds_alone() -> None:
    model, (x, y) = robust_model(), shipped_images(40)
    together = evaluated(model, x, y, "apgd-ce,apgd,pgd10,autoattack")
    assert list(together)[1:5] == ["robust/apgd-ce", "robust/apgd", "robust/pgd10", "robust/autoattack"]
    for name in ("apgd-ce", "apgd"):
        alone = evaluated(model, x, y, name)
        assert together[f"robust/{name}"].tolist() == alone[f"robust/{name}"].tolist()
    assert (together["robust/apgd-ce"] >= together["robust/apgd"]).all()


def test_pgd_starts_at_the_image_and_with_restarts_an_image_must_survive_all() -> None:
    model, (x, y) = robust_model(), shipped_images(60)
    found = evaluated(model, x, y, "pgd5,pgd5x1,pgd5x4")
    x_adv = pgd(model, x, y, threat_model=THREAT_MODEL, num_steps=5, step_size=0.025, random_start=False)
    with torch.no_grad():
        natural, right = model(x).argmax(1), model(x_adv).argmax(1) == y
    assert found["natural_prediction"].tolist() == natural.tolist()
    assert found["robust/pgd5"].tolist() == (right & (natural == y)).tolist()
    assert (found["robust/pgd5x4"] <= found["robust/pgd5x1"]).all()
    assert found["robust/pgd5x4"].sum() < (natural == y).sum()


def test_a_given_step_size_is_used() -> None:
    model, (x, y) = robust_model(), shipped_images(40)
    still = evaluated(model, x, y, "pgd5", step_size=0.0)
    assert still["robust/pgd5"].tolist() == (still["natural_prediction"] == y.numpy()).tolist()
    assert still["margin_adversarial"].tolist() == still["margin_natural"].tolist()


def test_margins_are_logit_differences_and_their_signs_agree_with_the_outcome() -> None:
    model, (x, y) = robust_model(), shipped_images(60)
    found = evaluated(model, x, y, "pgd10,autoattack")
    with torch.no_grad():
        logits = model(x)
    others = [
        max(row[label] for label in range(NUM_CLASSES) if label != own) for row, own in zip(logits, y, strict=True)
    ]
    assert_near(torch.from_numpy(found["margin_natural"]), logits[range(60), y] - torch.stack(others))
    assert (found["margin_adversarial"] <= found["margin_natural"]).all()
    withstood = found["robust/pgd10"] & found["robust/autoattack"]
    assert ((found["margin_adversarial"] > 0) == withstood).all()
    assert (withstood == (found["broken_by"] == None)).all()  # noqa: E711
    assert found["margin_natural"].dtype == found["margin_adversarial"].dtype == np.float32


def traced(frame: FrameType, event: str, argument: Any) -> None:
    """A trace function that does nothing."""


def test_an_evaluation_leaves_the_model_the_random_numbers_and_the_tracer_alone() -> None:
    model, (x, y) = robust_model().train(), shipped_images(10)
    backbone = model.backbone
    assert isinstance(backbone, nn.Sequential)
    backbone[1].eval()
    next(model.parameters()).requires_grad_(False)
    grads = {name: torch.ones_like(value) for name, value in model.named_parameters() if name.endswith("bias")}
    for name, gradient in grads.items():
        model.get_parameter(name).grad = gradient.clone()
    modes = [module.training for module in model.modules()]
    needs = [parameter.requires_grad for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random, trace = torch.get_rng_state(), sys.gettrace()
    tf32 = torch.backends.cudnn.allow_tf32
    sys.settrace(traced)
    try:
        found = evaluated(model, x, y, "pgd2,autoattack")
        assert sys.gettrace() is traced
    finally:
        sys.settrace(trace)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == needs
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        expected = grads.get(name)
        assert parameter.grad is None if expected is None else torch.equal(parameter.grad, expected)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.backends.cudnn.allow_tf32 == tf32
    # Judged in eval mode, whatever mode it came in.
    assert found["natural_prediction"].tolist() == model.eval()(x).argmax(1).tolist()


def test_float32_is_computed_as_float32_and_the_settings_come_back() -> None:
    backends: Any = torch.backends
    operators = (backends.mkldnn.matmul, backends.cuda.matmul, backends.mkldnn.conv)
    before = [operator.fp32_precision for operator in operators]
    model, (x, y) = robust_model(), shipped_images(20)
    exact = evaluated(model, x, y, "pgd2")
    try:
        for operator in operators:
            operator.fp32_precision = "tf32"
        with torch.autocast("cpu", torch.bfloat16):
            found = evaluated(model, x, y, "pgd2")
        assert [operator.fp32_precision for operator in operators] == ["tf32"] * 3
    finally:
        for operator, precision in zip(operators, before, strict=True):
            operator.fp32_precision = precision
    assert found["margin_adversarial"].tolist() == exact["margin_adversarial"].tolist()


def test_the_global_random_numbers_do_not_matter() -> None:
    model, (x, y) = robust_model(), shipped_images(20)
    outcomes = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            outcomes.append(evaluated(model, x, y, "pgd3x2,autoattack"))
    for name, column in outcomes[0].items():
        assert column.tolist() == outcomes[1][name].tolist(), name
    other = evaluated(model, x, y, "pgd3x2,autoattack", seed=SEED + 1)
    assert other["margin_adversarial"].tolist() != outcomes[0]["margin_adversarial"].tolist()


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_chunk_and_one_image_are_fine(count: int) -> None:
    x, y = shipped_images(count)
    found = evaluated(robust_model(), x, y, "fgsm,pgd2x2,apgd-ce,autoattack")
    assert {name: len(column) for name, column in found.items()} == dict.fromkeys(found, count)
    assert found["natural_prediction"].dtype == np.int64
    assert found["robust/autoattack"].dtype == found["robust/fgsm"].dtype == np.bool_


def test_images_that_are_all_misclassified_are_broken_by_nature() -> None:
    model, (x, _) = robust_model(), shipped_images(8)
    with torch.no_grad():
        y = (model(x).argmax(1) + 1) % NUM_CLASSES
    found = evaluated(model, x, y, "pgd2,autoattack")
    assert found["broken_by"].tolist() == ["natural"] * 8
    assert not found["robust/pgd2"].any()
    assert not found["robust/autoattack"].any()
    assert (found["margin_natural"] < 0).all()


def test_pyautoattack_reports_to_its_own_logger_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    x, y = shipped_images(5)
    with caplog.at_level(logging.DEBUG, logger="auto-attack"):
        evaluated(robust_model(), x, y, "autoattack")
    assert {record.name for record in caplog.records} == {"auto-attack"}
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert any("robust accuracy after APGD-T" in record.message for record in caplog.records)


def test_pgd_on_the_margin_sees_through_logits_that_blind_pgd() -> None:
    x, y = shipped_images(100)
    models = robust_model(), saturated(robust_model())
    honest, hidden = (evaluated(model, x, y, "pgd10,pgd10-margin") for model in models)
    np.testing.assert_array_equal(hidden["robust/pgd10-margin"], honest["robust/pgd10-margin"])
    assert honest["robust/pgd10-margin"].sum() <= honest["robust/pgd10"].sum() + 1
    assert hidden["robust/pgd10"].sum() > hidden["robust/pgd10-margin"].sum() + 3


class Unconnected(nn.Module):
    """Casts its input to integers, which cuts the graph."""

    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot((4 * x).long().flatten(1).sum(1) % NUM_CLASSES, NUM_CLASSES).float()


def test_what_cannot_be_evaluated_is_refused_in_one_line() -> None:
    model, (x, y) = robust_model(), shipped_images(4)
    broken = robust_model()
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    for bad, images, labels, message in (
        (model, 2 * x, y, r"images range from 0 to 1\.\d+: give images in \[0, 1\]"),
        (model, x, y + NUM_CLASSES, "has 5 outputs"),
        (robust_model().double(), x, y, r"torch\.float64 parameters"),
        (robust_model().bfloat16(), x, y, r"torch\.bfloat16 parameters"),
        (broken, x, y, "logits of 4 of 4 natural images are not finite"),
        (Unconnected(), x, y, "carry no gradient"),
    ):
        with pytest.raises(UserError, match=message) as refusal:
            evaluated(bad, images, labels, "pgd2")
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"images are torch\.float64"):
        evaluated(model, x.double(), y, "pgd2")
