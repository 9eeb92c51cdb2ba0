"""kuberay/*.yaml: against the fields that KubeRay and Kubernetes have, and against each other.

tests/kuberay.schema.json.gz says in its first field where it is from. Neither an API server nor KubeRay is asked.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from jsonschema import Draft202012Validator

from kvray.cli import app

ROOT = Path(__file__).parent.parent
KINDS = {
    "RayJob": "ray.RayJob",
    "Service": "io.k8s.api.core.v1.Service",
    "StatefulSet": "io.k8s.api.apps.v1.StatefulSet",
}
DOCUMENTS = [each for file in sorted(ROOT.glob("kuberay/*.yaml")) for each in yaml.safe_load_all(file.read_text())]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    text: dict[str, Any] = json.loads(gzip.decompress((Path(__file__).parent / "kuberay.schema.json.gz").read_bytes()))
    return text


@pytest.fixture
def job() -> dict[str, Any]:
    (found,) = [document for document in DOCUMENTS if document["kind"] == "RayJob"]
    copy: dict[str, Any] = json.loads(json.dumps(found))
    return copy


def errors(document: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    validator = Draft202012Validator({**schema, "$ref": f"#/$defs/{KINDS[document['kind']]}"})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["kind"])
def test_every_field_exists_and_has_its_type(document: dict[str, Any], schema: dict[str, Any]) -> None:
    assert errors(document, schema) == []


def test_the_schema_refuses_what_is_misspelt(job: dict[str, Any], schema: dict[str, Any]) -> None:
    spec = job["spec"]
    spec["backofLimit"] = spec.pop("backoffLimit")
    spec["rayClusterSpec"]["authOptions"] = {"mode": "tokens"}
    (worker,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    worker["minReplicas"] = "0"
    worker["template"]["spec"]["containers"][0]["volumeMount"] = []
    assert len(errors(job, schema)) == 4


def test_the_job_comes_again_and_its_cluster_grows_from_nothing(job: dict[str, Any]) -> None:
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"]
    assert cluster["enableInTreeAutoscaling"] and cluster["authOptions"] == {"mode": "token"}
    (worker,) = cluster["workerGroupSpecs"]
    assert worker["replicas"] == worker["minReplicas"] == 0 < worker["maxReplicas"]
    (redis,) = [each for each in DOCUMENTS if each["kind"] == "Service"]
    address = cluster["gcsFaultToleranceOptions"]["redisAddress"]
    assert address == f"redis://{redis['metadata']['name']}:{redis['spec']['ports'][0]['port']}"


def test_versions_and_paths_are_those_of_the_image(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    pinned = re.search(r"^ray==(.+)$", (ROOT / "requirements/gpu.txt").read_text(), re.MULTILINE)
    assert pinned and cluster["rayVersion"] == pinned[1]
    pods = [cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]]
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    for pod in pods:
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (1000, 100)
        assert {"name": "scratch", "mountPath": "/scratch"} in pod["containers"][0]["volumeMounts"]
        assert pod["restartPolicy"] == "Never"


def test_the_entrypoint_is_a_command_of_kvray_on_a_sweep_of_the_image(job: dict[str, Any]) -> None:
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[0] == "kvray"
    group = typer.main.get_command(app)
    group.commands[words[1]].make_context("kvray", words[2:])  # type: ignore[attr-defined]
    assert (ROOT / words[2].removeprefix("/home/ray/kvray/")).is_file()
    assert words[3] == "--store" and words[4].startswith("s3://")


def test_no_password_stands_in_a_file() -> None:
    assert not [each["kind"] for each in DOCUMENTS if each["kind"] == "Secret"]
    for document in DOCUMENTS:
        for name, value in re.findall(
            r'"name": "(\w*(?:TOKEN|KEY|PASSWORD)\w*)", "value(From)?"', json.dumps(document)
        ):
            assert value == "From", name
