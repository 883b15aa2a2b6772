"""The cluster-launcher files: Ray's own checks, and the clouds' own descriptions of their machines.

AWS's part of the launcher runs whole, against moto; nothing of it leaves this process.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import googleapiclient
import pytest
import yaml
from botocore.session import Session
from botocore.validate import ParamValidator
from moto import mock_aws
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.util import hash_runtime_conf, prepare_config, validate_config

ROOT = Path(__file__).parent.parent.parent
LAUNCHER = ROOT / "cluster" / "launcher"
CLOUDS = ("aws", "gcp")
COMMANDS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip


def read(cloud: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((LAUNCHER / f"{cloud}.yaml").read_text())
    return found


def commands(cloud: str) -> list[str]:
    config = read(cloud)
    return [command for key in COMMANDS for command in config.get(key, [])]


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The AWS file as the launcher completes it in an account that has launched before."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # the launcher leaves its key
        iam = boto3.client("iam")
        iam.create_instance_profile(InstanceProfileName="ray-autoscaler-v1")
        iam.create_role(RoleName="ray-autoscaler-v1", AssumeRolePolicyDocument="{}")
        iam.add_role_to_instance_profile(
            InstanceProfileName="ray-autoscaler-v1", RoleName="ray-autoscaler-v1"
        )
        yield _bootstrap_config(read("aws"), no_config_cache=True)


@pytest.fixture
def aws(account: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(account)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_accepts_the_file(cloud: str) -> None:
    config = prepare_config(read(cloud))
    validate_config(config)
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert {name: (t["min_workers"], t["max_workers"]) for name, t in types.items()} == {
        "head": (0, 0), "gpu": (1, 2), "gpu_spot": (0, 8),
    }  # fmt: skip
    assert config["max_workers"] == 8
    assert types["gpu_spot"]["priority"] > types["gpu"].get("priority", 0)


def test_the_launcher_completes_the_aws_file_and_its_machines_have_what_it_says(
    aws: dict[str, Any],
) -> None:
    resources = {name: t["resources"] for name, t in aws["available_node_types"].items()}
    assert resources["head"]["CPU"] == 0
    for name in ("gpu", "gpu_spot"):
        assert resources[name]["CPU"] == 8
        assert resources[name]["GPU"] == 1
        assert resources[name]["accelerator_type:L4"] == 1
    assert Path(aws["auth"]["ssh_private_key"]).stat().st_mode & 0o077 == 0


def test_the_aws_machines_are_closed_but_for_ssh_and_one_another(aws: dict[str, Any]) -> None:
    groups = {
        group
        for node_type in aws["available_node_types"].values()
        for group in node_type["node_config"]["SecurityGroupIds"]
    }
    (group,) = groups
    ec2 = boto3.client("ec2", region_name=aws["provider"]["region"])
    (found,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    assert found["GroupName"] == "lipsum-tune"
    rules = found["IpPermissions"]
    open_to_all = [rule for rule in rules if rule["IpRanges"] or rule["Ipv6Ranges"]]
    within = [rule for rule in rules if rule not in open_to_all]
    assert [(r["IpProtocol"], r["FromPort"], r["ToPort"]) for r in open_to_all] == [("tcp", 22, 22)]
    assert [pair["GroupId"] for rule in within for pair in rule["UserIdGroupPairs"]] == [group]


def test_aws_would_take_the_machines_that_are_asked_for(aws: dict[str, Any]) -> None:
    shape = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for node_type in aws["available_node_types"].values():
        request = dict(node_type["node_config"]) | {"MinCount": 1, "MaxCount": 1}
        del request["SubnetIds"]  # Ray takes one of them
        assert not ParamValidator().validate(request, shape).generate_report()
        assert request["MetadataOptions"]["HttpTokens"] == "required"
        # What AWS would have to look up, with rights that the head's role lacks, is no id.
        assert re.fullmatch(r"ami-[0-9a-f]{17}", request["ImageId"])
    request["Monitor"] = True
    assert "Monitor" in ParamValidator().validate(request, shape).generate_report()
    spot = aws["available_node_types"]["gpu_spot"]["node_config"]
    assert spot.pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot == aws["available_node_types"]["gpu"]["node_config"]


def check(value: Any, schema: dict[str, Any], schemas: dict[str, Any], at: str) -> None:
    """Raise where a value is not as Google describes its API; unknown keys are not, either."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"]]
    if "properties" in schema:
        assert isinstance(value, dict), at
        for key, item in value.items():
            assert key in schema["properties"], f"{at}.{key}"
            check(item, schema["properties"][key], schemas, f"{at}.{key}")
    elif schema["type"] == "array":
        for item in value:
            check(item, schema["items"], schemas, f"{at}[]")
    else:
        kinds = {"string": (str, int), "boolean": bool, "integer": int}
        assert isinstance(value, kinds[schema["type"]]), at
        assert value in schema.get("enum", [value]), f"{at} = {value}"


