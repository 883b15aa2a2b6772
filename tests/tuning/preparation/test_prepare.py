"""Preparations through a real Ray: parallel, reported, refused, killed, on S3, on a full disk."""

import csv
import os
import signal
import subprocess
import sys
import time

import boto3
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.disks import small_disk
from tests.trainers.data.formats.trees import DOMAINNET_CLASSES, draw, make_domainnet
from tests.tuning.preparation.reading import counts, rows
from tests.tuning.result_tables import text_of
from trainers.data.data_root import read_record
from trainers.data.encoding import EncodeOptions
from trainers.data.formats.index import LayoutOptions
from trainers.data.storage import open_store
from trainers.errors import ConfigError
from tuning.cli import app
from tuning.execution.ray_session import ray_session
from tuning.preparation.manifest import PreparationFailed
from tuning.preparation.plan import PrepareOptions, plan_preparation
from tuning.preparation.prepare import prepare
from tuning.preparation.report import Display, render

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster(ray_head):
    """Keep one connection to Ray for this module; its address."""
    with ray_session(ray_head.address):
        yield ray_head.address


@pytest.fixture
def tree(tmp_path):
    return make_domainnet(tmp_path / "source")


def record(destination, domain):
    return read_record(open_store(destination).at(domain)) or {}


def parts(root):
    """Inode and time of modification of each file of Parquet."""
    return {
        str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*.parquet"))
    }


def test_domainnet_is_prepared_recorded_and_read_back(tree, tmp_path):
    data = tmp_path / "data"
    report = prepare(
        "domainnet", str(tree), str(data), PrepareOptions(shard_size=4), progress=False
    )
    assert [(d.domain, d.status, d.bad) for d in report.domains] == [
        ("painting", "done", 0),
        ("real", "done", 0),
    ]
    assert counts(data, "real/test") == dict.fromkeys(DOMAINNET_CLASSES, 1)
    assert counts(data, "real/val") == dict.fromkeys(DOMAINNET_CLASSES, 1)
    assert "t-shirt" not in counts(data, "painting/train")
    assert [name for _, name, _ in rows(data, "real/test")] == list(DOMAINNET_CLASSES)
    painting = record(data, "painting")
    assert (painting["status"], painting["layout"]) == ("done", "domainnet")
    assert painting["settings"]["--shard-size"] == 4
    splits = painting["splits"]
    assert isinstance(splits, dict)
    assert {split: made["images"] for split, made in splits.items()} == {
        "train": 6, "val": 6, "test": 7,
    }  # fmt: skip
    on_disk = sum(path.stat().st_size for path in (data / "painting").rglob("*.parquet"))
    assert sum(made["bytes"] for made in splits.values()) == on_disk
    with (data / "painting" / "findings.csv").open() as file:
        (missing,) = csv.DictReader(file)
    assert (missing["split"], missing["kind"], missing["bad"]) == ("train", "missing class", "no")
    text = text_of(render(report))
    assert "trial.data.root: " in text
    assert "missing class" in text

    before = parts(data)
    again = prepare("domainnet", str(tree), str(data), PrepareOptions(shard_size=4), progress=False)
    assert again.domains == report.domains
    assert (again.made, parts(data)) == (0, before)


