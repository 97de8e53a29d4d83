"""cluster.yaml is one that `ray up` accepts, checked by Ray's own rules without a cloud."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.providers import _NODE_PROVIDERS
from ray.autoscaler._private.util import prepare_config, validate_config

from distributed_autolora.cli import parse_training_flags
from distributed_autolora.config.recipes import recipe
from distributed_autolora.orchestration.runs.names import with_precision
from distributed_autolora.training.memory_estimate import estimate

GPU_BYTES = {"g6.2xlarge": 24e9, "g6e.2xlarge": 48e9}
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return dict(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["head_start_ray_commands"]
    assert prepared["worker_start_ray_commands"]
    assert cluster["provider"]["type"] in _NODE_PROVIDERS


def test_the_nodes_run_the_pinned_ray(cluster: dict[str, Any]) -> None:
    pin = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pin is not None
    assert cluster["docker"]["image"].startswith(f"rayproject/ray:{pin[1]}-")


def test_the_limit_is_the_sum_of_all_nodes_that_may_come(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert cluster["max_workers"] == sum(node.get("max_workers", 0) for node in types.values())


def test_the_mounted_folder_is_what_the_nodes_install(cluster: dict[str, Any]) -> None:
    (target,) = cluster["file_mounts"]
    assert any(target in command and "-c constraints.txt" in command for command in cluster["setup_commands"])


def test_gpu_nodes_are_spot_nodes_that_come_only_for_work(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    head = types.pop(cluster["head_node_type"])
    assert "GPU" not in head["resources"]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert types
    for node in types.values():
        assert node["resources"]["GPU"] >= 1
        assert node["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert node["min_workers"] == 0
    assert 0 < cluster["idle_timeout_minutes"] <= 10
    # Ray would stop a node, and a spot node cannot be stopped.
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_the_flags_in_file_and_docs_train_on_as_many_gpu_nodes_as_may_come(cluster: dict[str, Any]) -> None:
    comments = re.sub(r"\n *# ", " ", (REPOSITORY / "cluster.yaml").read_text())
    aws = (REPOSITORY / "docs" / "running.md").read_text().partition("ray up cluster.yaml")[2]
    of_file, of_docs = (
        re.search(r"--scaling\.num-workers \S+ (--optimization\.\S+ \S+ ?)+", text) for text in (comments, aws)
    )
    assert of_file is not None
    assert of_docs is not None
    assert of_docs[0].split() == of_file[0].split()
    config = parse_training_flags("", "custom", shlex.split(of_file[0])).experiment
    config.validate()
    assert config.scaling.num_workers == 1
    assert config.scaling.max_workers == cluster["available_node_types"]["gpu"]["max_workers"]


def test_a_gpu_node_has_room_for_a_worker_of_the_gpu_recipes(cluster: dict[str, Any]) -> None:
    scaling = recipe("cub").scaling
    types = cluster["available_node_types"]
    types.pop(cluster["head_node_type"])
    assert scaling.use_gpu
    assert all(node["resources"]["CPU"] >= scaling.cpus_per_worker for node in types.values())
    needed = estimate(with_precision(recipe("cub-resnet50"), "bfloat16"), None).on_device(use_gpu=True)
    assert all(needed < 0.8 * GPU_BYTES[node["node_config"]["InstanceType"]] for node in types.values())


def test_the_output_folder_is_on_the_file_system_that_every_node_mounts(cluster: dict[str, Any]) -> None:
    (mount,) = [line for line in cluster["initialization_commands"] if " mount -t " in line]
    options = " ".join(cluster["docker"]["run_options"])
    volume = re.search(r"--volume (\S+):(\S+)", options)
    home = re.search(r"--env DISTRIBUTED_AUTOLORA_HOME=(\S+)", options)
    assert volume is not None
    assert home is not None
    assert volume[1] == volume[2]
    assert f":/ {volume[1]})" in mount
    assert f".{cluster['provider']['region']}." in mount
    assert Path(home[1]).is_relative_to(volume[2])
    assert any(home[1] in line for line in cluster["initialization_commands"])


def test_what_runs_on_a_new_machine_can_be_read_by_its_shell(cluster: dict[str, Any]) -> None:
    commands = [*cluster["initialization_commands"], *cluster["setup_commands"]]
    for command in commands:
        done = subprocess.run(["sh", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_process_of_the_cluster_is_told_one_auth_mode(cluster: dict[str, Any]) -> None:
    modes = re.findall(r"RAY_AUTH_MODE=(\w+)", " ".join(cluster["docker"]["run_options"]))
    assert modes == ["disabled"]
