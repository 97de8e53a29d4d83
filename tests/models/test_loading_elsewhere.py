"""A finished model computes the same in other libraries, by the examples of docs/weights.md."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from distributed_autolora.config import IMAGENET_MEAN, IMAGENET_STD
from distributed_autolora.models.portable import NetworkDescription, PortableModel
from distributed_autolora.models.pretrained import PretrainedClassifier
from tests.core.comparing import assert_near
from tests.docs.checking import ROOT
from tests.reference.networks import randomised

SECTION = (ROOT / "docs" / "weights.md").read_text().partition("## A model elsewhere")[2].partition("\n## ")[0]
ELSEWHERE, IN_MLFLOW, IN_ONNX = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)


def trained(backbone: str = "resnet18", input_size: int | None = None) -> PretrainedClassifier:
    """Returns a network with random weights and statistics in the place of a trained one."""
    described = NetworkDescription(
        backbone=backbone, num_classes=5, mean=IMAGENET_MEAN, std=IMAGENET_STD, input_size=input_size
    )
    torch.manual_seed(0)
    network = described.build()
    randomised(network)
    return PretrainedClassifier(PortableModel(described, network.backbone.state_dict()))


def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_torchvision_and_timm_compute_the_same_from_normalised_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": trained(), "x": images()}
    with torch.no_grad():
        exec(ELSEWHERE, names)
        expected = names["model"](images())
        assert_near(names["logits"], expected)
        assert_near(names["the_same"], expected)
        # What the page warns of is not refused: images in [0, 1] give other outputs.
        assert not torch.allclose(names["network"](images()), expected, rtol=0.01)


@pytest.mark.parametrize(("backbone", "options"), [("test_resnet", {}), ("vit_tiny_patch16_224", {"img_size": 32})])
def test_a_network_of_timm_returns_to_timm_but_not_its_preprocessing(
    backbone: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = trained(f"timm/{backbone}", options.get("img_size"))
    file = str(model.save_pretrained(tmp_path) / "model.safetensors")
    network = timm.create_model(backbone, num_classes=5, checkpoint_path=file, **options).eval()
    with torch.no_grad():
        assert_near(network((images() - model.mean) / model.std), model(images()))
    preprocessing: Any = timm.data
    assert preprocessing.resolve_data_config(model=network)["mean"] == (0.5, 0.5, 0.5) != model.description.mean


@pytest.mark.parametrize(
    ("backbone", "size"), [("resnet18", None), ("small_resnet", None), ("timm/vit_tiny_patch16_224", 32)]
)
def test_an_onnx_file_takes_any_number_of_images_in_the_unit_interval(
    backbone: str, size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": trained(backbone, size), "x": images(), "torch": torch}
    exec(IN_ONNX, names)
    with torch.no_grad():
        assert_near(torch.from_numpy(names["logits"]), names["model"](images()))
