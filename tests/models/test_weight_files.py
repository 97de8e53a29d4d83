"""Published checkpoints load strictly, from every layout; nothing in a file is executed or passed over in silence."""

import argparse
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from distributed_autolora.config import ExperimentConfig, ModelConfig
from distributed_autolora.errors import UserError
from distributed_autolora.models import build, load_backbone, read_checkpoint, save_weights
from distributed_autolora.models import weights_digest as digest_of
from distributed_autolora.models.portable import NetworkDescription, PortableModel, read_model
from distributed_autolora.models.small_resnet import SmallResNet
from distributed_autolora.models.weight_files import SHA256
from tests.models.checkpoints import IMAGENET, Payload, State, attacker_state, column, write_robust_imagenet


def small(classes: int = 9, channels: int = 3) -> SmallResNet:
    return SmallResNet(channels, classes)


def assert_backbone_is(network: nn.Module, source: nn.Module) -> None:
    expected = source.state_dict()
    for name, value in network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(("name", "key"), [("resnet18", "model"), ("resnet50", "state_dict")])
def test_a_robust_imagenet_checkpoint_gives_its_backbone_and_a_fresh_head(tmp_path: Path, name: str, key: str) -> None:
    torch.manual_seed(1)
    source = torchvision.models.get_model(name, weights=None)
    path = write_robust_imagenet(tmp_path / "robust.ckpt", source, key=key)
    classifier = build(name, 7, str(path))
    assert_backbone_is(classifier.backbone, source)
    assert classifier.head.weight.shape[0] == 7


def _robustbench(state: State) -> object:
    wrapped = {f"model.{name}": value for name, value in state.items()}
    normaliser = {"normalize.mean": column(IMAGENET[0]), "normalize.std": column(IMAGENET[1])}
    return {"state_dict": {**normaliser, **wrapped}, "best": np.float64(61.0), "args": argparse.Namespace(lr=0.1)}


