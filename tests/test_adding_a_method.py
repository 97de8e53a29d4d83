"""The example of docs/adding_a_method.md works as it stands there."""

import json
import os
import re
import shutil
from pathlib import Path

from tests.programs import ROOT, program

TRAIN = """
import json, sys
from pathlib import Path
import torch
from distributed_autolora.orchestration.runs.preflight import check_inputs, find_inputs
from distributed_autolora.training.loop import fit
from distributed_autolora.training.task_data import TaskData
from tests.training.tasks import small_config, write_task

class Reporter:
    def latest(self):
        return None
    def report(self, state):
        state.save(Path(sys.argv[1]))
    def is_machine_leaving(self):
        return False

task = write_task(Path(sys.argv[1]) / "task", train=130)
config, inputs = find_inputs(small_config(task, epochs=1, method="plain"))
check_inputs(config, inputs)
result = fit(config, TaskData(config, task, torch.device("cpu")), None, Reporter())
counts = result.summary.test.natural
told = {"record": result.history[0].metrics(), "test_images": counts.total, "where": fit.__code__.co_filename}
print(json.dumps(told))
"""


def blocks_of_the_document() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding_a_method.md").read_text(), re.DOTALL)


def test_the_documented_method_is_one_file_and_one_registration_and_trains(tmp_path: Path) -> None:
    package = tmp_path / "distributed_autolora"
    shutil.copytree(ROOT / "distributed_autolora", package, ignore=shutil.ignore_patterns("__pycache__", "*.parquet"))
    file, imported, entry = blocks_of_the_document()
    assert len(file.splitlines()) <= 32
    assert len(imported.splitlines()) == len(entry.splitlines()) == 1
    (package / "core" / "plain_adversarial.py").write_text(file)
    methods = (package / "training" / "methods" / "registry.py").read_text()
    start = "METHODS: dict[str, Method] = {\n"
    assert methods.count(start) == 1
    methods = methods.replace(start, start + entry).replace("\nimport torch\n", f"\nimport torch\n{imported}", 1)
    (package / "training" / "methods" / "registry.py").write_text(methods)

    done = program("-c", TRAIN, tmp_path, cwd=tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert Path(told["where"]).is_relative_to(tmp_path), "the copy was to be trained"
    record = told["record"]
    assert [key for key in record if key.startswith("train/loss/")] == ["train/loss/total", "train/loss/adversarial"]
    # 100 images to train on and 30 to validate on; 2 steps of either attack, then one pass or two forwards and FOSC.
    # The check by two stronger attacks has 8 steps.
    checked = record["val/masking_images"]
    assert record["passes/forward"] == 100 * (2 + 1) + 30 * (2 + 3) + checked * (8 + 2)
    assert record["passes/backward"] == 100 * (2 + 1) + 30 * (2 + 1) + checked * 8
    assert told["test_images"] == 30