def test_bad_images_are_listed_refused_and_left_out_on_request(tree, tmp_path):
    data = tmp_path / "data"
    names = {"empty": "real_000_000001.jpg", "truncated": "real_001_000003.jpg"}
    (tree / "real" / "teddy-bear" / names["empty"]).write_bytes(b"")
    cut = tree / "real" / "tent" / names["truncated"]
    cut.write_bytes(cut.read_bytes()[:-200])
    grey = Image.new("CMYK", (16, 12))
    grey.save(tree / "real" / "tiger" / "real_003_000003.jpg")
    command = ["prepare", "domainnet", str(tree), str(data), "--domains", "real"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
    text = " ".join(refused.stderr.split())
    assert "2 of 21 images cannot be used" in text
    assert "empty 1, truncated 1" in text or "truncated 1, empty 1" in text
    assert f"{data}/real/findings.csv" in text
    assert "--skip-bad 2" in text
    assert record(data, "real")["status"] == "refused"
    with (data / "real" / "findings.csv").open() as file:
        listed = {
            row["path"]: (row["split"], row["kind"], row["bad"]) for row in csv.DictReader(file)
        }
    carved = listed.pop(f"real/teddy-bear/{names['empty']}")
    assert carved in (("train", "empty", "yes"), ("val", "empty", "yes"))
    assert listed == {
        f"real/tent/{names['truncated']}": ("test", "truncated", "yes"),
        "real/tiger/real_003_000003.jpg": ("test", "CMYK", "no"),
    }
    before = parts(data)
    assert CliRunner().invoke(app, [*command, "--skip-bad", "1"]).exit_code == 1
    done = CliRunner().invoke(app, [*command, "--skip-bad", "10%"])
    assert done.exit_code == 0, done.output
    assert "2 bad images left out" in done.output
    assert record(data, "real")["status"] == "done"
    assert parts(data) == before
    assert "tent" not in counts(data, "real/test")


def test_overwrite_replaces_a_domain_and_no_other(tree, tmp_path):
    data = tmp_path / "data"
    real = LayoutOptions(domains=("real",))
    prepare("domainnet", str(tree), str(data), PrepareOptions(real, shard_size=2), progress=False)
    assert len(parts(data)) == 12
    own = data / "sketch" / "train" / "part-00000.parquet"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"another domain is left alone")
    options = PrepareOptions(real, EncodeOptions(resize=6), overwrite=True)
    report = prepare("domainnet", str(tree), str(data), options, progress=False)
    assert len(parts(data)) == 3 + 1
    assert report.made == 21
    image = rows(data, "real/test")[0]
    assert image[0] == "real/teddy-bear/real_000_000003.jpg"
    assert own.read_bytes() == b"another domain is left alone"


def test_images_go_from_a_bucket_to_a_bucket(tmp_path, bucket):
    tree = make_domainnet(tmp_path / "source", ["real"])
    client = boto3.client("s3")
    for file in tree.rglob("*.*"):
        client.upload_file(str(file), "mine", f"raw/{file.relative_to(tree)}")
    options = PrepareOptions(shard_size=4)
    report = prepare("domainnet", f"{bucket}/raw", f"{bucket}/data", options, progress=False)
    assert [(d.domain, d.status) for d in report.domains] == [("real", "done")]
    assert counts(f"{bucket}/data", "real/test") == dict.fromkeys(DOMAINNET_CLASSES, 1)
    assert record(f"{bucket}/data", "real")["source"] == f"{bucket}/raw"
    local = prepare("domainnet", str(tree), str(tmp_path / "data"), options, progress=False)
    assert rows(f"{bucket}/data", "real/val") == rows(tmp_path / "data", "real/val")
    assert [d.splits for d in local.domains] == [d.splits for d in report.domains]
    again = prepare("domainnet", f"{bucket}/raw", f"{bucket}/data", options, progress=False)
    assert again.made == 0
    missing = CliRunner().invoke(app, ["prepare", "folders", "s3://nowhere/raw", f"{bucket}/x"])
    assert (missing.exit_code, type(missing.exception).__name__) == (1, "ConfigError")
    assert "s3://nowhere/raw" in str(missing.exception)
    with pytest.raises(ConfigError, match=f"^{bucket}//raw to "):
        plan_preparation("folders", f"{bucket}//raw", f"{bucket}/x", PrepareOptions())


def test_the_same_command_goes_on_once_bad_images_are_removed(tree, tmp_path):
    bad, data = tree / "real" / "teddy-bear" / "0.png", tmp_path / "data"
    bad.write_bytes(b"")
    options = PrepareOptions(shard_size=4, test_fraction=0)
    report = prepare("folders", str(tree / "real"), str(data), options, progress=False)
    assert ([d.status for d in report.domains], len(parts(data))) == (["refused"], 6)
    bad.unlink()
    report = prepare("folders", str(tree / "real"), str(data), options, progress=False)
    assert [(d.status, d.images) for d in report.domains] == [("done", 21)]
    assert len(rows(data, "real/train")) + len(rows(data, "real/val")) == 21


