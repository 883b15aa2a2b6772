"""The benchmark of photographs: the texts of its model, the points of its searches, its table."""

from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import scipy.stats
import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES, SimpleTokenizer

from tests.benchmarks.photographs import figure, zero_shot_clip
from tests.benchmarks.photographs.__main__ import SEARCHES, configuration, confirmed, settings
from tests.benchmarks.photographs.table import Row, markdown
from tests.tuning.execution.inline_tuner import without_ray
from tests.tuning.execution.instant import instant_options
from tests.tuning.fakes import search_record
from tuning.config.schema import SearchFile
from tuning.confirmation.results import REFERENCE, Confirmation
from tuning.runs.records import ZERO_SHOT, TrialRecord, zero_shot_record


def test_the_target_of_a_name_is_the_mean_of_its_classes():
    targets = zero_shot_clip.targets_of_names(torch.eye(1000))
    assert targets["tabby"].argmax() == 281
    assert targets["elephant"][[101, 385, 386]].tolist() == pytest.approx([3**-0.5] * 3)
    pacs = {"dog", "elephant", "giraffe", "guitar", "horse", "house", "person"}
    assert pacs <= targets.keys()


def test_the_cut_tokenizer_splits_names_as_clips(tmp_path):
    names = ["stringed instrument", "Maltese dog", "giraffe"]
    cut, whole = zero_shot_clip.cut_tokenizer(tmp_path / "bpe.txt.gz", names), SimpleTokenizer()
    assert cut.vocab_size < 2000
    for text in (OPENAI_IMAGENET_TEMPLATES[5](name) for name in names):
        parts = [[of.decoder[token] for token in of.encode(text)] for of in (cut, whole)]
        assert parts[0] == parts[1]


DRAWINGS = {
    "trial.model.name": "tiny-clip",
    "trial.data.suite": "{id_domain: real, ood_domains: [sketch]}",
}


def test_untuned_trials_have_the_authors_settings(images_root):
    filled = settings(DRAWINGS | {"trial.data.root": images_root, "trial.steps": 120})
    files = {name: configuration(filled | changes) for name, (changes, _) in SEARCHES.items()}
    points = {name: file.search_space().initial_points for name, file in files.items()}
    authors = {"method.reg_weight": 1.0, "method.text_length": 8, "optim.lr": 5.8e-4}
    assert points["untuned"][0] == authors
    assert points["random"] == []
    assert files["random"].search.sampler.name == "random"
    tuned = files["tuned"].search_space().branches
    assert tuned["lipsum_ft"].initial_points[0] == authors
    assert tuned["ft"].parameters["optim.lr"].low == 5.8e-5


def test_what_was_searched_and_confirmed_is_not_repeated(whole_root, tmp_path, monkeypatch):
    given = DRAWINGS | {"trial.data.root": whole_root, "trial.steps": 6, "trial.eval.every": 2}
    for where in ("tuning.resume", "tuning.confirmation.confirm"):
        options = partial(instant_options, SearchFile())
        monkeypatch.setattr(f"{where}.SearchOptions", options)
    with without_ray(mlflow=False), patch("tuning.confirmation.confirm.write_run_report"):
        found = confirmed("untuned", 10, tmp_path, given)
        journals = {path: path.read_bytes() for path in tmp_path.rglob("journal.jsonl")}
        again = confirmed("untuned", 10, tmp_path, given)
    assert again.values("trial-000", "id_test/acc") == {1010 + i: 50.0 + i for i in range(3)}
    assert again.results == found.results
    assert {path: path.read_bytes() for path in tmp_path.rglob("journal.jsonl")} == journals


METRICS = ("id_test/acc", "ood_test/mean_acc", "ood_test/sketch/acc")


def confirmation(folder, base, by_trial):
    """A confirmation whose accuracies are those of a seed plus 0, 1 and 2 for `METRICS`."""
    results = {(ZERO_SHOT, None): zero_shot_record(dict.fromkeys(METRICS, 50.0))}
    found = {}
    for trial_id, (method, values) in by_trial.items():
        found[trial_id] = TrialRecord(trial_id, 0, "trial", {"method.name": method})
        for seed, value in enumerate(values, base):
            report = {"step": 1, **{metric: value + i for i, metric in enumerate(METRICS)}}
            results[trial_id, seed] = replace(found[trial_id], curve=(report,))
    found.pop("ft", None)
    search = search_record(folder, ood_domains=("sketch",))
    seeds = tuple(range(base, base + 2))
    return Confirmation(search, seeds, (REFERENCE, *found.values()), results, {})


def test_rows_pool_the_seeds_of_all_searches_and_pair_them(tmp_path):
    untuned = [
        confirmation(tmp_path, base, {"ft": ("ft", plain), "trial-000": ("lipsum_ft", lipsum)})
        for base, plain, lipsum in ((1000, [60, 64], [61, 66]), (1010, [62, 66], [65, 70]))
    ]
    tuned = [
        confirmation(tmp_path, base, {winner: ("ft", plain), "trial-003": ("lipsum_ft", [1, 1])})
        for base, winner, plain in ((1000, "trial-007", [61, 65]), (1010, "trial-004", [63, 67]))
    ]
    lines = markdown({"untuned": untuned, "tuned": tuned}).splitlines()
    rows = {cells[1].strip(): cells[2:] for line in lines if len(cells := line.split("|")) > 2}
    t = scipy.stats.t.ppf(0.975, 3)
    sem = np.std([60, 64, 62, 66], ddof=1) / 2
    assert rows["zero-shot"][1].strip() == "50.0 ± 0.0"
    assert rows["FT, untuned"][0].strip() == f"63.0 ± {t * sem:.1f}"
    assert rows["FT, tuned"][2].strip() == f"66.0 ± {t * sem:.1f}"
    sem = np.std([1, 2, 3, 4], ddof=1) / 2
    assert rows["Lipsum-FT, untuned - FT, untuned"][1].strip() == f"+2.5 ± {t * sem:.1f}"
    assert rows["FT, tuned - FT, untuned"][1].strip() == "+1.0 ± 0.0"
    (axes,) = figure.draw({"untuned": untuned, "tuned": tuned}).axes
    assert [mark.xy for mark in axes.texts[:3]] == [(50, 50), (63, 64), (1, 2)]
    assert (axes.texts[3].xyann, axes.texts[3].xy) == ((63, 64), (1, 2))  # the arrow


def test_the_difference_of_two_rows_is_paired_by_image():
    ours, its = ({7: {"sketch": np.array(of, np.int8)}} for of in ([1, 1, 0], [0, 1, 1]))
    found = Row({7: 50.0, 8: 60.0}, ours) - Row({7: 40.0}, its)
    assert found.values == {7: 10.0}
    assert found.right[7]["sketch"].tolist() == [1, 0, -1]
