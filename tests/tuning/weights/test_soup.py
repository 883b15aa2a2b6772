"""The ingredients of a soup, and its export."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.tuning.weights.conftest import kept_weights
from trainers.checkpoints.format import load_weights
from trainers.errors import ConfigError
from trainers.weights.soups import average
from tuning.cli import app
from tuning.runs.run_folder import load_run
from tuning.weights.soup import ingredients, soup_of


def names(found):
    return [record.trial_id for record, _ in found]


def test_ingredients_are_the_best_kept_trials_of_one_kind(real):
    """Of FT with three seeds and kept weights, and FLYP, which trains the text encoder, too."""
    run, records = load_run(real[0]), real[1][:4]
    first, *others = sorted(records, key=lambda r: (-r.metrics["val/mean_acc"], r.number))
    alike = [r for r in others if {first.trial_id, r.trial_id}.isdisjoint({"trial-003"})]
    found = ingredients(run, 5, 1)
    assert names(found) == [r.trial_id for r in (first, *alike)]
    assert names(ingredients(run, 1, 1)) == [first.trial_id]
    assert all(store.local_path() == kept_weights(real[0], r.trial_id) for r, store in found)


def test_trials_that_miss_the_constraints_are_left_out(real):
    run, records = load_run(real[0]), real[1][:3]
    bar = sorted(record.metrics["val/mean_acc"] for record in records)[1]
    search = run.file.search.model_copy(update={"constraints": (f"val/mean_acc >= {bar}",)})
    file = run.file.model_copy(update={"search": search})
    meet = [r for r in records if r.metrics["val/mean_acc"] >= bar]
    run = replace(run, file=file, history=replace(run.history, records=tuple(records)))
    assert {*names(ingredients(run, 3, 2))} == {r.trial_id for r in meet}
    few = replace(run, history=replace(run.history, records=(meet[0],)))
    with pytest.raises(ConfigError, match=r"needs 2 finished trials .*keep_top = 3"):
        ingredients(few, 3, 2)


def test_trials_of_other_models_are_left_out(real):
    run, records = load_run(real[0]), real[1][:2]
    other = {"model.name": "ViT-B-32", "model.pretrained": "random"}
    best, worse = sorted(records, key=lambda r: (-r.metrics["val/mean_acc"], r.number))
    worse = replace(worse, params={**worse.params, **other})
    run = replace(run, history=replace(run.history, records=(best, worse)))
    assert names(ingredients(run, 5, 1)) == [best.trial_id]


def test_mistakes_are_told_before_anything_is_read(real):
    run = load_run(real[0])
    with pytest.raises(ConfigError, match=r"no such recipe.*did you mean 'greedy'"):
        soup_of(run, "greedily", 5)
    with pytest.raises(ConfigError, match="needs 2 trials"):
        soup_of(run, "uniform", 1)


def exported(run, output, *options):
    command = ["export", str(run), "--output", str(output), *options]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "140"})
    assert done.exit_code == 0, done.output
    about = json.loads((output / "classes.json").read_text())
    return done.output, about, load_file(output / "head.safetensors")["head"]


@pytest.fixture(scope="module")
def of_ft(real, tmp_path_factory):
    """The run without the trial of FLYP, and its two best trials."""
    run = shutil.copytree(real[0], tmp_path_factory.mktemp("soup") / "run")
    (lost,) = run.glob("train/train-trial-003/*/student.safetensors")
    lost.unlink()
    return run, [record for record, _ in ingredients(load_run(run), 2, 2)]


def test_a_uniform_soup_is_the_mean_of_the_best_trials(of_ft, tmp_path):
    run, best = of_ft
    printed, about, head = exported(run, tmp_path / "model", "--soup", "uniform", "--top", "2")
    mean = average([kept_weights(run, record.trial_id) for record in best])
    torch.testing.assert_close(head, mean["head"])
    visual = load_file(tmp_path / "model/open_clip_model.safetensors")["visual.proj"]
    torch.testing.assert_close(visual, mean["visual.proj"])
    assert {*about["trials"]} == {record.trial_id for record in best}
    gain = about["metrics"]["id_val/acc"] - best[0].metrics["id_val/acc"]
    assert f"against {best[0].trial_id}: {gain:+.1f} ID" in printed.replace("\n", " ")
    assert about["metrics"]["ood_val/mean_acc"] > 0
    assert "optimistic" in (tmp_path / "model/README.md").read_text()
    assert not (run / "soups").exists()


def test_one_trial_can_be_scaled_by_depth(of_ft, tmp_path):
    run, (best, _) = of_ft
    printed, about, head = exported(run, tmp_path / "model", "--soup", "lines", "--top", "1")
    assert "LiNeS of " + best.trial_id in printed.replace("\n", " ")
    assert about["trials"] == [best.trial_id]
    tuned, _ = load_weights(kept_weights(run, best.trial_id))
    torch.testing.assert_close(head, tuned["head"])  # deeper than all blocks