def test_changed_images_are_prepared_anew(tree, tmp_path, monkeypatch):
    data = tmp_path / "data"
    options = PrepareOptions(LayoutOptions(domains=("real",)), shard_size=4)
    prepare("domainnet", str(tree), str(data), options, progress=False)
    before, run = parts(data), record(data, "real")["run"]
    draw(tree / "real" / "tent" / "real_001_000003.jpg", size=(20, 20))
    seen = []
    shown = Display.shard_ended

    def watched(display, shard, report):
        seen.append((report.reused, record(data, "real")["status"]))
        shown(display, shard, report)

    monkeypatch.setattr(Display, "shard_ended", watched)
    report = prepare("domainnet", str(tree), str(data), options, progress=False)
    assert seen == [(True, "done")] * 5 + [(False, "unfinished")]
    assert report.made == 4
    changed = {path for path, file in parts(data).items() if before[path] != file}
    assert changed == {"real/test/part-00000.parquet"}
    assert record(data, "real")["status"] == "done"
    assert record(data, "real")["run"] != run


def test_sigterm_ends_a_preparation_as_ctrl_c_does(tmp_path, cluster):
    driver, command = slow_preparation(tmp_path, cluster)
    second = CliRunner().invoke(app, command)
    assert type(second.exception).__name__ == "ConfigError"
    assert str(second.exception) == f"{tmp_path}/data/pets: another `prepare` is running there"
    driver.send_signal(signal.SIGTERM)
    text = driver.communicate()[1].decode()
    assert driver.returncode == 130, text
    assert text.splitlines()[-1] == "lipsum-tune: run the same command again to continue"
    assert "***" not in text
    assert record(tmp_path / "data", "pets")["status"] == "unfinished"


def slow_preparation(tmp_path, cluster):
    """One of 60 images that has made a few of its 30 shards, and how it was begun."""
    source, data = tmp_path / "source", tmp_path / "data"
    rng = np.random.default_rng(0)
    (source / "cat").mkdir(parents=True)
    (source / "dog").mkdir()
    Image.fromarray(rng.integers(0, 256, (600, 600, 3), dtype=np.uint8)).save(source / "cat/0.png")
    for number in range(1, 60):  # the same slow image, so that a kill comes in the middle
        os.link(source / "cat/0.png", source / ("cat", "dog")[number % 2] / f"{number}.png")
    command = [
        "prepare", "folders", str(source), str(data), "--domain", "pets",
        "--resize", "256", "--shard-size", "2", "--test-fraction", "0", "--address", cluster,
    ]  # fmt: skip
    driver = subprocess.Popen(
        [sys.executable, "-m", "tuning", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while len(parts(data)) < 3:
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.01)
    return driver, command


def test_a_killed_preparation_goes_on_where_it_was(tmp_path, cluster):
    data = tmp_path / "data"
    driver, command = slow_preparation(tmp_path, cluster)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert record(data, "pets")["status"] == "unfinished"
    left = parts(data)
    assert 3 <= len(left) < 30
    (data / "pets" / "train" / "part-00029.parquet.1.unfinished").write_bytes(b"cut off")
    resumed = CliRunner().invoke(app, command)
    assert resumed.exit_code == 0, resumed.output
    after = parts(data)
    assert len(after) == 27 + 3  # of 30 images a class 3 are carved
    kept = [path for path in left if after[path] == left[path]]
    assert len(kept) == len(left)
    assert record(data, "pets")["status"] == "done"
    assert not list(data.rglob("*.unfinished"))
    found = rows(data, "pets/train") + rows(data, "pets/val")
    assert len(found) == len({path for path, _, _ in found}) == 60


@pytest.mark.nightly
def test_a_full_disk_leaves_finished_shards(tmp_path):
    source = tmp_path / "source"
    rng = np.random.default_rng(0)
    for number in range(24):
        file = source / "cat" / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(file)
    options = PrepareOptions(LayoutOptions(domain="pets"), shard_size=2)
    with small_disk(tmp_path / "disk", 1024) as disk:
        with pytest.raises(PreparationFailed) as failed:
            prepare("folders", str(source), str(disk), options, progress=False)
        text = str(failed.value)
        assert "no space left" in text
        assert str(disk) in text
        assert "run the same command again" in text
        assert "\n" not in text
        left = parts(disk)
        assert 1 <= len(left) < 13
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        report = prepare("folders", str(source), str(disk), options, progress=False)
        assert [domain.status for domain in report.domains] == ["done"]
        assert {path: parts(disk)[path] for path in left} == left
        assert sum(len(rows(disk, f"pets/{split}")) for split in ("train", "val", "test")) == 24
