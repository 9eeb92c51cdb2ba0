"""cluster.yaml passes Ray's own validation, pins what kvray pins, and opens nothing to the world."""

from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    return loaded


def validated(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    prepared = validated(config)
    assert set(prepared["available_node_types"]) == {"head", "gpu"}
    assert prepared["available_node_types"]["head"]["max_workers"] == 0, "the head type must not be started twice"


@pytest.mark.parametrize("place", [(), ("docker",), ("available_node_types", "gpu")])
def test_ray_refuses_an_unknown_key(config: dict[str, Any], place: tuple[str, ...]) -> None:
    from jsonschema.exceptions import ValidationError

    here = config
    for part in place:
        here = here[part]
    here["min_wrokers"] = 1
    with pytest.raises(ValidationError, match="min_wrokers"):
        validated(config)


def test_every_command_list_is_ours(config: dict[str, Any]) -> None:
    """Ray's AWS defaults install a nightly build, and open the dashboard."""
    commands = [line for key, lines in validated(config).items() if key.endswith("_commands") for line in lines]
    assert not [line for line in commands if "nightly" in line or "ray-wheels" in line or "0.0.0.0" in line]


def test_versions_are_those_of_the_package(config: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pinned,) = [re.sub(r".*==", "", each) for each in project["dependencies"] if each.startswith("ray[")]
    assert config["docker"]["image"] == f"rayproject/ray:{pinned}-py311-gpu"
    assert any(f"=={pinned}" in line and ".[gpu,benchmarks]" in line for line in config["setup_commands"])
    assert {"gpu", "benchmarks"} <= set(project["optional-dependencies"])


def test_both_sides_ask_for_the_token(config: dict[str, Any]) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [line for line in config[key] if "ray start" in line]
        assert "RAY_AUTH_MODE=token" in start
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    (head,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in head


def test_what_is_mounted_is_enough_to_install_and_is_in_the_project(config: dict[str, Any]) -> None:
    local = {path for path in config["file_mounts"].values() if path.startswith("./")}
    assert {"./kvray", "./pyproject.toml", "./LICENSE", "./README.md"} <= local
    missing = [path for path in local if not (ROOT / path).exists() and path != "./README.md"]
    assert not missing
