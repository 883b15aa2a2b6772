"""The ingredients of a soup, and its export."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.tuning.weights.conftest import kept_weights
from trainers.errors import ConfigError
from trainers.weights.soups import average
from tuning.cli import app
from tuning.runs.run_folder import load_run
from tuning.weights.export import export_weights
from tuning.weights.soup import ingredients, soup_of


def names(found):
    return [record.trial_id for record, _ in found]


def test_ingredients_are_the_best_kept_trials_of_one_kind(real):
    """Of FT with three seeds and kept weights, and FLYP, which trains the text encoder, too."""
    run, (*of_ft, flyp, lost) = load_run(real[0]), real[1]
    best, *others = sorted(of_ft, key=lambda r: (-r.metrics["val/mean_acc"], r.number))
    worst = replace(flyp, curve=({**flyp.metrics, "val/mean_acc": 0.0},))
    run = replace(run, history=replace(run.history, records=(*of_ft, worst, lost)))
    found = ingredients(run, 5)
    assert names(found) == [r.trial_id for r in (best, *others)]
    assert names(ingredients(run, 2)) == [best.trial_id, others[0].trial_id]
    assert all(store.local_path() == kept_weights(real[0], r.trial_id) for r, store in found)


def test_trials_that_miss_the_constraints_are_left_out(real):
    run, records = load_run(real[0]), real[1][:3]
    bar = sorted(record.metrics["val/mean_acc"] for record in records)[1]
    search = run.file.search.model_copy(update={"constraints": (f"val/mean_acc >= {bar}",)})
    file = run.file.model_copy(update={"search": search})
    meet = [r for r in records if r.metrics["val/mean_acc"] >= bar]
    run = replace(run, file=file, history=replace(run.history, records=tuple(records)))
    assert {*names(ingredients(run, 3))} == {r.trial_id for r in meet}
    few = replace(run, history=replace(run.history, records=(meet[0],)))
    with pytest.raises(ConfigError, match=r"needs 2 finished trials .*keep_top = 3"):
        ingredients(few, 3)


def test_trials_of_other_models_are_left_out(real):
    run, records = load_run(real[0]), real[1][:3]
    other = {"model.name": "ViT-B-32", "model.pretrained": "random"}
    best, second, third = sorted(records, key=lambda r: (-r.metrics["val/mean_acc"], r.number))
    second = replace(second, params={**second.params, **other})
    run = replace(run, history=replace(run.history, records=(best, second, third)))
    assert names(ingredients(run, 5)) == [best.trial_id, third.trial_id]


def test_mistakes_are_told_before_anything_is_read(real):
    run = load_run(real[0])
    with pytest.raises(ConfigError, match="--soup = 'stock': no such recipe"):
        export_weights(real[0], "model", soup="stock")
    with pytest.raises(ConfigError, match="needs 2 trials"):
        soup_of(run, 1)


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
    return run, [record for record, _ in ingredients(load_run(run), 2)]


def test_the_soup_is_a_mean_that_is_not_worse_than_the_best_trial(of_ft, tmp_path):
    run, best = of_ft
    printed, about, head = exported(run, tmp_path / "model", "--soup", "greedy", "--top", "3")
    used = about["trials"]
    assert used[0] == best[0].trial_id
    mean = average([kept_weights(run, trial_id) for trial_id in used])
    torch.testing.assert_close(head, mean["head"])
    visual = load_file(tmp_path / "model/open_clip_model.safetensors")["visual.proj"]
    torch.testing.assert_close(visual, mean["visual.proj"])
    assert about["metrics"]["val/mean_acc"] >= best[0].metrics["val/mean_acc"] - 1e-3
    gain = about["metrics"]["id_val/acc"] - best[0].metrics["id_val/acc"]
    assert f"against {best[0].trial_id}: {gain:+.1f} ID" in printed.replace("\n", " ")
    assert about["metrics"]["ood_val/mean_acc"] > 0
    assert "optimistic" in (tmp_path / "model/README.md").read_text()


@pytest.mark.parametrize("bound", ["<=", ">="])
def test_no_trial_moves_the_soup_away_from_a_constraint(bound, of_ft):
    """The distortion falls in a mean of weights, as trials move apart."""
    run, metric = load_run(of_ft[0]), "id_val/feature_distortion"
    least = min(record.last(metric) for record in run.history.records[:3])
    constraint = f"{metric} {bound} {least - 1e-6 if bound == '>=' else 1e3}"
    changes = {"constraints": (constraint,), "objective": {"metric": metric, "mode": "min"}}
    changed = run.file.model_dump(mode="json")
    changed["search"] |= changes
    run = replace(run, file=type(run.file).model_validate(changed))
    kept = soup_of(run, 3).origin["trials"]
    assert (len(kept) == 1) == (bound == ">=")
