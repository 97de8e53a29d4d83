"""Cases of data and weights, which need no Ray; each starts the program as a user does."""

import os
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from distributed_autolora.data.parquet.reader import read_texts
from tests.cases.shared import folder
from tests.programs import environment, program

pytestmark = pytest.mark.long
PREPARE = "jobs/prepare_data.py"


def prepared(source: Path, output: Path, kind: str = "folder") -> tuple[int, str]:
    """Returns status and output of a preparation; a refusal is one line."""
    done = program(PREPARE, kind, "--source", source, "--output", output)
    assert done.returncode in (0, 2), done.stderr
    assert done.stderr.count("\n") == (done.returncode == 2)
    return done.returncode, done.stdout + done.stderr


def test_04_an_open_quote_is_refused_with_its_line(tmp_path: Path) -> None:
    folder(tmp_path / "img", 10, "a", "d")
    lines = [f"img/{name}/{n}.png,{'' if (name, n) != ('a', 6) else chr(34)}{name}" for name in "ad" for n in range(10)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    status, said = prepared(tmp_path / "list.csv", tmp_path / "data", "csv")
    assert status == 2
    assert "line 8: unexpected end of data. Is a quote not closed?" in said


def test_06_names_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    for source, old, new in (("one", b"a/3.png", b"a/caf\xe9.png"), ("two", b"a", b"K\xe4se")):
        root = os.fsencode(folder(tmp_path / source, 6, "a", "b"))
        os.rename(root + b"/" + old, root + b"/" + new)
        status, said = prepared(tmp_path / source, tmp_path / "data")
        assert status == 2
        assert "is not UTF-8" in said
    done = program(PREPARE, "folder", "--source", os.fsdecode(root + b"/K\xe4se"), "--output", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_07_a_link_to_a_folder_above_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 5, "a", "b")
    (source / "a" / "loop").symlink_to(source / "a")
    status, said = prepared(source, tmp_path / "data")
    assert status == 2
    assert f"{source}/a/loop is the same folder as {source}/a" in said


def test_13_a_network_is_found_in_larger_checkpoints(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    inner = {f"model.{name}": value for name, value in state.items()}
    averaged = {"n_averaged": torch.tensor(5), **{f"module.{name}": value for name, value in state.items()}}
    parts = {("head." if name.startswith("fc") else "backbone.") + name: value for name, value in state.items()}
    torch.save({"state_dict": inner | {"criterion.weight": torch.ones(1000)}}, tmp_path / "lightning.ckpt")
    torch.save(averaged, tmp_path / "averaged.pt")
    torch.save({"state_dict": parts}, tmp_path / "mm.pth")
    prepared(folder(tmp_path / "in", 6, "a", "b"), tmp_path / "data")
    # Everything is checked before Ray is looked for; this address is none.
    base = environment(tmp_path / "home", RAY_ADDRESS="none://here")
    for name in ("lightning.ckpt", "averaged.pt", "mm.pth"):
        words = ("--recipe", "custom", "--data.path", tmp_path / "data", "--model.weights", tmp_path / name)
        done = program("jobs/finetune.py", *words, base=base)
        assert done.returncode == 2
        assert "error: RAY_ADDRESS is none://here" in done.stderr


def test_14_a_dry_run_says_what_is_wrong_with_the_images(tmp_path: Path) -> None:
    prepared(folder(tmp_path / "in", 6, "a", "b"), tmp_path / "data")
    for data, said in (("nosuch", "does not exist"), ("data", "has 10 images")):
        words = ("--study", "untuned", "--task", "custom", "--data", tmp_path / data, "--dry-run")
        done = program("jobs/compare.py", *words, DISTRIBUTED_AUTOLORA_HOME=str(tmp_path / "home"))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert said in done.stderr


def test_16_no_part_of_a_password_is_shown_or_kept(tmp_path: Path) -> None:
    uri = "http://jo:p@ss/w#rd@127.0.0.1:5999"
    done = program("jobs/finetune.py", "--run.mlflow-uri", uri, DISTRIBUTED_AUTOLORA_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "http://***@127.0.0.1:5999" in done.stderr
    assert "w#rd" not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.json"))


def test_18_a_large_image_is_prepared_without_a_warning(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 6, "\u732b", "\u72ac")
    Image.new("L", (10_000, 9_500)).save(source / "\u732b" / "big.png")
    status, said = prepared(source, tmp_path / "data")
    assert status == 0
    assert "Warning" not in said
    assert "seen: 13 = 13 written + 0 left out of train + 0 not used" in said
    assert read_texts(str(tmp_path / "data"), "test")["class_names"] == ["\u72ac", "\u732b"]
