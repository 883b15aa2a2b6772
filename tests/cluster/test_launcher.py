"""The files of Ray's cluster launcher: Ray's schema, and the clouds' own descriptions."""

import json
import re
import subprocess
from pathlib import Path

import googleapiclient
import pytest
import yaml
from botocore.session import Session
from botocore.validate import ParamValidator

# Ray 2.60 has no public function that validates a file without starting machines.
from ray.autoscaler._private.util import prepare_config, validate_config

LAUNCHER = Path(__file__).parent.parent.parent / "cluster" / "launcher"
CLOUDS = ("aws", "gcp")
COMMANDS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip


def read(cloud):
    found = yaml.safe_load((LAUNCHER / f"{cloud}.yaml").read_text())
    return found


def commands(cloud):
    config = read(cloud)
    return [command for key in COMMANDS for command in config.get(key, [])]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_accepts_the_file(cloud):
    config = prepare_config(read(cloud))
    validate_config(config)
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert types["head"]["resources"]["CPU"] == 0
    assert {name: (t["min_workers"], t["max_workers"]) for name, t in types.items()} == {
        "head": (0, 0), "gpu": (1, 2), "gpu_spot": (0, 8),
    }  # fmt: skip
    assert config["max_workers"] == 8
    assert types["gpu_spot"]["priority"] > types["gpu"].get("priority", 0)


def test_ec2_accepts_the_machines():
    shape = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    types = read("aws")["available_node_types"]
    for node_type in types.values():
        request = node_type["node_config"] | {"MinCount": 1, "MaxCount": 1}
        assert not ParamValidator().validate(request, shape).generate_report()
        assert request["MetadataOptions"]["HttpTokens"] == "required"
        # The role of the head may not look up anything else, such as an alias.
        assert re.fullmatch(r"ami-[0-9a-f]{17}", request["ImageId"])
    spot = dict(types["gpu_spot"]["node_config"])
    assert spot.pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot == types["gpu"]["node_config"]


def check(value, schema, schemas, at):
    """Check a value against Google's description of its API; unknown keys are errors."""
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


def test_google_accepts_the_machines():
    folder = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
    schemas = json.loads((folder / "compute.v1.json").read_text())["schemas"]
    config = read("gcp")
    types, zone = config["available_node_types"], config["provider"]["availability_zone"]
    for name, node_type in types.items():
        check(node_type["node_config"], {"$ref": "Instance"}, schemas, name)
        (disk,) = node_type["node_config"]["disks"]
        # G2 machines refuse the default disk, pd-standard.
        assert disk["initializeParams"]["diskType"] == f"zones/{zone}/diskTypes/pd-balanced"
    scheduling = {name: t["node_config"].get("scheduling", {}) for name, t in types.items()}
    assert scheduling["gpu_spot"]["provisioningModel"] == "SPOT"
    assert "provisioningModel" not in scheduling["gpu"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_commands_are_valid_bash(cloud):
    for command in commands(cloud):
        checked = subprocess.run(["bash", "-n"], input=command, text=True, capture_output=True)
        assert checked.returncode == 0, f"{command}: {checked.stderr}"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_only_the_package_and_the_token_are_copied(cloud):
    mounts = read(cloud)["file_mounts"]
    assert mounts.pop("/home/ubuntu/.ray/auth_token") == "~/.ray/auth_token"
    assert set(mounts.values()) == {
        "pyproject.toml", "README.md", "LICENSE", "cluster", "search_spaces", "trainers", "tuning",
    }  # fmt: skip
    assert all(remote == f"/home/ubuntu/lipsum-tune/{local}" for remote, local in mounts.items())
    assert any('pip install --quiet "$HOME/lipsum-tune[' in command for command in commands(cloud))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_node_has_the_shared_storage_and_requires_the_token(cloud):
    config = read(cloud)
    assert any("mount -t nfs" in c and "/shared" in c for c in config["initialization_commands"])
    assert any("RAY_AUTH_MODE=token" in c for c in config["setup_commands"])
    assert "auth_token" not in json.dumps(config["setup_commands"])
    (start,) = [c for c in config["head_start_ray_commands"] if "ray start" in c]
    assert "--head" in start
    assert "--autoscaling-config=" in start


@pytest.mark.parametrize("cloud", CLOUDS)
def test_workers_watch_for_the_notice_of_their_cloud(cloud):
    (watch,) = [c for c in read(cloud)["worker_start_ray_commands"] if "spot_notice.sh" in c]
    assert f"spot_notice.sh {cloud} " in watch
    assert watch.endswith("&")  # the launcher does not wait for it
    assert (LAUNCHER / "spot_notice.sh").exists()
