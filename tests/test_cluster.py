"""cluster.yaml and aws/account.yaml by Ray's checks, CloudFormation's linter and a mock of AWS; no cloud is asked."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvray.models.lora import target_names
from kvray.models.memory import PROJECTIONS, Batch, Training, decoder_of

ROOT = Path(__file__).parent.parent
MISTRAL = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
MISTRAL |= {"intermediate_size": 14336, "vocab_size": 32000}


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


def test_both_sides_ask_for_the_token_and_load_the_secret(config: dict[str, Any]) -> None:
    fetched = next(line for line in config["initialization_commands"] if "secretsmanager get-secret-value" in line)
    host = Path(fetched.split(">")[1].split()[0])
    assert "umask 077" in fetched
    volumes = dict(re.findall(r"--volume ([^:]+):([^: ]+)", " ".join(config["docker"]["run_options"])))
    inside = Path(volumes[str(host.parent)]) / host.name
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [line for line in config[key] if "ray start" in line]
        assert "RAY_AUTH_MODE=token" in start and f". {inside};" in start
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    (head,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in head


def test_every_node_has_an_image_of_its_own_choice_and_a_fast_disk(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.aws.config import DEFAULT_AMI

    for node in config["available_node_types"].values():
        settings = node["node_config"]
        assert settings["ImageId"] not in DEFAULT_AMI.values() and "nvidia-driver" in settings["ImageId"]
        (disk,) = settings["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeType"] == "gp3" and disk["Ebs"]["Throughput"] >= 250 and disk["Ebs"]["Iops"] > 3000
    volumes = dict(re.findall(r"--volume ([^:]+):([^: ]+)", " ".join(config["docker"]["run_options"])))
    home = re.search(r"HF_HOME=(\S+)", (ROOT / "Dockerfile").read_text())
    fast = next(host for host, inside in volumes.items() if home and home[1].startswith(inside))
    assert f"install -d -m 777 {fast}" in config["initialization_commands"][0]


def test_the_account_and_the_region_are_the_same_wherever_they_stand(config: dict[str, Any]) -> None:
    text = (ROOT / "cluster.yaml").read_text()
    (registry,) = set(re.findall(r"\d{12}\.dkr\.ecr\.[\w-]+\.amazonaws\.com", text))
    assert set(re.findall(r"--region (\S+)", text)) == {config["provider"]["region"]} == {registry.split(".")[3]}


@pytest.mark.parametrize(
    ("line", "method", "tokens", "workers", "recomputed"),
    [
        ("g5.2xlarge", "lora", 4096, 1, True),
        ("g6e.2xlarge", "attention", 4096, 1, True),
        ("g6e.12xlarge", "attention", 24576, 4, True),
        ("p5.4xlarge", "attention", 4096, 1, False),
        ("p5.48xlarge", "full", 4096, 8, True),
    ],
)
def test_the_gpus_that_it_names_hold_what_it_says(
    line: str, method: str, tokens: int, workers: int, recomputed: bool
) -> None:
    """The table of instance types, against the estimate that finetunes go by."""
    row = re.search(rf"#   {re.escape(line)} +\d x \w+ +(\d+) GB .*\((\d+) GB", (ROOT / "cluster.yaml").read_text())
    decoder = decoder_of({**MISTRAL, "dtype": "bfloat16"})
    assert row and decoder
    targets = target_names("attention", PROJECTIONS) if method == "lora" else ()
    training = Training(decoder, method, targets, 16, workers=workers)
    needed = training.peak(Batch(tokens, 1, tokens, 200), recomputed) / 1e9
    assert 0 <= int(row[2]) - needed < 2 and needed < 0.9 * int(row[1])


def test_the_account_template_is_what_cloudformation_takes() -> None:
    from cfnlint.api import lint_all

    found = [str(match) for match in lint_all((ROOT / "aws/account.yaml").read_text())]
    assert not [each for each in found if not each.startswith("[I")], "errors and warnings, beside advice"


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """An empty account of a mock of AWS, after the template; its outputs by name."""
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    with mock_aws():
        stacks = boto3.client("cloudformation")
        template = (ROOT / "aws/account.yaml").read_text()
        stacks.create_stack(StackName="kvray", TemplateBody=template, Capabilities=["CAPABILITY_NAMED_IAM"])
        (stack,) = stacks.describe_stacks(StackName="kvray")["Stacks"]
        assert stack["StackStatus"] == "CREATE_COMPLETE"
        yield {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}


def test_the_template_makes_what_cluster_yaml_names(account: dict[str, str], config: dict[str, Any]) -> None:
    import boto3

    boto3.client("s3").head_bucket(Bucket=account["Store"].split("/")[2])
    assert account["Image"] == config["docker"]["image"]
    for node in config["available_node_types"].values():
        name = node["node_config"]["IamInstanceProfile"]["Name"]
        profile = boto3.client("iam").get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        assert [role["RoleName"] for role in profile["Roles"]] == [name]


def test_ray_starts_a_node_of_each_type_in_that_account(
    account: dict[str, str], config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own launcher, up to the request that starts a machine."""
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import hash_launch_conf

    monkeypatch.setenv("HOME", str(tmp_path))  # it keeps a key for ssh in ~/.ssh
    (tmp_path / ".ssh").mkdir()
    ready = bootstrap_aws(validated(config))
    provider = AWSNodeProvider(ready["provider"], "kvray")
    for kind, node in ready["available_node_types"].items():
        tags = {"ray-node-type": kind, "ray-launch-config": hash_launch_conf(node["node_config"], ready["auth"])}
        (made,) = provider.create_node(node["node_config"], tags, 1).values()
        assert made.image_id == config["available_node_types"][kind]["node_config"]["ImageId"]
        assert made.iam_instance_profile["Arn"].endswith(f"/kvray-{'head' if kind == 'head' else 'worker'}")
    groups = boto3.client("ec2").describe_security_groups()["SecurityGroups"]
    open_to_all = [
        rule.get("FromPort")
        for group in groups
        for rule in group["IpPermissions"]
        if {"CidrIp": "0.0.0.0/0"} in rule["IpRanges"]
    ]
    assert open_to_all == [22], "nothing but ssh listens to the world"
