"""docs/slurm/finetune.sbatch asks Ray for what SLURM gave; bash runs it with stand-ins for a cluster's programs."""

import subprocess
from pathlib import Path

import click
import pytest
from ray.scripts.scripts import start
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

from distributed_autolora.cli import TrainingFlags, parse_training_flags

SCRIPT = Path(__file__).resolve().parents[3] / "docs" / "slurm" / "finetune.sbatch"
STAND_INS = {
    "ip": "echo '7: ib0    inet 10.1.2.3/16 brd 10.1.255.255 scope global ib0'; "
    "echo '7: ib0    inet 10.9.9.9/16 scope global secondary ib0'",
    "awk": 'exec /usr/bin/awk "$@"',
    "ray": 'echo "$@" > "$HOME/ray"',
    "srun": 'printf \'%s\\0\' "$@" > "$HOME/srun"; echo $RAY_AUTH_MODE $NCCL_SOCKET_IFNAME > "$HOME/environment"',
}
GIVEN = {"DATA": "/shared/my data", "WEIGHTS": "/shared/w.pt", "OUTPUT": "/shared/out", "MLFLOW_URI": "http://h:5000"}
SLURM = {
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "32",
    "SLURM_JOB_NAME": "robust",
}


def submit(folder: Path, *words: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """Runs the script as a job of two nodes with four GPUs and 32 CPUs each."""
    (folder / "bin").mkdir()
    for name, code in STAND_INS.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{code}\n")
        (folder / "bin" / name).chmod(0o755)
    own = {"PATH": str(folder / "bin"), "HOME": str(folder), "INTERFACE": "ib0"} | SLURM | GIVEN | changed
    return subprocess.run(
        ["/bin/bash", str(SCRIPT), *words], cwd=folder, env=own, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """The folder of a job, and the words before and after `--` that srun is called with."""
    folder = tmp_path_factory.mktemp("job")
    done = submit(folder, "--epochs", "20")
    assert done.returncode == 0, done.stderr
    words = (folder / "srun").read_text().split("\0")[:-1]
    split = words.index("--")
    return folder, words[:split], words[split + 1 :]


def test_ray_takes_the_options_and_the_node_s_resources(job: tuple[Path, list[str], list[str]]) -> None:
    folder, words, _ = job
    assert words[:3] == ["--cpus-per-task=32", "ray", "symmetric-run"]
    context = symmetric_run.make_context("symmetric-run", words[3:], resilient_parsing=True)
    assert context.params["address"] == "10.1.2.3:6379"
    assert context.params["min_nodes"] == 2
    left = curate_and_validate_ray_start_args(words[3:])
    assert isinstance(start, click.Command)
    options = start.make_context("start", ["--address", "10.1.2.3:6379", *left]).params
    assert (options["num_cpus"], options["num_gpus"]) == (32, 4)
    assert (folder / "ray").read_text() == "get-auth-token --generate\n"
    assert (folder / "environment").read_text() == "token ib0\n"


def test_the_run_fills_the_job_s_gpus_and_cpus(job: tuple[Path, list[str], list[str]]) -> None:
    *_, words = job
    assert words[:4] == ["env", "RAY_ADDRESS=10.1.2.3:6379", "autolora", "finetune"]
    flags: TrainingFlags = parse_training_flags("", "demo", words[4:])
    config = flags.experiment
    config.validate()
    assert config.scaling.use_gpu
    assert config.scaling.num_workers == 2 * 4
    assert config.scaling.num_workers * config.scaling.cpus_per_worker == 2 * 32
    assert config.optimization.epochs == 20
    assert (config.data.path, config.model.weights) == (GIVEN["DATA"], GIVEN["WEIGHTS"])
    assert (config.run.output, config.run.mlflow_uri) == (GIVEN["OUTPUT"], GIVEN["MLFLOW_URI"])
    assert config.run.name == "robust"


@pytest.mark.parametrize("name", [*GIVEN, "INTERFACE"])
def test_a_missing_setting_is_refused_before_srun(name: str, tmp_path: Path) -> None:
    done = submit(tmp_path, **{name: ""})
    assert done.returncode == 1
    assert f"{name}: is not set" in done.stderr
    assert not (tmp_path / "srun").exists()


def test_the_nodes_are_the_job_s_own_because_ray_is_stopped_on_them() -> None:
    asked = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert "--exclusive" in asked
    assert "--ntasks-per-node=1" in asked  # one Ray for each node
