"""RobustBench's own loader reads a model of this package, and its leaderboard the entry of an evaluation.

The package pins another timm, so it is installed into a folder of its own, from the package index.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distributed_autolora.config.sections import IMAGENET_MEAN, IMAGENET_STD
from distributed_autolora.models import save_weights
from distributed_autolora.models.portable import NetworkDescription, read_model
from distributed_autolora.reporting.model_card import robustbench_entry
from tests.core.comparing import assert_near
from tests.reporting.evaluations import evaluation
from tests.reporting.test_model_card import facts

PACKAGES = (
    *("robustbench==1.1.1", "timm==1.0.9", "gdown==5.1.0", "torchdiffeq", "geotorch", "beautifulsoup4", "soupsieve"),
    *("PySocks", "setuptools<81", "pyautoattack==0.2.0"),
)
LOADER = """
import json, sys, torch
from robustbench.utils import ACC_FIELDS, load_model
from robustbench.model_zoo.enums import ThreatModel
folder, name = sys.argv[1:]
model = load_model(name, model_dir=folder, dataset="imagenet", threat_model="Linf")
torch.save(model(torch.load(folder + "/images.pt")).detach(), folder + "/logits.pt")
entry = json.load(open(folder + "/robustbench.json"))
for threat_model in (ThreatModel.Linf, ThreatModel.L2):
    print([float(entry[field]) for field in ACC_FIELDS[threat_model] if field in entry])
"""


@pytest.mark.long
def test_robustbench_loads_the_weights_and_reads_the_entry(tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), *PACKAGES]
    if subprocess.run(pip, check=False).returncode:
        pytest.skip("the package index cannot be reached")
    # robustbench imports pyautoattack by the name of the package that it was made from.
    (site / "autoattack").symlink_to(site / "pyautoattack")
    description = NetworkDescription(backbone="resnet18", num_classes=1000, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(description.build().backbone.state_dict(), tmp_path / "model.safetensors", description.metadata())
    name = "Salman2020Do_R18"
    (tmp_path / "imagenet" / "Linf").mkdir(parents=True)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "imagenet" / "Linf" / f"{name}.pt")
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.save(images, tmp_path / "images.pt")
    (tmp_path / "robustbench.json").write_text(json.dumps(robustbench_entry(evaluation(), facts())))
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(tmp_path), name],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["[84.1]", "[84.1]"]
    with torch.no_grad():
        expected = read_model(tmp_path / "model.safetensors").build()(images)
    assert_near(torch.load(tmp_path / "logits.pt"), expected, torch.float32)
