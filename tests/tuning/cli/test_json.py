"""`report --json`: one document alone on the standard output."""

import json
import math
from collections.abc import Mapping

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from tests.test_public_surface import EXPECTED
from tests.tuning import fakes
from tests.tuning.confirmation.written import confirmed, write_results
from tests.tuning.run_folders import search_file, trial, write_run


def printed(run):
    """What `report --json` prints: one line, in which NaN is no JSON."""
    (line,) = CliRunner().invoke(app, ["report", str(run), "--json"]).stdout.splitlines()
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def keys_of(value, path):
    """Dotted keys. `*` is the name of a metric or parameter, `[]` an element of a list."""
    if isinstance(value, list) and value:
        for each in value:
            yield from keys_of(each, f"{path}[]")
    elif isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from keys_of(each, f"{path}.{'*' if {*key} & {*'./'} else key}")
    else:
        yield path


@pytest.fixture
def run(images_root, tmp_path):
    """A finished search of two trials, of which `confirm` has trained one again."""
    records = [fakes.reference(), trial(0, 85.0, 62.0), trial(1, 80.0, 60.0)]
    folder = write_run(tmp_path / "mine", search_file(images_root), records)
    confirmed(folder, ft=(72.0, 60.0), trial_000=(74.0, 62.0))
    write_results(folder, {("trial-000", 1002): "full"})
    return folder


def test_no_key_changes_unnoticed(run):
    assert sorted({*keys_of(printed(run), "run")}) == EXPECTED["json"]


def test_a_confirmed_run_is_one_document(run):
    shown = printed(run)
    assert shown["conclusion"]["best"] == "trial-000"
    assert shown["conclusion"]["next"] == [["lipsum-tune", "export", str(run), "--output", "model"]]
    ft, one = shown["confirmation"]["settings"]
    assert one["metrics"]["id_test/acc"]["mean"] == 62.0
    assert one["against_ft"]["id_test/acc"] == {
        "mean": 2.0, "sd": 0.0, "low": 2.0, "high": 2.0,
        "covers_seeds": True, "covers_images": False,
    }  # fmt: skip
    assert ft["against_ft"] == {}
    assert shown["confirmation"]["readings"] == [["trial-000"]]


def test_a_number_that_is_not_finite_is_null_and_nothing_is_written(images_root, tmp_path):
    bad = fakes.trial(0, outcome="pruned", curve=(fakes.report(40, 80.0, math.nan),))
    run = write_run(tmp_path / "mine", search_file(images_root), [bad])
    (shown,) = printed(run)["trials"]
    assert (shown["metrics"]["id_val/acc"], shown["metrics"]["val/mean_acc"]) == (80.0, None)
    assert not (run / "trials.csv").exists()
