"""What is exported computes what was judged, for any number of images, or is not published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from distributed_autolora.core.lora import LowRankBranch
from distributed_autolora.errors import RunFailedError, UserError
from distributed_autolora.models.export import export_graph, export_model, largest_difference, load_weights_file
from distributed_autolora.models.portable import NetworkDescription, PortableModel, file_description, read_graph

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
    assert max(differences.values()) <= 1e-5
    return folder


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_graph_takes_any_number_of_images_in_the_unit_interval(exported: Path, count: int) -> None:
    x = images(count, seed=1)
    graph = PortableModel(None, {}, read_graph(exported / "model.pt2"))
    expected = random_model().build()(x)
    assert torch.allclose(graph.build()(x), expected, rtol=1e-5, atol=1e-5)
    assert graph.channels() == 1


def test_the_graph_gives_the_gradients_that_attacks_need(exported: Path) -> None:
    x = images(3, seed=2).requires_grad_()
    (found,) = torch.autograd.grad(torch.export.load(exported / "model.pt2").module()(x).logsumexp(1).sum(), x)
    (expected,) = torch.autograd.grad(random_model().build()(x).logsumexp(1).sum(), x)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert found.abs().max() > 0


def test_the_weights_file_says_what_it_is_and_holds_no_low_rank_branch(exported: Path) -> None:
    path = exported / "model.safetensors"
    assert file_description(path) == DESCRIPTION
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    assert names == set(DESCRIPTION.build().backbone.state_dict())
    assert load_weights_file(path).digest() == random_model().digest()


def test_an_export_that_computes_something_else_is_refused() -> None:
    model, other = random_model(), random_model()
    bias = other.weights["fc.bias"].clone()
    bias[0] += 1e-3
    moved = replace(other, weights={**other.weights, "fc.bias": bias})
    assert moved.digest() != model.digest()
    with pytest.raises(RunFailedError, match="is not published"):
        largest_difference(model.build(), moved.build(), images(2), Path("model.pt2"))


def test_a_model_that_computes_differently_in_every_call_leaves_no_file(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 0.1 * torch.randn_like(x)).flatten(1)

    graph = tmp_path / "noisy.pt2"
    export_graph(Noisy(), images(1), graph)
    (tmp_path / "out").mkdir()
    with pytest.raises(RunFailedError, match="is not published"):
        export_model(PortableModel(None, {}, read_graph(graph)), tmp_path / "out", [images(4)])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_with_its_low_rank_branch_is_not_exported(tmp_path: Path) -> None:
    classifier = random_model().build()
    classifier.branch = LowRankBranch(classifier, 2, "all", head="backbone.fc")
    with pytest.raises(ValueError, match="low-rank branch"):
        export_graph(classifier, images(1), tmp_path / "model.pt2")


def test_a_damaged_graph_is_refused_in_one_line(exported: Path, tmp_path: Path) -> None:
    whole = (exported / "model.pt2").read_bytes()
    for cut in (0, 100, len(whole) // 2):
        path = tmp_path / f"cut{cut}.pt2"
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=f"cut{cut}.pt2: This is no complete file") as refusal:
            read_graph(path)
        assert "\n" not in str(refusal.value)
