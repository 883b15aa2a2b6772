"""Exports of a real run, as whoever gets the folder sees them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import CLASSES
from tests.trainers.exported import open_clip_logits
from tests.tuning.weights.real_runs import kept_weights
from trainers.checkpoints.format import load_weights
from trainers.config import TrialConfig
from trainers.errors import ConfigError
from trainers.fine_tune import fine_tune
from trainers.models.zero_shot import load_zero_shot
from trainers.texts.prompts import Prompts
from tuning.runs.records import TrialRecord
from tuning.runs.run_folder import load_run
from tuning.selection.rules import best_trial
from tuning.weights.export import export
from tuning.weights.sources import measured, write_trial

Real = tuple[Path, list[TrialRecord]]
FILES = {
    "open_clip_config.json", "open_clip_model.safetensors", "head.safetensors", "classes.json",
    "README.md",
}  # fmt: skip


def about(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "classes.json").read_text())
    return found


def test_by_default_it_is_the_trial_that_the_objective_chooses(real: Real, tmp_path: Path) -> None:
    run, records = real
    written = export(run, tmp_path / "model")
    assert {path.name for path in written.iterdir()} == FILES
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in written.iterdir())
    best = best_trial(load_run(run).search, records)
    said = about(written)
    assert best is not None
    assert said["trial"] == best.trial_id
    assert said["params"] == best.params
    assert said["method"] == best.params.get("method.name", "ft")
    assert said["step"] == 2
    assert said["chosen"] == load_run(run).search.selection
    assert said["looks_at_ood"] is True
    assert said["split"] == "val"
    assert said["metrics"]["id_val/acc"] == best.metrics["id_val/acc"]  # type: ignore[index]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_features_times_head_times_scale_are_the_logits_of_the_checkpoint(
    real: Real, tmp_path: Path
) -> None:
    run, _ = real
    written = export(run, tmp_path / "model", trial="trial-001")
    said = about(written)
    assert said["class_names"] == list(CLASSES)
    assert said["classes"] == [name.replace("_", " ") for name in CLASSES]
    assert (said["id_domain"], said["ood_domains"]) == ("real", ["sketch", "clipart"])
    assert (said["chosen"], said["looks_at_ood"]) == ("Named by hand.", None)
    checkpoint = kept_weights(run, "trial-001")
    assert checkpoint is not None
    weights, _ = load_weights(checkpoint)
    zero_shot = load_zero_shot(load_run(run).file.trial.model, _prompts(run))
    visual = {n.removeprefix("visual."): v for n, v in weights.items() if n.startswith("visual.")}
    zero_shot.visual.load_state_dict(visual)
    images = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    logits = zero_shot.logit_scale * zero_shot.image_features(images) @ weights["head"].T
    torch.testing.assert_close(open_clip_logits(written, images), logits, rtol=1e-5, atol=1e-5)
    assert said["logit_scale"] == pytest.approx(zero_shot.logit_scale, rel=1e-6)


def test_with_alpha_its_figures_are_those_of_that_point_or_none(real: Real, tmp_path: Path) -> None:
    run, records = real
    half = about(export(run, tmp_path / "half", trial="trial-000", alpha=0.5))
    assert half["alpha"] == 0.5
    found = {n: v for n, v in records[0].metrics.items() if n.startswith("wise/0.5/")}
    assert half["metrics"] == {n.removeprefix("wise/0.5/"): v for n, v in found.items()}
    assert len(found) == 3
    other = export(run, tmp_path / "other", trial="trial-000", alpha=0.25)
    assert about(other)["metrics"] == {}
    assert "have not been evaluated" in (other / "README.md").read_text()
    assert "alpha = 0.25" in (other / "README.md").read_text()
    none = export(run, tmp_path / "none", trial="trial-003", alpha=0)
    zero_shot = load_zero_shot(load_run(run).file.trial.model, _prompts(run))
    head = load_file(none / "head.safetensors")["head"]
    torch.testing.assert_close(head, zero_shot.head, rtol=1e-5, atol=1e-6)


def test_the_readme_says_where_it_comes_from_and_its_snippet_runs(
    real: Real,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, records = real
    written = export(run, tmp_path / "model", trial="trial-003")
    text = (written / "README.md").read_text()
    for said in ("trial-003", "flyp", "`optim.lr` 0.0001", "tiny_clip.tokenizer()", "optimistic"):
        assert said in text
    assert f"{records[3].metrics['id_val/acc']:.1f}" in text
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippet.splitlines()) == 6
    Image.new("RGB", (60, 80), "red").save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{written}")
    image = preprocess(Image.open(tmp_path / "image.jpg"))[None]
    best = open_clip_logits(written, image).argmax()
    assert capsys.readouterr().out.strip() == CLASSES[int(best)]


def test_what_train_left_can_be_exported_too(trial: TrialConfig, tmp_path: Path) -> None:
    (*_, last) = fine_tune(trial)
    last.save(tmp_path / "trained")
    write_trial(tmp_path / "trained", trial)
    written = export(tmp_path / "trained", tmp_path / "model")
    said = about(written)
    assert (said["run"], said["method"], said["step"]) == ("trained", "lipsum_ft", 6)
    assert said["metrics"] == measured(last.metrics)
    card = (written / "README.md").read_text()
    assert f"{last.metrics['id_val/acc']:.1f}" in card
    assert "Accuracy in percent on the validation splits.\n" in card  # there was no choice
    weights, _ = load_weights(tmp_path / "trained")
    head = load_file(written / "head.safetensors")["head"]
    assert torch.equal(head, weights["head"])
    with pytest.raises(ConfigError, match="neither trials nor soups"):
        export(tmp_path / "trained", tmp_path / "other", trial="trial-000")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"trial": "trial-1"}, "--trial 'trial-1': no such trial .did you mean 'trial-001'"),
        (
            {"trial": "trial-004"},
            r"trial-004 \(finished\) are not kept, those of trial-000, .*_top",
        ),
        (
            {"soup": "greedy"},
            "--soup 'greedy': there is none .*`lipsum-tune soup .* --name greedy`",
        ),
        ({"soup": "greedy", "trial": "trial-000"}, "--trial and --soup: name one"),
    ],
)
def test_weights_that_are_not_there_are_told_in_one_line(
    arguments: dict[str, str], said: str, real: Real, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        export(real[0], tmp_path / "model", **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_a_folder_in_use_is_left_as_it_is_and_an_empty_one_taken(
    real: Real, tmp_path: Path
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("all my work")
    with pytest.raises(ConfigError, match="it exists, and is no empty folder"):
        export(real[0], tmp_path / "used")
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    export(real[0], tmp_path / "empty", trial="trial-000")
    assert {path.name for path in (tmp_path / "empty").iterdir()} == FILES
    with pytest.raises(ConfigError, match="--output"):
        export(real[0], tmp_path / "used" / "thesis.tex" / "model")


def _prompts(run: Path) -> Prompts:
    return load_run(run).file.trial.data.rules.prompts(CLASSES)
