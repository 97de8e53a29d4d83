"""Networks of timm: built without a download, fed, reached by the low-rank branch, and attacked like any other."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.func import functional_call

from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.core.lora import LowRankBranch
from distributed_autolora.errors import UserError
from distributed_autolora.models import Classifier, build, read_checkpoint, save_weights
from tests.core.comparing import assert_near
from tests.reference.networks import randomised


@dataclass(frozen=True)
class Case:
    """What a network's own documentation says about it."""

    name: str
    head: str
    stem: str
    input_size: int | None = None


CASES = (
    Case("timm/vit_tiny_patch16_224", "head", "patch_embed.proj", 32),
    Case("timm/convnext_atto", "head.fc", "stem.0"),
    Case("timm/swin_tiny_patch4_window7_224", "head.fc", "patch_embed.proj", 32),
    Case("timm/efficientnet_b0", "classifier", "conv_stem"),
    Case("timm/nf_regnet_b0", "head.fc", "stem.conv"),
)


def built(case: Case) -> Classifier:
    torch.manual_seed(0)
    classifier = build(case.name, 5, input_size=case.input_size)
    randomised(classifier)
    return classifier


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_timm_network_is_a_backbone_like_any_other(case: Case) -> None:
    classifier, x = built(case), torch.rand(2, 3, 32, 32)
    assert classifier.head_name == case.head
    branch = LowRankBranch(classifier, lora_rank=2, head=classifier.head_name)
    layers = {n for n, m in classifier.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert set(branch.factors()) == layers - {f"backbone.{case.stem}", f"backbone.{case.head}"}
    classifier.eval()
    with torch.no_grad():
        expected = classifier(x)
        for dtype in (torch.float32, torch.bfloat16):
            assert_near(AttackNetwork(classifier, dtype)(x), expected, dtype)
        assert_near(classifier.head(classifier.features(x)), expected)
    natural = functional_call(classifier, branch.natural_parameters(classifier), (x,))
    assert_near(natural, expected)
    natural.square().sum().backward()
    moved = {name for name, value in classifier.named_parameters() if value.grad is not None}
    assert moved == {f"backbone.{case.head}.weight", f"backbone.{case.head}.bias"}


def test_batch_norms_with_an_activation_fold_with_it() -> None:
    attack_network = AttackNetwork(built(CASES[3]))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in attack_network.modules())


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "timm/convnext_atto"])
def test_nothing_is_drawn_at_random_in_a_forward(name: str) -> None:
    classifier = build(name, 5, input_size=32).train()
    rates = [m.p for m in classifier.modules() if isinstance(m, nn.Dropout)]
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(classifier(x), classifier(x))
    assert all(rate == 0 for rate in rates)


def test_weights_of_timm_move_in_and_out(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = timm.create_model("convnext_atto", pretrained=False, num_classes=11)
    torch.save({"state_dict": source.state_dict(), "arch": "convnext_atto", "epoch": 3}, tmp_path / "w.pth.tar")
    loaded = build("timm/convnext_atto", 5, str(tmp_path / "w.pth.tar")).backbone
    for name, value in loaded.state_dict().items():
        assert name.startswith("head.fc.") or torch.equal(value, source.state_dict()[name]), name
    save_weights(loaded.state_dict(), tmp_path / "w.safetensors")
    again = build("timm/convnext_atto", 5).backbone
    again.load_state_dict(read_checkpoint(tmp_path / "w.safetensors").state)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in again.state_dict().items())


def test_grey_images_and_other_sizes_are_taken_where_the_network_takes_them() -> None:
    grey = build("timm/vit_tiny_patch16_224", 5, mean=(0.5,), std=(0.25,), input_size=32)
    assert grey(torch.rand(2, 1, 16, 16)).shape == (2, 5)
    with pytest.raises(UserError, match=r"not 32 x 32: give --model\.input-size"):
        build("timm/vit_tiny_patch16_224", 5)(torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("timm/vit_tiny_patch16_242", 'mean "timm/vit_tiny_patch16_224"'),
        ("convnext_ato", 'mean "timm/convnext_atto"'),
        ("timm/hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", "There is no backbone"),
        ("timm/deit_tiny_distilled_patch16_224", "one linear head"),
        ("timm/resnetv2_50x1_bit", "ends in a Conv2d"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        build(name, 5)
