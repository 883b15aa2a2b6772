"""The container file: linted, and it copies all that the package needs. No image is built."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "cluster" / "container" / "Containerfile"
BIN = Path(sys.executable).parent


def instructions(name):
    lines = FILE.read_text().replace("\\\n", " ").splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.startswith(name + " ")]


def copied():
    """Sources that are copied, and their targets in the folder of the package."""
    pairs = []
    for instruction in instructions("COPY"):
        *sources, target = instruction.split()
        pairs += [(source, target) for source in sources]
    return pairs


def test_hadolint_finds_nothing():
    command = [BIN / "hadolint", "--failure-threshold=style", FILE]
    linted = subprocess.run(command, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


def test_image_and_manifest_have_the_same_version_of_ray():
    (argument,) = [v for v in instructions("ARG") if v.startswith("RAY_VERSION=")]
    manifest = (ROOT / "cluster/kuberay/rayjob.yaml").read_text()
    assert f'rayVersion: "{argument.removeprefix("RAY_VERSION=")}"' in manifest


def test_the_image_holds_no_secrets_and_only_the_package():
    names = " ".join(instructions("ARG") + instructions("ENV"))
    assert not re.search(r"PASSWORD|TOKEN|SECRET|_KEY", names)
    ignored = (FILE.parent / "Containerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignored if not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == {name for name, _ in copied()}


def test_the_image_gets_all_that_the_package_is_built_from():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = settings["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = {"pyproject.toml", settings["project"]["readme"], "LICENSE"}
    assert {name for name, _ in copied()} == needed | {name.rstrip("*") for name in packages}
    assert all(target in ("./", name) for name, target in copied())
