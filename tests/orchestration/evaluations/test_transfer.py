"""Adversarial images of another model, and the file that carries them from one evaluation to another."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from distributed_autolora.core.attacks import pgd
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.errors import UserError
from distributed_autolora.models import save_weights
from distributed_autolora.models.portable import read_model
from distributed_autolora.orchestration.evaluations.description import described, with_worst_case
from distributed_autolora.orchestration.evaluations.folder import joined
from distributed_autolora.orchestration.evaluations.plan import Plan, make_plan
from distributed_autolora.orchestration.evaluations.transfer import COLUMN
from distributed_autolora.orchestration.evaluations.worker import Evaluator
from distributed_autolora.reporting.evaluation import evaluation_table
from tests.orchestration.evaluations.shared import DESCRIPTION, TEST_IMAGES, Material, write_material

EPSILON = 0.03


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return write_material(tmp_path_factory.mktemp("transfer"))


@pytest.fixture(scope="module")
def surrogate(material: Material) -> Path:
    """Another model of the same task."""
    path = material.weights.parent / "surrogate.safetensors"
    generator = torch.Generator().manual_seed(1)
    state = read_model(material.weights).weights
    noisy = {
        name: value + 0.1 * value.std() * torch.randn(value.shape, generator=generator) if value.dim() > 1 else value
        for name, value in state.items()
    }
    save_weights(noisy, path, DESCRIPTION.metadata())
    return path


def evaluated(plan: Plan) -> dict[str, Any]:
    """Returns the outcomes of all chunks, computed in this process."""
    evaluator = Evaluator(plan.task)
    outcomes = joined([evaluator.chunk(chunk)[0] for chunk in plan.chunks()])
    return with_worst_case(outcomes, [attack.name for attack in plan.task.attacks])


def test_transferred_images_are_pgd_s_on_the_surrogate_judged_by_the_model(
    material: Material, surrogate: Path, tmp_path: Path
) -> None:
    plan = make_plan(
        material.request(tmp_path, attacks="pgd3,transfer,fgsm", epsilon=EPSILON, surrogate=str(surrogate))
    )
    found = evaluated(plan)
    (x,), y = plan.batches(), plan.table.labels
    model, other = read_model(material.weights).build(), read_model(surrogate).build()
    ball = ThreatModel(epsilon=EPSILON)
    x_adv = pgd(other, x, y, threat_model=ball, num_steps=20, step_size=EPSILON / 4, random_start=False)
    with torch.no_grad():
        robust = (model(x).argmax(1) == y) & (model(x_adv).argmax(1) == y)
    assert found["robust/transfer"].tolist() == robust.tolist()
    result = described(plan, found, chunk_seconds=0)
    assert (
        result.attacks[1].label == "transfer (PGD-20 on surrogate.safetensors, step epsilon / 4 = 0.0075, clean start)"
    )
    union = [
        all(outcome) for outcome in zip(*(found[f"robust/{a}"] for a in ("pgd3", "transfer", "fgsm")), strict=True)
    ]
    assert result.worst_case is not None
    assert result.worst_case.robust.correct == sum(union)
    assert result.attack("worst_case") == result.worst_case
    assert result.accuracies()["robust_accuracy/worst_case"] == result.worst_case.robust
    assert "robust to all of pgd3, transfer, fgsm (union)" in " ".join(evaluation_table(result).split())
    one = make_plan(material.request(tmp_path, attacks="pgd3", epsilon=EPSILON))
    assert described(one, evaluated(one), chunk_seconds=0).worst_case is None


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", EPSILON), ("l2", 0.2)])
def test_a_file_of_adversarial_images_gives_their_maker_the_same_result_again(
    material: Material, surrogate: Path, tmp_path: Path, norm: str, epsilon: float
) -> None:
    values: dict[str, Any] = {"norm": norm, "epsilon": epsilon}
    maker = make_plan(material.request(tmp_path, attacks="pgd3,pgd5x2", save_adversarial=True, **values))
    found = evaluated(maker)
    maker.folder.path.mkdir(parents=True, exist_ok=True)
    maker.write_adversarial(found)
    file = tmp_path / "adversarial.parquet"
    kept = np.stack([np.frombuffer(image, "<f4") for image in pq.read_table(file)[COLUMN].to_pylist()])
    (x,) = maker.batches()
    assert ThreatModel(norm, epsilon).contains(torch.from_numpy(kept).view_as(x), x).all()

    again = make_plan(material.request(tmp_path, attacks="transfer", surrogate=str(file), **values))
    repeated = evaluated(again)
    assert repeated["robust/transfer"].tolist() == (found["robust/pgd3"] & found["robust/pgd5x2"]).tolist()
    assert 0 < sum(repeated["robust/transfer"]) < TEST_IMAGES
    assert described(again, repeated, chunk_seconds=0).attacks[0].label == "transfer (images of adversarial.parquet)"
    # On the other model they are a transfer attack.
    elsewhere = make_plan(
        material.request(tmp_path, model=str(surrogate), attacks="transfer", surrogate=str(file), **values)
    )
    with torch.no_grad():
        predicted = read_model(surrogate).build()(torch.from_numpy(kept).view_as(x)).argmax(1)
    other = evaluated(elsewhere)
    assert other["robust/transfer"].tolist() == [
        bool(robust)
        for robust in (predicted == maker.table.labels).numpy() & (other["natural_prediction"] == other["label"])
    ]
    digests = {plan.folder.digest for plan in (maker, again, elsewhere)}
    assert len(digests) == 3

    with pytest.raises(UserError, match="was made with norm"):
        make_plan(material.request(tmp_path, attacks="transfer", surrogate=str(file), norm=norm, epsilon=0.1))
    moved = {**found, COLUMN: [np.ones_like(kept[0]).tobytes()] * TEST_IMAGES}
    maker.write_adversarial(moved)
    outside = make_plan(material.request(tmp_path, attacks="transfer", surrogate=str(file), **values))
    with pytest.raises(UserError, match="not all in the threat model"):
        evaluated(outside)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"attacks": "transfer"}, "needs a --surrogate"),
        ({"surrogate": "model.safetensors"}, "add it to --attacks"),
        ({"attacks": "transfer", "surrogate": "nowhere"}, 'no model "nowhere"'),
        ({"attacks": "transfer", "surrogate": "nowhere.parquet"}, "is no file of adversarial images"),
        ({"attacks": "transfer", "surrogate": "task/test.parquet"}, "is no file of adversarial images"),
    ],
)
def test_a_surrogate_that_cannot_be_used_is_refused_in_one_line(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(material.weights.parent)
    with pytest.raises(UserError, match=said) as refusal:
        make_plan(material.request(tmp_path, **values))
    assert "\n" not in str(refusal.value)
