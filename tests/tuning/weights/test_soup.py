"""The ingredients of a soup, its report, and what it leaves in the run folder."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.disks import make_read_only, small_disk
from tests.tuning.databases import with_database
from tests.tuning.weights.real_runs import kept_weights
from trainers.checkpoints.format import load_weights
from trainers.errors import ConfigError
from trainers.weights.soups import average
from tuning.cli import app
from tuning.execution.ray_session import ray_session
from tuning.runs.journal import Journal
from tuning.runs.records import TrialRecord
from tuning.runs.run_folder import load_run
from tuning.views.mlflow import client as mlf
from tuning.views.mlflow.callback import backfill
from tuning.views.mlflow.client import default_tracking_uri
from tuning.weights.soup import ingredients, make_soup

Real = tuple[Path, list[TrialRecord]]


def names(found):
    return [ingredient.record.trial_id for ingredient in found]


def own_copy(real, folder):
    """The same trials in another run folder, as a search of its own."""
    shutil.copytree(real[0], folder)
    with closing(Journal(folder)) as journal:
        journal.session_started(load_run(real[0]).file.fingerprints())
        journal.session_ended("finished")
    return folder


def test_ingredients_are_the_best_kept_trials_by_id_accuracy(real):
    run, records = real
    found = ingredients(load_run(run), top=5, method="ft")
    order = sorted(records[:3], key=lambda r: (-r.metrics["id_val/acc"], r.number))
    assert names(found) == [record.trial_id for record in order]
    best = sorted(records[:3], key=lambda r: (-r.metrics["val/mean_acc"], r.number))[:2]
    assert {*names(ingredients(load_run(run), top=2, method="ft"))} == {r.trial_id for r in best}
    assert all(i.checkpoint.local_path() == kept_weights(run, i.record.trial_id) for i in found)


def test_trials_that_miss_the_constraints_are_left_out(real):
    loaded, records = load_run(real[0]), real[1][:3]
    bar = sorted(record.metrics["val/mean_acc"] for record in records)[1]
    limit = f"val/mean_acc >= {bar}"
    search = loaded.file.search.model_copy(update={"constraints": (limit,)})
    run = replace(loaded, file=loaded.file.model_copy(update={"search": search}))
    meet = {r.trial_id for r in records if r.metrics["val/mean_acc"] >= bar}
    assert {*names(ingredients(run, 3, "ft"))} == meet
    history = replace(run.history, records=tuple(r for r in records if r.trial_id != max(meet)))
    with pytest.raises(ConfigError, match="needs two finished trials of ft that meet the constr"):
        ingredients(replace(run, history=history), 3, "ft")


@pytest.mark.parametrize(
    ("top", "method", "key", "text"),
    [
        (5, None, None, "'text."),
        (5, "flyp", None, "search.checkpoints.keep_top = 5"),
        (5, "fylp", "--method", "did you mean 'flyp'"),
        (1, "ft", "--top", "two trials"),
    ],
)
def test_trials_that_cannot_be_averaged_are_refused(top, method, key, text, real):
    with pytest.raises(ConfigError) as caught:
        ingredients(load_run(real[0]), top, method)
    assert caught.value.key == key
    assert text in str(caught.value)


def test_trials_of_different_models_make_no_soup(real, tmp_path):
    shutil.copytree(real[0], tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    other = {"model.name": "ViT-B-32", "model.pretrained": "random"}
    first, *others = loaded.history.records
    changed = replace(first, params={**first.params, **other})
    history = replace(loaded.history, records=(changed, *others))
    with pytest.raises(ConfigError, match="different models: ViT-B-32/random, tiny-clip/None"):
        ingredients(replace(loaded, history=history), 3, "ft")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_soup_is_kept_logged_and_exported(real, tmp_path):
    """Slow: starts Ray."""
    run = own_copy(real, with_database(tmp_path / "runs") / "mine")
    loaded = load_run(run)
    chosen = names(ingredients(loaded, 2, "ft"))
    uri = default_tracking_uri(run.parent)
    backfill(loaded)
    with ray_session():
        for _ in range(2):  # the second time, it is the same soup
            command = ["soup", str(run), "--method", "ft", "--top", "2", "--name", "uniform"]
            done = CliRunner().invoke(app, command, env={"COLUMNS": "140"})
            assert done.exit_code == 0, done.output
    assert all(name in done.output for name in chosen)
    assert "Against trial-00" in done.output
    folder = run / "soups" / "uniform"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["uniform"]
    recorded = json.loads((folder / "soup.json").read_text())
    assert {*recorded["trials"]} == {*chosen}
    checkpoints = [kept_weights(run, name) for name in recorded["trials"]]
    expected = average([path for path in checkpoints if path is not None])
    for name, value in load_weights(folder)[0].items():
        torch.testing.assert_close(value, expected[name])
    client, experiment_id = mlf.connect(uri, "lipsum-tune")
    (logged,) = client.search_runs([experiment_id], "tags.kind = 'soup'")
    parent = mlf.search_run(client, experiment_id, loaded.search.run_id)
    assert logged.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert logged.data.tags["trials"] == ", ".join(recorded["trials"])
    assert logged.data.metrics["id_val/acc"] == pytest.approx(recorded["metrics"]["id_val/acc"])
    assert logged.info.status == "FINISHED"
    output = tmp_path / "model"
    done = CliRunner().invoke(
        app, ["export", str(run), "--soup", "uniform", "--output", str(output)]
    )
    assert done.exit_code == 0, done.output
    about = json.loads((output / "classes.json").read_text())
    assert about["trials"] == recorded["trials"]
    assert about["metrics"] == recorded["metrics"]
    assert torch.equal(
        load_file(output / "head.safetensors")["head"], load_weights(folder)[0]["head"]
    )


@pytest.mark.nightly
def test_a_soup_that_cannot_be_kept_is_not_made(real, tmp_path):
    with small_disk(tmp_path / "disk", 256 << 10) as disk:
        run = own_copy(real, disk / "mine")
        make_read_only(disk)
        with pytest.raises(OSError, match="Read-only file system"):
            make_soup(run, method="ft")
        assert not ray.is_initialized()