def test_google_would_take_the_machines_that_are_asked_for() -> None:
    folder = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
    schemas = json.loads((folder / "compute.v1.json").read_text())["schemas"]
    config = read("gcp")
    types, zone = config["available_node_types"], config["provider"]["availability_zone"]
    for name, node_type in types.items():
        check(node_type["node_config"], {"$ref": "Instance"}, schemas, name)
        (disk,) = node_type["node_config"]["disks"]
        # The default of N2 and G2 machines, pd-standard, is one that G2 machines refuse.
        assert disk["initializeParams"]["diskType"] == f"zones/{zone}/diskTypes/pd-balanced"
    with pytest.raises(AssertionError, match=r"gpu\.scheduling\.preemptable"):
        check({"scheduling": {"preemptable": True}}, {"$ref": "Instance"}, schemas, "gpu")
    scheduling = {name: t["node_config"].get("scheduling", {}) for name, t in types.items()}
    assert scheduling["gpu_spot"].pop("provisioningModel") == "SPOT"
    assert "provisioningModel" not in scheduling["gpu"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_commands_are_sound_in_the_shell_that_ray_gives_them_to(cloud: str) -> None:
    for command in commands(cloud):
        script = shlex.split(" ".join(_with_interactive(command)))[-1]
        assert command in script
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert checked.returncode == 0, f"{command}: {checked.stderr}"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_package_goes_along_and_nothing_else_of_the_repository(
    cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    mounts = read(cloud)["file_mounts"]
    assert mounts.pop("/home/ubuntu/.ray/auth_token") == "~/.ray/auth_token"
    packages = set(mounts.values())
    assert packages == {
        "pyproject.toml", "README.md", "LICENSE", "cluster", "search_spaces", "trainers", "tuning",
    }  # fmt: skip
    assert all(remote == f"/home/ubuntu/lipsum-tune/{local}" for remote, local in mounts.items())
    # Ray reads every file that goes along, to see what has changed.
    assert hash_runtime_conf(mounts, [], [])[0]
    assert any('pip install --quiet "$HOME/lipsum-tune[' in command for command in commands(cloud))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_node_has_the_shared_storage_and_the_token(cloud: str) -> None:
    config = read(cloud)
    assert any("mount -t nfs" in c and "/shared" in c for c in config["initialization_commands"])
    assert any("RAY_AUTH_MODE=token" in c for c in config["setup_commands"])
    assert "auth_token" not in json.dumps(config["setup_commands"])
    (start,) = [c for c in config["head_start_ray_commands"] if "ray start" in c]
    assert "--head" in start
    assert "--autoscaling-config=" in start


@pytest.mark.parametrize("cloud", CLOUDS)
def test_workers_wait_for_their_own_clouds_notice(cloud: str) -> None:
    config = read(cloud)
    (watch,) = [c for c in config["worker_start_ray_commands"] if "spot_notice.sh" in c]
    assert f"spot_notice.sh {cloud} " in watch
    assert watch.endswith("&")  # the launcher does not wait for it
    assert (LAUNCHER / "spot_notice.sh").exists()
