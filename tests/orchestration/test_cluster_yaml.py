"""cluster.yaml is one that `ray up` accepts, checked by Ray's own rules without a cloud."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError  # type: ignore[import-untyped]
from ray.autoscaler._private.providers import _NODE_PROVIDERS
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return dict(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["head_start_ray_commands"]
    assert prepared["worker_start_ray_commands"]


def test_the_provider_is_one_that_ray_knows(cluster: dict[str, Any]) -> None:
    assert cluster["provider"]["type"] in _NODE_PROVIDERS


def test_a_misspelt_key_is_refused(cluster: dict[str, Any]) -> None:
    cluster["idle_timeout_minute"] = cluster.pop("idle_timeout_minutes")
    with pytest.raises(ValidationError, match="idle_timeout_minute"):
        validate_config(prepare_config(cluster))


def test_the_nodes_run_the_pinned_ray(cluster: dict[str, Any]) -> None:
    pin = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pin is not None
    assert cluster["docker"]["image"].startswith(f"rayproject/ray:{pin[1]}-")


def test_the_limit_is_the_sum_of_all_nodes_that_may_come(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert cluster["max_workers"] == sum(node.get("max_workers", 0) for node in types.values())


def test_the_head_has_no_gpu_and_the_workers_have(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert "GPU" not in types.pop(cluster["head_node_type"])["resources"]
    assert types
    assert all(node["resources"]["GPU"] >= 1 for node in types.values())


def test_the_mounted_folder_is_what_the_nodes_install(cluster: dict[str, Any]) -> None:
    (target,) = cluster["file_mounts"]
    assert any(target in command and "-c constraints.txt" in command for command in cluster["setup_commands"])
