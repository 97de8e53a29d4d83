"""What is exported computes what was evaluated, for any number of images, or is removed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from distributed_autolora.core.lora import LowRankBranch
from distributed_autolora.errors import RunFailedError
from distributed_autolora.models import Classifier
from distributed_autolora.models.export import TOLERANCE, export_model, export_program
from distributed_autolora.models.portable import NetworkDescription, PortableModel, read_model
from tests.core.comparing import assert_near

DESCRIPTION = NetworkDescription(backbone="small_resnet", num_classes=4, mean=(0.2,), std=(0.3,), input_size=16)


def random_model(seed: int = 0) -> PortableModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PortableModel(DESCRIPTION, DESCRIPTION.build().backbone.state_dict())


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    differences = export_model(random_model(), folder, [images(5), images(1)])
    assert set(differences) == {"model.safetensors", "model.pt2"}
    assert max(differences.values()) <= TOLERANCE * random_model().build()(images(5)).abs().max()
    return folder


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_program_takes_any_number_of_images_in_the_unit_interval(exported: Path, count: int) -> None:
    x = images(count, seed=1)
    program = torch.export.load(exported / "model.pt2").module()
    assert_near(program(x), random_model().build()(x))


def test_the_program_gives_the_gradients_that_attacks_need(exported: Path) -> None:
    x = images(3, seed=2).requires_grad_()
    (found,) = torch.autograd.grad(torch.export.load(exported / "model.pt2").module()(x).logsumexp(1).sum(), x)
    (expected,) = torch.autograd.grad(random_model().build()(x).logsumexp(1).sum(), x)
    assert_near(found, expected)


def test_the_weights_file_describes_its_network_and_holds_no_low_rank_branch(exported: Path) -> None:
    path = exported / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    assert names == set(DESCRIPTION.build().backbone.state_dict())
    assert read_model(path).description == DESCRIPTION
    assert read_model(path).digest() == random_model().digest()


def test_a_digest_depends_on_every_weight() -> None:
    model = random_model()
    weights = {**model.weights, "fc.bias": model.weights["fc.bias"] + 1e-3}
    assert replace(model, weights=weights).digest() != model.digest()


class Drifting(PortableModel):
    """Computes something else than its weights, which are what is written."""

    def build(self, device: torch.device | str = "cpu", where: str = "the file") -> Classifier:
        classifier = super().build(device, where)
        with torch.no_grad():
            classifier.head.bias[0] += 0.1
        return classifier


def test_an_export_that_computes_something_else_leaves_no_file(tmp_path: Path) -> None:
    model = random_model()
    with pytest.raises(RunFailedError, match="is not exported"):
        export_model(Drifting(model.description, model.weights), tmp_path, [images(4)])
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_its_low_rank_branch_is_not_exported(tmp_path: Path) -> None:
    classifier = random_model().build()
    classifier.branch = LowRankBranch(classifier, 2, "all", head="backbone.fc")
    with pytest.raises(ValueError, match="low-rank branch"):
        export_program(classifier, images(1), tmp_path / "model.pt2")
