"""The benchmark for GPUs, as far as a CPU runs it."""

import json
import subprocess
import sys

import pytest

from tests.benchmarks.gpu import table


@pytest.mark.nightly  # two searches, in minutes
def test_the_dry_run_measures_every_part(tmp_path):
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--dry", "--out", str(tmp_path)]
    subprocess.run(command, check=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["card"] == "CPU, dry run"
    parts = found["parts"]
    assert all("error" not in part for part in parts.values()), parts
    (row,) = parts["predictions"]["rows"]
    assert (row["GB, predicted"] > 0, row["s, measured"] > 0) == (True, True)
    assert table([row]).splitlines()[0].startswith("| model | method | images |")
    loops = [row["loop"] for row in parts["throughput"]["rows"]]
    teachers = ["Lipsum-FT, live teacher", "Lipsum-FT, shared teacher"]
    assert loops == ["bare loop", "FT", *teachers]
    assert parts["nccl"]["rows"] == [{"backend": "gloo", "workers": 1, "sum": 1.0}]
    assert [row["at a time"] for row in parts["searches"]["rows"]] == [1, 2]
