"""Searches whose storage fails in the middle: a disk that is full, a bucket that refuses.

Slow: real searches on a real Ray, on a real disk of a few megabytes and a real server of S3.
"""

import json
import re
import threading
from contextlib import contextmanager

import boto3
import pytest
from rich.console import Console

from tests.disks import fill, make_room, small_disk
from tests.s3 import SECRET, s3_server
from tests.tuning.agreement import disagreements
from tests.tuning.execution.instant import num_reports
from tests.tuning.execution.real_searches import outcomes, real_file
from trainers.checkpoints.format import WEIGHTS
from trainers.errors import StorageFailed
from trainers.fine_tune import fine_tune
from tuning.execution.ray_session import ray_session
from tuning.run import load_run
from tuning.search import resume_search, run_search
from tuning.weights.export import export_weights

pytestmark = pytest.mark.ray

ONE_TRIAL = "search.budget.trials=1"
"""A search whose storage fails must not start the second of its two trials; no resume needs it."""


@pytest.fixture(scope="module", autouse=True)
def server(ray_head):
    """The S3 server, and a connection to Ray for this module."""
    with s3_server() as server, ray_session(ray_head.address):
        yield server


@contextmanager
def from_then_on(condition, action):
    """Within the block, repeat an action from the time on at which a condition holds first."""
    ended = threading.Event()

    def watch():
        while not ended.is_set() and not condition():
            ended.wait(0.02)
        while not ended.wait(0.02):
            action()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def check_as_undisturbed(file, records):
    """The trials measured the same as plain fine-tunings without an interruption."""
    for record in records:
        *_, last = fine_tune(file.trial_config(record.params))
        for name in ("id_val/acc", "ood_val/mean_acc", "train/loss"):
            assert record.metrics[name] == pytest.approx(last.metrics[name], rel=1e-4), name


@pytest.mark.cluster
def test_a_search_on_a_full_disk_can_be_resumed(images_root, tmp_path, caplog, capfd):
    with small_disk(tmp_path / "disk", 100_000) as disk:
        file = real_file(images_root, disk, search__budget__trials=2)
        folder = disk / "runs" / "small"
        with (
            # Again and again, as the trial removes a checkpoint when the next one is complete.
            from_then_on(lambda: num_reports(folder) > 0, lambda: fill(disk)),
            pytest.raises(StorageFailed) as caught,
        ):
            run_search(file, console=Console(quiet=True))
        assert "Traceback" not in caplog.text + "".join(capfd.readouterr())
        assert "\n" not in str(caught.value)
        # The driver's journal or a worker's checkpoint, the first of them that fails.
        assert re.match(rf"(node \S+: )?{folder}", str(caught.value))
        assert ": No space left on device; " in str(caught.value)
        assert f"`lipsum-tune resume {folder}`" in str(caught.value)
        first = load_run(folder)
        assert outcomes(first) == {"trial-000": "stopped"}
        make_room(disk)
        found = resume_search(folder, [ONE_TRIAL], console=Console(quiet=True))
        assert outcomes(found) == {"trial-000": "finished"}
        events = [json.loads(line) for line in (folder / "journal.jsonl").open()]
        started = [event["trial"] for event in events if event["event"] == "started"]
        assert set(started) == {"trial-000"}
        assert disagreements(folder) == []
        check_as_undisturbed(file, list(found.run.history.records))


@pytest.mark.nightly
def test_a_search_with_a_refusing_bucket_can_be_resumed(server, images_root, tmp_path):
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="mine")
    settings = {"search__budget__trials": 2, "search__checkpoints__storage": "s3://mine/searches"}
    file = real_file(images_root, tmp_path, **settings)
    folder = tmp_path / "runs" / "small"

    def refuse(files):
        denied = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject"}
        statement = {**denied, "Resource": f"arn:aws:s3:::mine/*{files}"}
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        s3.put_bucket_policy(Bucket="mine", Policy=json.dumps(policy))

    # Not the folders, nor Ray Train's list: Arrow's own copying would not tell of a file alone.
    with (
        from_then_on(lambda: num_reports(folder) > 0, lambda: refuse(WEIGHTS)),
        pytest.raises(StorageFailed) as caught,
    ):
        run_search(file, console=Console(quiet=True))
    run = load_run(folder)
    home = f"s3://mine/searches/small-{run.history.run_id}"
    assert re.match(rf"node \S+: {home}/train", str(caught.value))
    assert "a checkpoint cannot be written: When uploading part" in str(caught.value)
    assert "ACCESS_DENIED" in str(caught.value)
    assert f"`lipsum-tune resume {folder}`" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert run.history.outcome == "stopped"
    assert outcomes(run) == {"trial-000": "stopped"}

    refuse("")
    with pytest.raises(StorageFailed, match="the folder of checkpoints cannot be used"):
        resume_search(folder, console=Console(quiet=True))
    s3.delete_bucket_policy(Bucket="mine")
    found = resume_search(folder, [ONE_TRIAL], console=Console(quiet=True))
    assert outcomes(found) == {"trial-000": "finished"}
    check_as_undisturbed(file, list(found.run.history.records))
    exported = export_weights(folder, tmp_path / "model")
    assert (exported / "open_clip_model.safetensors").is_file()
    # Nothing of the storage's credentials is in what the search left.
    text = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET.encode() not in text
