"""The Python interface: each example of docs/api.md runs, and gives the numbers of the programs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from PIL import Image
from torch import Tensor, nn

import distributed_autolora as autolora
from distributed_autolora.config.experiment import config_text
from distributed_autolora.data.decoding import decode_image
from distributed_autolora.data.parquet.reader import read_images, read_texts
from distributed_autolora.errors import UserError
from distributed_autolora.models.weight_files import read_weights
from distributed_autolora.orchestration.evaluations.folder import RESULT_FILE
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.programs import finetune
from distributed_autolora.reporting.run.figure import NotebookFigure
from distributed_autolora.training.loop import fit
from distributed_autolora.training.reporter import NoReports
from distributed_autolora.training.task_data import TaskData
from tests.core.comparing import assert_near
from tests.docs.checking import ROOT
from tests.models.test_loading_elsewhere import IN_MLFLOW
from tests.training.tasks import small_config, write_task

PAGE = (ROOT / "docs" / "api.md").read_text()


class Net(nn.Module):
    """A network that this package does not know."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.relu(self.norm(self.deep(self.stem(x)))).mean((2, 3)))
        return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTRIBUTED_AUTOLORA_HOME", str(folder))
        write_task(folder / "DATA", train=130)
        yield folder


@pytest.fixture(scope="module")
def run(home: Path) -> autolora.Run:
    values = {"run.system_metrics": True}
    return autolora.finetune(small_config(str(home / "DATA")), epochs=2, in_process=True, values=values)


def test_importing_the_package_loads_no_torch_and_names_are_found_when_used() -> None:
    program = "import sys, distributed_autolora as a; print('torch' in sys.modules); print(a.pgd.__module__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "distributed_autolora.api.evaluations"]
    with pytest.raises(AttributeError, match="no attribute 'finetun'"):
        _ = autolora.finetun


def test_a_run_in_this_process_has_the_numbers_of_one_worker_and_returns_them(run: autolora.Run, home: Path) -> None:
    config = RunFolder(run.folder).config()
    cpu = torch.device("cpu")
    expected = fit(config, TaskData(config, str(home / "DATA"), cpu), None, NoReports())
    assert torch.equal(run.model().backbone.state_dict()["conv1.weight"], expected.weights["backbone.conv1.weight"])
    test = expected.summary.test
    assert test is not None
    assert run.metrics["test/robust_accuracy"] == test.robust.accuracy
    assert list(run.history().index) == [1, 2]
    assert run.history()["val/natural_accuracy"].iloc[-1] == expected.history[-1].natural.accuracy
    figure = run.plot()
    assert isinstance(figure, NotebookFigure)
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows that has not imported pyplot
    assert "natural accuracy" in str(run)
    assert autolora.load_run(run.result.name).metrics == run.metrics
    assert not (run.folder / "in_process").exists()


