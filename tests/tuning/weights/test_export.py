"""Exports of a real run, as a user of the folder sees them."""

import json
import math
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import CLASSES
from tests.trainers.tiny_models import random_model
from tests.tuning.run_folders import edit_journal
from tests.tuning.weights.conftest import kept_weights
from trainers.checkpoints.format import load_weights
from trainers.config import with_overrides
from trainers.errors import ConfigError
from trainers.evaluation.metrics import ID_ACC, val_acc
from trainers.fine_tune import fine_tune
from trainers.loop.images import load_split
from trainers.models.config import ModelConfig
from trainers.models.zero_shot import load_zero_shot
from tuning.results.ranking import best_trial
from tuning.run import load_run
from tuning.weights.export import export_weights as export
from tuning.weights.sources import NOT_TESTED, measured, write_trial

FILES = {
    "open_clip_config.json", "open_clip_model.safetensors", "head.safetensors", "classes.json",
    "bpe.txt.gz", "README.md", "predict.py",
}  # fmt: skip


def about(folder):
    return json.loads((folder / "classes.json").read_text())


def head_of(folder):
    return load_file(folder / "head.safetensors")["head"]


def zero_shot_head(run):
    trial = load_run(run).file.trial
    return load_zero_shot(trial.model, trial.data.rules.prompts(CLASSES)).head


def copy_with_zero_shot(run, folder, mean_acc):
    """The same run, whose zero-shot model has that mean accuracy."""
    shutil.copytree(run, folder)

    def changed(events):
        for event in events:
            if event["event"] == "zero_shot":
                event["metrics"]["val/mean_acc"] = mean_acc
        return events

    edit_journal(folder, changed)
    return folder


def test_the_default_is_the_trial_that_the_objective_chooses(real, tmp_path):
    run, records = copy_with_zero_shot(real[0], tmp_path / "run", mean_acc=1), real[1]
    (tmp_path / "model").mkdir()  # an empty folder is used
    written, search = export(run, tmp_path / "model"), load_run(run)
    assert {path.name for path in written.iterdir()} == FILES
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in written.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"model", "run"}
    best = best_trial(search.goal, records)
    expected = {"trial": best.trial_id, "params": best.params, "step": 2, "split": "val"}
    chosen = f"{' '.join(search.conclusion.lines)} {NOT_TESTED}"
    expected |= {"chosen": chosen, "metrics": measured(best.metrics)}
    assert about(written).items() >= expected.items()


def test_a_zero_shot_model_that_wins_is_exported_with_its_head(real, tmp_path):
    run = copy_with_zero_shot(real[0], tmp_path / "run", mean_acc=99)
    written, search = export(run, tmp_path / "model"), load_run(run)
    recorded = about(written)
    assert (recorded["trial"], recorded["params"], recorded["step"]) == ("zero-shot", {}, 0)
    assert recorded["chosen"].startswith("No trial has a higher val/mean_acc than zero-shot ")
    assert recorded["metrics"] == measured(search.goal.zero_shot)
    torch.testing.assert_close(head_of(written), zero_shot_head(run), rtol=1e-5, atol=1e-6)


def test_a_named_trial_is_exported_with_classes_origin_and_card(real, tmp_path):
    run, records = real
    written = export(run, tmp_path / "model", trial="trial-003")
    recorded = about(written)
    assert recorded["classes"] == list(CLASSES)
    assert recorded["names_in_prompts"] == [name.replace("_", " ") for name in CLASSES]
    assert (recorded["id_domain"], recorded["ood_domains"]) == ("real", ["sketch", "clipart"])
    assert recorded["chosen"] == "Named by hand."
    assert set(recorded["preprocessing"]["crop_pct"].values()) == {1.0}
    weights, _ = load_weights(kept_weights(run, "trial-003"))
    exported = load_file(written / "open_clip_model.safetensors")
    assert torch.equal(exported["visual.proj"], weights["visual.proj"])
    assert torch.equal(head_of(written), weights["head"])
    scale = exported["logit_scale"].exp().item()
    assert recorded["logit_scale"] == pytest.approx(scale, rel=1e-6)
    assert "bpe.txt.gz" in recorded["tokenizer"]
    accuracy = f"{records[3].metrics['id_val/acc']:.1f}"
    for part in ("trial-003", "flyp", "`optim.lr` 0.0001", "optimistic", accuracy):
        assert part in (written / "README.md").read_text()


def test_with_alpha_only_the_evaluated_point_has_metrics(real, tmp_path):
    run, records = real
    other = export(run, tmp_path / "other", trial="trial-000", alpha=0.25)
    assert about(other)["metrics"] == {}
    assert "have not been evaluated" in (other / "README.md").read_text()
    assert "alpha = 0.25" in (other / "README.md").read_text()
    tuned = about(export(str(run), str(tmp_path / "tuned"), trial="trial-000", alpha=1.0))
    assert tuned["metrics"] == measured(records[0].metrics)
    none = export(run, tmp_path / "none", trial="trial-003", alpha=0)
    torch.testing.assert_close(head_of(none), zero_shot_head(run), rtol=1e-5, atol=1e-6)


