"""The benchmark of growth, with small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import growth
from tests.benchmarks.growth import main, slope
from trainers.data.cache.arrow_cache import CACHE_VARIABLE


def test_later_runs_add_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "")  # restored after the benchmark has set its own
    monkeypatch.setattr(growth, "SIMULATED_TRIALS", 16)
    for arguments in (["images", "--sizes", "100", "400"], ["devices", "--sizes", "1", "2"]):
        main(["--parts", *arguments, "--out", str(tmp_path)])
    measured = json.loads((tmp_path / "growth.json").read_text())
    sizes = [measured["images"][size]["cache, MB"] for size in ("100", "400")]
    assert sizes[1] / sizes[0] == pytest.approx(4, rel=0.1)
    assert measured["devices"]["2"].keys() == {
        "TPE + ASHA, CPU ms a trial",
        "random, CPU ms a trial",
    }
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert "one image, CPU ms" in capsys.readouterr().out


def test_the_slope_is_that_of_the_logarithms() -> None:
    assert slope([10, 100, 1000], [3, 300, 30_000]) == pytest.approx(2)
