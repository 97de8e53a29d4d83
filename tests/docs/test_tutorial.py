"""The code of docs/tutorial.ipynb runs from first to last cell; its own assertions compare the loaded models."""

import json
from pathlib import Path

import pytest

from tests.docs.checking import ROOT
from tests.programs import program


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_tutorial_runs_and_its_outputs_are_kept(tmp_path: Path) -> None:
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    assert sum(bool(cell["outputs"]) for cell in code) >= 5
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"]) == 2
    (tmp_path / "tutorial.py").write_text("\n".join("".join(cell["source"]) for cell in code))
    done = program(tmp_path / "tutorial.py", cwd=tmp_path, MPLBACKEND="agg")
    assert done.returncode == 0, done.stderr