LAYOUTS: dict[str, Callable[[State], object]] = {
    "plain": lambda state: state,
    "data parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "RobustBench": _robustbench,
    "mu and sigma": lambda state: {"mu": column(IMAGENET[0])[None], "sigma": column(IMAGENET[1])[None], **state},
    "sequential": lambda state: (
        {"0.mean": column(IMAGENET[0]), "0.std": column(IMAGENET[1])}
        | {f"1.{name}": value for name, value in state.items()}
    ),
    "compiled": lambda state: {"model": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
    "without counters": lambda state: {n: value for n, value in state.items() if "num_batches_tracked" not in n},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_backbone_and_the_head(tmp_path: Path, name: str) -> None:
    source, network = small(), small()
    torch.save(LAYOUTS[name](source.state_dict()), tmp_path / "w.pt")
    load_backbone(network, tmp_path / "w.pt", head="fc", mean=IMAGENET[0], std=IMAGENET[1])
    assert_backbone_is(network, source)
    assert torch.equal(read_checkpoint(tmp_path / "w.pt").state["fc.weight"], source.state_dict()["fc.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_half_precision_weights_become_float32(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in small().state_dict().items()}
    path = tmp_path / f"w{suffix}"
    torch.save(state, path) if suffix == ".pt" else save_weights(state, path)
    found = read_checkpoint(path).state
    assert found["conv1.weight"].dtype == torch.float32
    assert torch.equal(found["conv1.weight"].to(dtype), state["conv1.weight"])
    assert found["bn1.num_batches_tracked"].dtype == torch.int64


def test_weights_come_from_a_uri(tmp_path: Path) -> None:
    source = small()
    save_weights(source.state_dict(), tmp_path / "w.safetensors")
    network = small()
    fresh = network.fc.weight.clone()
    load_backbone(network, f"file://{tmp_path}/w.safetensors", head="fc")
    assert_backbone_is(network, source)
    assert torch.equal(network.fc.weight, fresh)
    for uri in (f"file://{tmp_path}/none.pt", "gopher://host/w.pt"):
        with pytest.raises(UserError, match="cannot be read"):
            load_backbone(network, uri, head="fc")


COPIES = ("module.model.", "module.attacker.model.")
REFUSED: list[tuple[Callable[[State], dict[str, Tensor | None]], str]] = [
    (lambda state: {f"{COPIES[1]}conv1.weight": state[f"{COPIES[0]}conv1.weight"] + 1}, "differ.*model.conv1.weight"),
    (lambda state: {f"{COPIES[1]}layer1.0.conv1.weight": None}, "model.layer1.0.conv1.weight"),
    (
        lambda state: {"module.attacker.normalize.new_std": state["module.normalizer.new_std"] * 2},
        "normalizer.new_std",
    ),
    (
        lambda state: (
            {f"{copy}layer1.0.conv1.weight": None for copy in COPIES}
            | {f"{copy}layer1.0.convolution.weight": state[f"{copy}layer1.0.conv1.weight"] for copy in COPIES}
        ),
        "missing layer1.0.conv1.weight; unexpected layer1.0.convolution.weight",
    ),
    (lambda state: {"module.extra.weight": torch.zeros(2)}, "extra.weight"),
    (
        lambda state: {f"{copy}conv1.weight": torch.zeros(16, 1, 3, 3) for copy in COPIES},
        r"conv1.weight is \[16, 1, 3, 3\], not \[16, 3, 3, 3\]",
    ),
]


@pytest.mark.parametrize(("changes", "named"), REFUSED)
def test_a_changed_checkpoint_is_refused_by_the_tensor_s_name(
    tmp_path: Path, changes: Callable[[State], dict[str, Tensor | None]], named: str
) -> None:
    def change(state: State) -> None:
        for name, value in changes(dict(state)).items():
            state.pop(name, None)
            if value is not None:
                state[name] = value

    path = write_robust_imagenet(tmp_path / "robust.ckpt", small(), change=change)
    with pytest.raises(UserError, match=named):
        load_backbone(small(), path, head="fc")


def test_a_head_of_other_classes_is_dropped_for_fine_tuning_and_refused_for_evaluation(tmp_path: Path) -> None:
    save_weights(small(9).state_dict(), tmp_path / "w.safetensors")
    load_backbone(small(5), tmp_path / "w.safetensors", head="fc")
    five = NetworkDescription(backbone="small_resnet", num_classes=5, mean=IMAGENET[0], std=IMAGENET[1])
    with pytest.raises(UserError, match=r"fc.weight is \[9, 64\], not \[5, 64\]"):
        PortableModel(five, read_checkpoint(tmp_path / "w.safetensors").state).build()


def test_another_normalisation_than_the_file_s_is_refused(tmp_path: Path) -> None:
    path = write_robust_imagenet(tmp_path / "robust.ckpt", torchvision.models.resnet18())
    with pytest.raises(UserError, match=r"mean 0.485 0.456 0.406.*--model.mean 0.485 0.456 0.406"):
        build("resnet18", 5, str(path), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    own = tmp_path / "own.safetensors"
    save_weights(small(channels=1).state_dict(), own, {"mean": "[0.286]", "std": "[0.353]"})
    with pytest.raises(UserError, match=r"std 0.353"):
        build("small_resnet", 5, str(own), mean=(0.286,), std=(0.5,))
    assert build("small_resnet", 5, str(own), mean=(0.286,), std=(0.353,)).mean.item() == pytest.approx(0.286)


DESCRIBED = {"backbone": "resnet18", "num_classes": "10", "mean": "[0.5, 0, 1]", "std": "[0.2, 0.2, 0.2]"}


def test_a_description_comes_back_from_metadata() -> None:
    description = NetworkDescription.from_metadata(DESCRIBED)
    assert description is not None
    assert description.metadata() == {**DESCRIBED, "input_size": "null"}


@pytest.mark.parametrize(
    "foreign",
    [
        {"mean": "0.5", "std": "0.2"},
        {"mean": '["a", "b", "c"]'},
        {"std": "[[1], [1], [1]]"},
        {"mean": "[true, true, true]"},
        {"std": "[1, NaN, 1]"},
        {"std": "[]"},
        {"num_classes": '"10"'},
        {"num_classes": "10.0"},
        {"num_classes": "-1"},
        {"num_classes": "true"},
        {"num_classes": "null"},
        {"input_size": "[32, 32]"},
    ],
)
def test_metadata_of_another_program_is_no_description(tmp_path: Path, foreign: dict[str, str]) -> None:
    metadata = DESCRIBED | foreign
    assert NetworkDescription.from_metadata(metadata) is None
    save_weights(small().state_dict(), tmp_path / "w.safetensors", metadata)
    assert read_checkpoint(tmp_path / "w.safetensors").state.keys() == small().state_dict().keys()
    with pytest.raises(UserError, match="does not say which network it belongs to"):
        read_model(tmp_path / "w.safetensors")


def test_a_file_with_two_networks_is_refused(tmp_path: Path) -> None:
    state = small().state_dict()
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="it holds 2: state_dict, state_dict_ema"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_creates_no_file(tmp_path: Path, zipped: bool) -> None:
    path, mark = tmp_path / "w.pt", tmp_path / "executed"
    content = {"model": attacker_state(small()), "epoch": Payload(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="without executing code from it"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="is not verified"):
        read_checkpoint(path, allow_pickle=True)
    with pytest.raises(UserError, match="has SHA-256"):
        read_checkpoint(path, allow_pickle=True, digest="0" * 64)
    with pytest.raises(UserError, match="without executing code from it"):
        read_checkpoint(path, digest=digest_of(path))
    assert not mark.exists()
    read_checkpoint(path, allow_pickle=True, digest=digest_of(path))
    assert mark.exists(), "the payload works, so the refusals above refused something"


def test_the_refusal_of_a_plain_pickle_does_not_advise_to_execute_it(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(attacker_state(small())))
    with pytest.raises(UserError, match=r"cannot be read \(\w[^()]*\)\. Is the file complete") as refusal:
        read_checkpoint(path)
    assert "weights_only" not in str(refusal.value)


def test_a_config_that_allows_pickles_must_name_the_digest() -> None:
    with pytest.raises(UserError, match="also give"):
        ExperimentConfig(model=ModelConfig(allow_pickle=True)).validate()
    ExperimentConfig(model=ModelConfig(allow_pickle=True, weights_digest="0" * 64)).validate()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".old"])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"w{suffix}"
    state = small().state_dict()
    if suffix == ".safetensors":
        save_weights(state, whole)
    else:
        torch.save(state, whole, _use_new_zipfile_serialization=suffix == ".pt")
    data = whole.read_bytes()
    for kept in (0, 1, 7, 100, 3000, len(data) // 2, len(data) - 50):
        path.write_bytes(data[:kept])
        with pytest.raises(UserError) as caught:
            read_checkpoint(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_published_name_must_have_the_published_bytes(tmp_path: Path) -> None:
    path = write_robust_imagenet(tmp_path / "resnet18_linf_eps4.0.ckpt", small())
    with pytest.raises(UserError, match=r"not the published resnet18_linf_eps4.0.ckpt.*6f8ccef1ae49"):
        digest_of(path)
    with pytest.raises(UserError, match="not the published"):
        load_backbone(small(), path, head="fc")
    network = small()
    load_backbone(network, path, head="fc", digest=hashlib.sha256(path.read_bytes()).hexdigest())
    assert all(len(digest) == 64 and int(digest, 16) for digest in SHA256.values())


def test_tied_weights_are_written_and_come_back(tmp_path: Path) -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    network = nn.Sequential(first, second)
    save_weights(network.state_dict(), tmp_path / "w.safetensors")
    found: dict[str, Tensor] = read_checkpoint(tmp_path / "w.safetensors").state
    assert torch.equal(found["0.weight"], found["1.weight"])
    assert torch.equal(found["0.weight"], first.weight)
