"""Classifiers take images in [0, 1]; weights move in and out by torchvision's names, strictly."""

from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2.functional import normalize

from distributed_autolora.config import IMAGENET_MEAN, IMAGENET_STD
from distributed_autolora.errors import UserError
from distributed_autolora.models import build, read_weights
from distributed_autolora.models.small_resnet import SmallResNet


def test_a_classifier_normalises_inside_as_torchvision_does_outside() -> None:
    torch.manual_seed(0)
    classifier = build("resnet18", 7).eval()
    x = torch.rand(2, 3, 32, 32)
    outside = normalize(x, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(classifier(x), classifier.backbone(outside))
    assert classifier(x).shape == (2, 7)


def test_black_and_white_pixels_have_the_gradient_of_the_network_behind_them() -> None:
    torch.manual_seed(0)
    classifier = build("small_resnet", 3, mean=(0.5,), std=(0.25,)).eval()
    x = torch.rand(2, 1, 12, 12).round().requires_grad_()
    (inside,) = torch.autograd.grad(classifier(x).square().sum(), x)
    normalised = ((x - 0.5) / 0.25).detach().requires_grad_()
    (outside,) = torch.autograd.grad(classifier.backbone(normalised).square().sum(), normalised)
    torch.testing.assert_close(inside, outside / 0.25)
    assert inside.count_nonzero() > 0.9 * inside.numel()


def test_up_sampling_replicates_pixels_inside_the_model() -> None:
    torch.manual_seed(0)
    plain = build("small_resnet", 3, mean=(0.5,), std=(0.25,)).eval()
    up = build("small_resnet", 3, mean=(0.5,), std=(0.25,), input_size=28).eval()
    up.load_state_dict(plain.state_dict())
    x = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(up(x), plain(x.repeat_interleave(7, 2).repeat_interleave(7, 3)))


def test_the_small_resnet_has_about_0_2_million_parameters() -> None:
    assert 170_000 < sum(p.numel() for p in SmallResNet(1, 5).parameters()) < 200_000


def test_features_are_what_the_head_sees() -> None:
    classifier = build("small_resnet", 3, mean=(0.5,), std=(0.25,)).eval()
    x = torch.rand(4, 1, 12, 12)
    torch.testing.assert_close(classifier.head(classifier.features(x)), classifier(x))


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {}}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="plain state dict"):
        read_weights(tmp_path / "w.pt")


def test_an_unknown_backbone_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match='mean "resnet50"'):
        build("resnet5O", 10)
    with pytest.raises(UserError, match="3 channels"):
        build("resnet18", 10, mean=(0.5,), std=(0.5,))
