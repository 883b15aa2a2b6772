"""The batch script: linted, and run by a real Slurm with two nodes on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cluster.slurm import ENDED, running_slurm
from tests.tuning.agreement import disagreements
from tests.tuning.execution.real_searches import configuration
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "cluster" / "slurm" / "search.sbatch"
BIN = Path(sys.executable).parent
SMALL = ("--gpus-per-node=0", "--cpus-per-task=1")  # resources of the nodes in the tests


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with running_slurm(tmp_path_factory.mktemp("slurm")) as found:
        yield found


def test_shellcheck_finds_nothing():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    command = [BIN / "shellcheck", "--shell=bash", "--severity=style", SCRIPT]
    linted = subprocess.run(command, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.nightly
def test_a_job_at_its_time_limit_requeues_itself_and_resumes(slurm, images_root, tmp_path):
    # Its limit is reduced to a few minutes, and the signal of `--signal=B:TERM@120` sent at once.
    values = configuration(images_root, tmp_path / "runs")
    values["search"] |= {"budget": {"trials": 2}, "references": []}
    values["search"]["scheduler"] = {"name": "none"}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(values))
    submitted = slurm.run(
        "sbatch", "--parsable", *SMALL, "--time=60", "--output=job.log",
        f"--export=ALL,LIPSUM_TUNE_VENV={BIN.parent}", SCRIPT, "search.yaml",
        cwd=tmp_path, check=True,
    )  # fmt: skip
    job = submitted.stdout.strip()
    journal, log = tmp_path / "runs" / "small" / "journal.jsonl", tmp_path / "job.log"
    secret = tmp_path / f".lipsum-tune-{job}"

    def events():
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [json.loads(line)["event"] for line in lines]

    def state():
        return slurm.job(job)["JobState"]

    try:
        wait_until(lambda: "report" in events() or state() in ENDED, 400)
        assert state() == "RUNNING", log.read_text()
        assert (secret / "token").stat().st_mode & 0o077 == 0
        assert secret.stat().st_mode & 0o077 == 0
        hours, minutes, _ = map(int, slurm.job(job)["RunTime"].split(":"))
        limit = f"TimeLimit={60 * hours + minutes + 4}"
        slurm.run("scontrol", "update", f"JobId={job}", limit, check=True)
        slurm.run("scancel", "--signal=TERM", "--batch", job, check=True)
        wait_until(lambda: state() in ENDED | {"PENDING"}, 180)
        assert state() == "PENDING", log.read_text()
        assert slurm.job(job)["Restarts"] == "1"
        assert not secret.exists()
        ended_in_order = len(events())
        # Slurm waits two minutes by default; the nodes do not accept the job immediately.
        again = ("StartTime=now+5", "TimeLimit=60")
        slurm.run("scontrol", "update", f"JobId={job}", *again, check=True)
        wait_until(lambda: state() in ENDED, 600)
    finally:
        slurm.run("scancel", job)
    assert state() == "COMPLETED", log.read_text()
    assert len(events()) > ended_in_order
    assert not secret.exists()
    assert not Path(f"/tmp/lipsum-tune-{job}").exists()
    assert disagreements(tmp_path / "runs" / "small") == []
