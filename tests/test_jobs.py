"""skypilot/sweep.yaml and anyscale/job.yaml: against the fields that both services' packages know; no service is asked.

tests/jobs.schema.json.gz says in its first field where it is from.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from jsonschema import Draft202012Validator
from packaging.version import Version

from kvray.cli import app

ROOT = Path(__file__).parent.parent
SCHEMAS = json.loads(gzip.decompress((ROOT / "tests" / "jobs.schema.json.gz").read_bytes()))


@pytest.fixture
def sky() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "skypilot/sweep.yaml").read_text())
    return loaded


@pytest.fixture
def job() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "anyscale/job.yaml").read_text())
    return loaded


def errors(document: object, schema: str) -> list[str]:
    return [f"{each.json_path}: {each.message}" for each in Draft202012Validator(SCHEMAS[schema]).iter_errors(document)]


def test_every_field_exists_and_has_its_type(sky: dict[str, Any], job: dict[str, Any]) -> None:
    assert errors(sky, "skypilot") == errors(sky["resources"], "skypilot_resources") == errors(job, "anyscale") == []


def test_what_is_misspelt_is_refused(sky: dict[str, Any], job: dict[str, Any]) -> None:
    sky["resource"] = sky.pop("resources")
    assert len(errors(sky, "skypilot")) == 1
    assert len(errors({"use_spots": True, "use_spot": "maybe"}, "skypilot_resources")) == 2
    job["max_retry"] = job.pop("max_retries")
    job["compute_config"]["worker_nodes"][0]["market_type"] = "SPOTTY"
    assert len(errors(job, "anyscale")) == 2


def commands(script: str) -> list[list[str]]:
    """Return the words of each kvray command of a script."""
    found = re.findall(r"(?:^|\n)\s*(?:python -m kvray\.cli|kvray) ([^\n]*)", script)
    return [shlex.split(line, comments=True) for line in found]


def test_their_commands_are_ours_and_their_sweep_is_there(sky: dict[str, Any], job: dict[str, Any]) -> None:
    subprocess.run(["bash", "-n"], input=sky["setup"] + sky["run"], text=True, check=True)
    group = typer.main.get_command(app)
    (entry,) = commands(job["entrypoint"])
    typed = [*commands(sky["run"]), entry]
    assert [words[0] for words in typed] == ["doctor", "run", "run"]
    for words in typed:
        command = group.commands[words[0]]  # type: ignore[attr-defined]
        command.make_context(words[0], words[1:], resilient_parsing=False)
    for file in (sky["envs"]["SWEEP"], entry[1]):
        assert (ROOT / file).is_file()


def test_both_install_the_pinned_set_in_the_python_that_it_is_of(sky: dict[str, Any], job: dict[str, Any]) -> None:
    pinned = (ROOT / "requirements/gpu.txt").read_text()
    (python,) = re.findall(r"--python (3\.\d+)", sky["setup"])
    (ray,) = re.findall(r"^ray==(\S+)", pinned, re.MULTILINE)
    assert "--no-deps -r requirements/gpu.txt ." in sky["setup"] and job["requirements"] == "requirements/gpu.txt"
    assert f"Python {python}" in pinned
    image = re.fullmatch(r"docker\.io/anyscale/ray:([\d.]+)-slim-py(\d)(\d+)-cu130", job["image_uri"])
    assert image is not None and Version(image[1]) == Version(ray) and f"{image[2]}.{image[3]}" == python


def test_both_come_again_from_nothing_and_carry_no_secret(sky: dict[str, Any], job: dict[str, Any]) -> None:
    assert sky["envs"]["STORE"] is None, "to be given, so that what is made outlives the machine"
    assert sky["secrets"] == {"HF_TOKEN": ""} and sky["resources"]["job_recovery"]["max_restarts_on_errors"] > 0
    (gpu,) = job["compute_config"]["worker_nodes"]
    assert gpu["min_nodes"] == 0 < gpu["max_nodes"] and job["max_retries"] > 0 and "env_vars" not in job
    assert {".git", ".venv", "store"} <= set(job["excludes"])
