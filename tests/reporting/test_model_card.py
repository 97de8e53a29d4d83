"""The card says what was measured, and its four lines load the model; the RobustBench entry has its fields."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ExifTags, Image

from distributed_autolora.data.images import ImageSource
from distributed_autolora.evaluation.attacks import label, parse
from distributed_autolora.models.export import export_model
from distributed_autolora.models.portable import NetworkDescription, PortableModel
from distributed_autolora.records import AccuracyCount, AttackResult, SanityCheck
from distributed_autolora.reporting.evaluation import chunk_line, evaluation_table
from distributed_autolora.reporting.model_card import ModelFacts, model_card, robustbench_entry
from distributed_autolora.reporting.statistics import wilson_interval
from tests.data.pictures import encode, picture, table_of
from tests.programs import program
from tests.reporting import runs
from tests.reporting.evaluations import LABEL, evaluation


def facts(**more: Any) -> ModelFacts:
    values: dict[str, Any] = {
        "architecture": "small_resnet",
        "parameters": 174_645,
        "pretrained": True,
        "method": "autolora",
        "training": None,
        "data_licence": "MIT",
        "data_provenance": "Fashion-MNIST",
        "export_differences": {"model.safetensors": 0.0, "model.pt2": 0.0},
    }
    return ModelFacts(**(values | more))


def test_the_four_lines_of_the_card_classify_images_without_this_package(tmp_path: Path) -> None:
    description = NetworkDescription(backbone="small_resnet", num_classes=5, mean=(0.2,), std=(0.3,))
    export_model(
        PortableModel(description, description.build().backbone.state_dict()), tmp_path, [torch.rand(2, 1, 8, 8)]
    )
    block = re.search(r"```python\n(.*?)```", model_card(evaluation(), facts()), re.DOTALL)
    assert block is not None
    lines = block[1].strip().splitlines()
    assert len(lines) == 4
    blocked = 'import sys; sys.modules["distributed_autolora"] = None\n'
    done = program("-I", "-c", blocked + "\n".join(lines), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"tensor\(\[([0-4], ){7}[0-4]\]\)", done.stdout.strip())


@pytest.mark.parametrize(("channels", "size"), [(3, 28), (1, 30), (3, None)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_card_reads_a_file_as_the_judged_images_were_read_and_names_its_class(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    channels: int,
    size: int | None,
    orientation: int,
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = encode(picture(0, size=(61, 40)), exif=exif)
    (tmp_path / "image.jpg").write_bytes(file)
    table = table_of(tmp_path, [file])
    judged = ImageSource(table, channels=channels, image_size=size, resized=False).images(torch.tensor([0]))
    card = model_card(evaluation(image_size=size, image_shape=tuple(judged.shape[1:])), facts())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": lambda images: torch.eye(5)[[3]]}
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[1], names)
    assert torch.equal(names["images"], judged / 255)
    assert capsys.readouterr().out == "d\n"


def test_the_card_states_accuracies_with_their_intervals_licences_and_sanity() -> None:
    card = model_card(evaluation(), facts())
    low, high = wilson_interval(841, 1000)
    assert f"| {LABEL} | 84.1 % | {100 * low:.1f} to {100 * high:.1f} % | 841 of 1,000 |" in card
    assert "Perturbations of at most 8/255 a pixel (L-infinity)" in card
    in_l2 = evaluation(norm="l2", epsilon=1.0)
    assert "Perturbations of at most 1 an image (L2)" in model_card(in_l2, facts())
    assert "at most 1 an image (L2)" in " ".join(evaluation_table(in_l2).split())
    entry = robustbench_entry(in_l2, facts())
    assert entry is not None
    assert entry["eps"] == "1"
    assert "Images: MIT." in card
    assert "| PASS | steps |" in card
    assert "Not checked" in model_card(evaluation(sanity=()), facts())
    assert "a stratified subset of 2,000" in model_card(evaluation(test_images_available=2000), facts())


def test_the_card_claims_no_separate_test_images_where_the_released_splits_do_not_keep_them_apart() -> None:
    run = runs.result(runs.history(2))
    assert "the test images took part in neither" in model_card(evaluation(), facts(training=run))
    released = model_card(evaluation(protocol="released"), facts(training=run))
    assert "took part in neither" not in released
    assert "may have test images among the training images" in released


def test_the_table_fits_80_columns_and_says_what_autoattack_was() -> None:
    table = evaluation_table(evaluation())
    assert max(map(len, table.splitlines())) <= 80
    assert LABEL in table
    assert "84.1 %" in table
    assert "PASS  steps" in table
    assert table.startswith("demo-1 on 1,000 test images of fashion-mnist-5-9;")
    subset = evaluation_table(evaluation(test_images_available=2000))
    assert subset.startswith("demo-1 on a subset of 1,000 of 2,000 test images of fashion-mnist-5-9;")


def test_the_line_of_a_chunk_fits_80_columns() -> None:
    counts = {f"robust_accuracy/pgd{i}": AccuracyCount(50, 100) for i in range(9)}
    assert len(chunk_line(100, 1000, 999, counts, 7200, 72000)) <= 80
    short = chunk_line(1, 2, 0, {"natural_accuracy": AccuracyCount(9, 10)}, 3, 65)
    assert short == "1/2 (chunk 0)  natural 90.0 %  0:03, 1:05 left"


def test_the_robustbench_entry_has_its_fields_as_texts_in_per_cent() -> None:
    assert robustbench_entry(evaluation(), facts(method="vanilla")) == {
        "link": "",
        "name": evaluation().model,
        "authors": "",
        "additional_data": True,
        "number_forward_passes": 1,
        "dataset": "fashion-mnist-5-9",
        "venue": "Unpublished",
        "architecture": "small_resnet",
        "eps": "8/255",
        "clean_acc": "93.10",
        "reported": "84.10",
        "autoattack_acc": "84.10",
        "footnote": f"{LABEL} on 1,000 test images.",
        "unreliable": False,
    }


def test_a_failed_check_makes_the_entry_unreliable_and_a_subset_has_none() -> None:
    failed = (SanityCheck("restarts", "FAIL", "", {}),)
    entry = robustbench_entry(evaluation(sanity=failed), facts())
    assert entry is not None
    assert (entry["venue"], entry["unreliable"]) == ("ICLR 2024", True)
    assert "restarts" in entry["footnote"]
    few = AttackResult("autoattack", label(parse("autoattack")[0], 3), AccuracyCount(841, 1000))
    entry = robustbench_entry(evaluation(attacks=(few,)), facts())
    assert entry is not None
    assert (entry["autoattack_acc"], entry["reported"]) == ("", "84.10"), "three classes have no standard AutoAttack"
    assert "not standard AutoAttack" in entry["footnote"]
    assert robustbench_entry(evaluation(test_images_available=2000), facts()) is None
    assert robustbench_entry(evaluation(attacks=()), facts()) is None
