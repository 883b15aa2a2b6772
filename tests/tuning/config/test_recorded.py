"""Run folders of other versions: with keys more, keys less, and other defaults."""

import shutil
from functools import reduce
from operator import getitem
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from tests.tuning import fakes
from tests.tuning.run_folders import edit_journal, search_file, trial, write_run
from trainers.errors import ConfigError
from trainers.overrides import nest
from tuning import search as search_module
from tuning.config.recorded import REMOVED_KEYS
from tuning.log.paths import CONFIG_FILE
from tuning.log.resume import earlier_run
from tuning.run import load_run

KEPT = Path(__file__).parents[1] / "log" / "kept"


@pytest.fixture
def run(images_root, tmp_path):
    records = [fakes.reference(), *(trial(n, 85.0 - n, 62.0) for n in range(3))]
    return write_run(tmp_path / "runs" / "run", search_file(images_root), records)


@pytest.fixture
def went_on(monkeypatch):
    files = []

    def go_on(folder, file, *_):
        files.append(file)
        raise ConfigError("went on")

    monkeypatch.setattr(search_module, "continue_search", go_on)
    return files


def edit(run, added=MappingProxyType({}), removed=()):
    """Write the run as a version with these keys more and less would have."""
    config = run / CONFIG_FILE
    values = nest(added, yaml.safe_load(config.read_text()))
    for key in removed:
        *sections, last = key.split(".")
        del reduce(getitem, sections, values)[last]
    config.write_text(yaml.safe_dump(values))

    def without(events):
        for event in events:
            prints = event.get("fingerprints", {})
            yield event | {"fingerprints": {k: v for k, v in prints.items() if k not in removed}}

    edit_journal(run, without)


def resumed(run, *options):
    return CliRunner().invoke(app, ["resume", str(run), *options]).exception


def test_readers_skip_keys_that_they_do_not_know_and_name_them(run, caplog):
    edit(run, {"trial.optim.news": 7, "search.later": {"a": 1}})
    shown = CliRunner().invoke(app, ["report", str(run)])
    assert shown.exit_code == 0, shown.exception
    assert "this version does not know are skipped: search.later, trial.optim.news" in caplog.text
    assert load_run(run).unknown == {"trial.optim.news": 7, "search.later": {"a": 1}}


def test_a_key_that_only_this_version_has_stands_at_its_default(run, images_root, went_on):
    edit(run, removed=["trial.optim.eps", "trial.seed"])
    assert str(resumed(run)) == "went on"
    assert went_on[0] == search_file(images_root)
    refused = resumed(run, "--set", "trial.seed=3")
    assert (refused.key, refused.value) == ("--set trial.seed", 3)
    other = search_file(images_root, search__name="run", trial__seed=3)
    edit(run, {"search.name": "run"})
    assert earlier_run(other, run.parent) is None
    assert earlier_run(search_file(images_root, search__name="run"), run.parent) == run


@pytest.mark.parametrize(("value", "goes_on"), [("raw", True), ("averaged", False)])
def test_a_key_that_this_version_lacks_is_accepted_at_its_neutral_value(
    value, goes_on, run, went_on
):
    edit(run, {"trial.eval.rung_weights": value, "search.budget.was_here": 4})
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    if goes_on:
        assert str(resumed(run)) == "went on"
        return
    for refused in (resumed(run), CliRunner().invoke(app, ["confirm", str(run)]).exception):
        assert (refused.key, refused.value) == ("trial.eval.rung_weights", value)
        assert refused.source == str(run / CONFIG_FILE)
    assert not went_on


def test_a_recorded_value_is_kept_where_the_default_has_changed(run, images_root, went_on):
    """A default of another version is recorded as if a user had written it."""
    former = search_file(images_root, search__name="run", trial__eval__batch_size=64)
    write_run(run.with_name("former"), former).joinpath(CONFIG_FILE).replace(run / CONFIG_FILE)
    run.with_name("former").joinpath("journal.jsonl").replace(run / "journal.jsonl")
    assert str(resumed(run)) == "went on"
    assert went_on[0].trial.eval.batch_size == 64
    assert earlier_run(search_file(images_root, search__name="run"), run.parent) is None
    assert earlier_run(former, run.parent) == run


def test_a_run_with_all_removed_keys_at_their_neutral_values_goes_on(run, went_on):
    edit(run, {key.replace("*", "ft"): value for key, value in REMOVED_KEYS.items()})
    assert str(resumed(run)) == "went on"


@pytest.mark.parametrize("version", sorted(path.name for path in KEPT.iterdir()))
def test_a_run_of_an_earlier_version_goes_on(version, images_root, tmp_path, went_on):
    run = shutil.copytree(KEPT / version, tmp_path / "kept")
    (run / "environment.json").unlink()  # its data were others
    changes = (f"trial.data.root={images_root}", "search.sampler.name=tpe")  # it was an object
    options = (option for change in changes for option in ("--set", change))
    assert str(resumed(run, *options)) == "went on"