def snippet_of(card):
    """The code of a card that makes a classifier."""
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    lines, example = snippet.rsplit("print", 1)
    assert example == '(classify(Image.open("image.jpg")))\n'
    return lines


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("tiny-clip", {"data.crop_pct": 0.5, "eval.line": 0.4}),
        ("roberta", {}),
        ("siglip", {"method.name": "lipsum_ft"}),
    ],
)
def test_the_snippet_of_the_card_reaches_its_accuracies(
    kind, changes, trial, tmp_path, monkeypatch
):
    """`confirmation/test_model.py` runs one in a process that imports nothing of this project."""
    model = ModelConfig() if kind == "tiny-clip" else random_model(tmp_path, kind)
    common = {"precision": "fp32", "method.name": "ft", "steps": 3, "model.name": model.name}
    common |= {"data.ood_domains": ["sketch"], "optim.lr": 3e-3}
    config = with_overrides(trial, common | changes, "test")
    *_, last = fine_tune(config)
    last.save(tmp_path / "trained")
    write_trial(tmp_path / "trained", config)
    folder = export(tmp_path / "trained", tmp_path / "model").rename(tmp_path / "moved")
    card, names = (folder / "README.md").read_text(), {}
    assert str(tmp_path / "model") not in card
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "predict", raising=False)
    exec(snippet_of(card), names)
    for domain, images in load_split(config, "val").items():
        labels = [images.class_names[label].replace("_", " ") for label in images.labels]
        predicted = [names["classify"](images.decode(row)) for row in range(len(labels))]
        name = ID_ACC if domain == config.data.id_domain else val_acc(domain)
        right = sum(p == label for p, label in zip(predicted, labels, strict=True))
        assert 100 * right / len(labels) == about(folder)["metrics"][name]


def test_alpha_is_a_point_of_the_line_from_its_end(trial, tmp_path):
    changes = {"method.name": "ft", "steps": 2, "optim.lr": 3e-3, "eval.line": 0.4}
    (last,) = fine_tune(with_overrides(trial, changes, "test"))
    trained = tmp_path / "trained"  # as `lipsum-tune train` leaves it
    last.save(trained)
    write_trial(trained, last.training.setup.config)
    kept = about(export(trained, tmp_path / "kept"))
    assert (kept["run"], kept["method"], kept["step"]) == ("trained", "ft", 2)
    assert (kept["alpha"], kept["metrics"]) == (0.4, measured(last.metrics))
    assert "optimistic" not in (tmp_path / "kept/README.md").read_text()  # there was no choice
    assert torch.equal(head_of(tmp_path / "kept"), load_weights(trained)[0]["head"])
    same = about(export(trained, tmp_path / "same", alpha=0.4))
    assert same["metrics"] == kept["metrics"]
    end = export(trained, tmp_path / "end", alpha=1.0)
    assert about(end)["metrics"] == {}
    weights = load_file(end / "open_clip_model.safetensors") | {"head": head_of(end)}
    for name, value in last.training.student.plain_state().items():  # still as it was trained
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="not for one training"):
        export(trained, tmp_path / "other", trial="trial-000")


@pytest.mark.parametrize("method", ["wise_ft", "r_adapter"])
def test_a_method_with_an_alpha_of_its_own_has_no_other(method, trial, tmp_path):
    """The weights before its own alpha are not kept: 1 would be the exported ones."""
    changes = {"method.name": method, "steps": 1, "eval.every": 1}
    (last,) = fine_tune(with_overrides(trial, changes, "test"))
    last.save(tmp_path)
    write_trial(tmp_path, last.training.setup.config)
    with pytest.raises(ConfigError) as caught:
        export(tmp_path, tmp_path / "model", alpha=1)
    assert (caught.value.key, method in caught.value.problem) == ("--alpha", True)


@pytest.mark.parametrize(
    ("arguments", "key", "hint"),
    [
        ({"trial": "trial-1"}, "--trial", "did you mean 'trial-001'"),
        ({"trial": "trial-004"}, None, "search.checkpoints.keep_top"),
        ({"alpha": math.nan}, "--alpha", "from 0 to 1"),
        ({"alpha": 0.5}, "--alpha", "name it by --trial"),
        ({"output": "used"}, "--output", "is not an empty folder (name another"),
        ({"output": "used/thesis.tex/model"}, "--output", ""),
    ],
)
def test_what_cannot_be_exported_is_refused(arguments, key, hint, real, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used/thesis.tex").write_text("all my work")
    with pytest.raises(ConfigError) as caught:
        export(real[0], tmp_path / arguments.pop("output", "model"), **arguments)
    assert caught.value.key == key
    assert hint in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "thesis.tex"]