def test_a_finished_run_names_the_argument_that_runs_it_again(
    run: autolora.Run, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = autolora.finetune(small_config(str(home / "DATA")), epochs=2, in_process=True)
    assert again.folder == run.folder
    said = capsys.readouterr().out
    assert said.endswith("The same call with fresh=True runs it again under a new number.\n")
    assert "--fresh" not in said


def test_the_program_trains_and_evaluates_in_this_process_and_does_not_mix_its_checkpoints_with_rays(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, config = home / "own.yaml", small_config(str(home / "DATA"), epochs=1)
    file.write_text(config_text(config))
    typed = ["autolora finetune", "--config", str(file), "--name", "own", "--in-process"]
    monkeypatch.setattr("sys.argv", [*typed, "--evaluate", "pgd10"])
    finetune.main()
    assert not ray.is_initialized()
    folder = home / "runs" / "own"
    assert (folder / "evaluation" / RESULT_FILE).is_file()
    (folder / "result.json").unlink()
    (folder / "train").mkdir()
    with pytest.raises(UserError, match=r"started on Ray: resume it without --in-process\.$"):
        finetune.main()
    (folder / "in_process").mkdir()
    with pytest.raises(UserError, match=r"in one process: resume it with in_process=True\.$"):
        autolora.finetune(file, name="own")


def test_a_model_is_attacked_saved_loaded_and_evaluated_wherever_it_is(run: autolora.Run, home: Path) -> None:
    model, folder = run.model(), home / "saved"
    x, y = torch.rand(4, 1, 12, 12), torch.tensor([0, 1, 2, 0])
    assert 0 < (autolora.pgd(model, x, y, epsilon=0.05) - x).abs().max() <= 0.05 + 1e-6
    model.save_pretrained(folder)
    again = autolora.load_model(folder)
    assert torch.equal(again(x), model(x))
    assert not again.training
    assert (again.class_names, again.about["epsilon"]) == (("left", "right", "top"), 0.05)
    reports = [autolora.evaluate(kind, home / "DATA", attacks="pgd10", images=12) for kind in (model, folder)]
    reports.append(autolora.evaluate(nn.Sequential(model), home / "DATA", attacks="pgd10", images=12, epsilon="1/20"))
    assert reports[0].metrics == reports[1].metrics == reports[2].metrics
    assert set(reports[0].metrics) == {"natural_accuracy", "robust_accuracy/pgd10"}
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        autolora.load_model(home)


def test_mlflow_loads_a_run_s_model_as_a_network_and_as_a_function(
    run: autolora.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(3, 1, 12, 12)
    names: dict[str, Any] = {"x": x}
    uri, run_id = run.result.mlflow.uri, run.result.mlflow.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    exec(IN_MLFLOW.replace("RUN_ID", run_id), names)
    expected = run.model()(x).detach()
    assert_near(names["logits"].detach(), expected)
    assert_near(torch.from_numpy(names["the_same"]), expected)
    function = names["mlflow"].pyfunc.load_model(f"runs:/{run_id}/model")
    example = function.input_example
    (taken,), (given,) = function.metadata.signature.inputs, function.metadata.signature.outputs
    assert (taken.type, taken.shape, given.type, given.shape) == ("float32", (-1, 1, 12, 12), "float32", (-1, 3))
    assert (example.dtype, example.shape[1:]) == ("float32", (1, 12, 12))
    assert 0 <= example.min() <= example.max() <= 1
    assert "system/cpu_utilization_percentage" in names["mlflow"].get_run(run_id).data.metrics


def test_ones_own_network_trains_and_returns_from_its_folder(home: Path) -> None:
    config, own = small_config(str(home / "DATA")), Net()
    run = autolora.finetune(config, epochs=1, backbone=own, head="last", in_process=True)
    model, x = run.model(), torch.rand(2, 1, 12, 12)
    assert model(x).shape == (2, 3)
    folder = model.save_pretrained(home / "own")
    assert torch.equal(autolora.load_model(folder, backbone=Net(), head="last")(x), model(x))
    # Training began from the weights that the module had.
    kept = next((home / "backbones").glob("Net-*.safetensors"))
    assert run.result.backbone.startswith("own/Net-")
    assert torch.equal(read_weights(kept)["stem.weight"], own.stem.weight)
    with pytest.raises(UserError, match=r'no nn.Linear layer "fc": its nn.Linear layers are last'):
        autolora.finetune(config, backbone=own, in_process=True)


@pytest.mark.parametrize("kind", ["pil", "uint8", "float"])
def test_ones_own_dataset_is_written_once_without_loss(kind: str, tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (20, 3, 6, 5), dtype=torch.uint8)
    made: dict[str, Callable[[Tensor], Any]] = {
        "pil": lambda image: Image.fromarray(image.permute(1, 2, 0).numpy()),
        "uint8": lambda image: image,
        "float": lambda image: image / 255,
    }
    items = [(made[kind](image), index % 2) for index, image in enumerate(pixels)]
    folder = autolora.write_dataset(items, tmp_path / "pets", class_names=("cat", "dog"))
    train, test = read_images(folder, "train"), read_images(folder, "test")
    assert (len(train), len(test), train.class_names) == (16, 4, ("cat", "dog"))
    assert read_texts(folder, "train")["task"] == "pets"
    for table in (train, test):
        for row, row_id in enumerate(table.row_ids):
            index = int(row_id.removeprefix("train-"))
            assert int(table.labels[row]) == index % 2
            decoded = decode_image(table.encoded(row), 3)
            assert decoded.tobytes() == pixels[index].permute(1, 2, 0).numpy().tobytes()
    with pytest.raises(UserError, match="already holds"):
        autolora.write_dataset(items, tmp_path / "pets")


@pytest.mark.parametrize(
    ("item", "said"),
    [((torch.full((3, 4, 4), 2.0), 0), "outside"), (("x", 0), "str is no image"), ((None, "a"), "label")],
)
def test_a_dataset_of_something_else_is_refused(item: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        autolora.write_dataset([item] * 10, tmp_path / "DATA")


def test_the_page_s_examples_run(run: autolora.Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    examples = re.findall(r"```python\n(.*?)```", PAGE.partition("## Names")[0], re.DOTALL)
    names: dict[str, Any] = {"Net": Net, "images": [(torch.rand(3, 8, 8), index % 2) for index in range(20)]}
    small = f"autolora.load_run({run.result.name!r})  #"
    for example in examples:
        code = example.replace("autolora.finetune(", small).replace('attacks="apgd"', 'attacks="pgd10", images=12')
        exec(code, names)
    assert {name for name in autolora.__all__ if f"autolora.{name}(" not in PAGE} == {"Run", "Report"}
