"""The built-in benchmark: the images that the program of commit b9b9d245 has drawn."""

import hashlib
import tomllib
from fnmatch import fnmatch

import pytest
from typer.testing import CliRunner

from trainers.data.store import EMBEDDED, open_root
from trainers.errors import ConfigError
from tuning.cli import app

DIGESTS = {
    "clipart/test": "004de231f5bc3a298117ec4873af51a788bd6969fcfec7f94af57f323fc056be",
    "clipart/val": "6d9981d7a026b00331609eb7cfd3520785e5713a5a4cb8cde1c9bf58d0a97ced",
    "infograph/test": "fee36e2e38c4fb57426a4baa6454842b92649d3c4165ebeec0d2742c10e3262a",
    "infograph/val": "bc340c94fdd1f173301a46d90dcd2963ba6722186a87b9f1e9a0fa866d363522",
    "painting/test": "a93c828ea0f6e0513905744dd6be759073d0dfe4dcb6072f0c03edabe1f5d91c",
    "painting/val": "083d4e91be37bba9822eed774cc7116083ed306360f634e058a322c7e13f849e",
    "real/test": "755fdec9ca62fcf69c52bc6b1fe75b56948bf35a83fd4aed3ed38349523d0b52",
    "real/train": "ad9623cc04f3a1552dd458916d2891ec1adeaaf48285a72b876e439c0674e0e7",
    "real/val": "1caf1438352e8d7e9949ce96a110422ee09a5e3de42062f7d39c550f98a526fe",
    "sketch/test": "04bf175a901e2e73c25b7b97ad2635da5e0cd94026a658646991667246cc60d5",
    "sketch/val": "33b2eb6665532e8d53c82e98c6ccbc50fa7a4e0cf23eb2779edd9f872744bd0c",
}
"""SHA-256 of each split's file."""


@pytest.fixture
def folder():
    return open_root(EMBEDDED).local_path()


def test_every_split_has_the_bytes_that_were_drawn(folder):
    files = folder.glob("*/*/*")
    assert {
        "/".join(file.parts[-3:-1]): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    } == DIGESTS


def test_the_package_has_all_of_it_with_its_licence(folder):
    project = tomllib.loads((folder.parents[1] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names == {"LICENSE", "README.md", "part-00000.parquet"}
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in names)
    assert "trainers/benchmark/LICENSE" in project["project"]["license-files"]
    assert "Attribution-ShareAlike 4.0 International" in (folder / "LICENSE").read_text()


@pytest.mark.parametrize("command", ["search", "plan"])
def test_another_id_domain_is_refused_before_anything_starts(command, tmp_path):
    words = [
        command, "quickstart", "--set", "trial.data.id_domain=sketch",
        "--set", "trial.data.ood_domains=[real,painting]", "--set", f"search.storage={tmp_path}",
    ]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigError)
    assert "openmoji/sketch: it has no split 'train'" in str(done.exception)
    assert done.exception.hint == "only real has one; set data.id_domain"
    assert not list(tmp_path.iterdir())
