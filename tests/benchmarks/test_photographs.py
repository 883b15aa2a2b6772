"""The benchmark of photographs: the texts of its model, the points of its searches, its table."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from tests.benchmarks.photographs import models, zero_shot_clip
from tests.benchmarks.photographs.__main__ import SEARCHES, configuration, confirmed, settings
from tests.benchmarks.photographs.table import markdown, results_of
from tests.tuning.execution.inline_tuner import without_ray
from tests.tuning.execution.instant import instant_options
from tests.tuning.fakes import search_record
from trainers.data.suite import Suite
from tuning.config.schema import SearchFile
from tuning.runs.confirmation import REFERENCE, Confirmation, estimate
from tuning.runs.records import TrialRecord


def test_the_target_of_a_name_is_the_mean_of_its_classes():
    targets = zero_shot_clip.targets_of_names(torch.eye(1000))
    assert targets["tabby"].argmax() == 281
    assert targets["elephant"][[101, 385, 386]].tolist() == pytest.approx([3**-0.5] * 3)
    pacs = {"dog", "elephant", "giraffe", "guitar", "horse", "house", "person"}
    assert pacs <= targets.keys()


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
    for where in ("tuning.search", "tuning.confirmation.confirm"):
        options = partial(instant_options, SearchFile())
        monkeypatch.setattr(f"{where}.SearchOptions", options)
    with without_ray(mlflow=False):
        found = confirmed("untuned", 10, tmp_path, given)
        journals = {path: path.read_bytes() for path in tmp_path.rglob("journal.jsonl")}
        again = confirmed("untuned", 10, tmp_path, given)
    assert again.values("trial-000", "id_test/acc") == {1010 + i: 50.0 + i for i in range(3)}
    assert again.results == found.results
    assert {path: path.read_bytes() for path in tmp_path.rglob("journal.jsonl")} == journals


SUITE = Suite(id_domain="real", ood_domains=("sketch", "clipart"))
IMAGES = {"real": 10, "sketch": 5, "clipart": 5}


def images(correct):
    """Right images of each domain: so many of 10, 5 and 5."""
    return {
        name: np.arange(number) < right
        for (name, number), right in zip(IMAGES.items(), correct, strict=True)
    }


def confirmation(folder, by_trial):
    """A confirmation whose trainings have so many right images by trial and seed."""
    trials = {
        trial_id: TrialRecord(trial_id, 0, "trial", {"method.name": method, "optim.lr": 0.1})
        for trial_id, method in {"ft": "ft", "trial-000": "lipsum_ft"}.items()
        if any(name == trial_id for name, _ in by_trial)
    }
    trials.pop("ft", None)
    right = {
        key: {
            "predicted": images(correct),
            "end": images([1, 1, 1]),
            "zero_shot": images([5, 1, 4]),
        }
        for key, correct in by_trial.items()
    }
    seeds = tuple(dict.fromkeys(seed for _, seed in by_trial))
    search = search_record(folder, ood_domains=("sketch", "clipart"))
    found = Confirmation(search, seeds, (REFERENCE, *trials.values()), {}, {})
    found.__dict__["_right"] = right
    return found


@pytest.fixture
def results(tmp_path):
    """Two untuned searches, and two by random points, with two fresh seeds each."""
    parts = []
    for seed, more in ((0, 0), (10, 1)):
        fresh = (1000 + seed, 1001 + seed)
        plain = {("ft", of): [6 + more, 2, i] for i, of in enumerate(fresh)}
        lipsum = {("trial-000", of): [8, 3 - more, 1 + i] for i, of in enumerate(fresh)}
        parts.append(results_of("untuned", seed, confirmation(tmp_path, plain | lipsum)))
        parts.append(results_of("random", seed, confirmation(tmp_path, lipsum)))
    return pd.concat(parts, ignore_index=True)


def cells(results):
    """Mean and half-width of each cell of both tables, as printed, by row."""
    lines = [line.strip("| \n").split(" | ") for line in markdown(results, SUITE).splitlines()]
    return {name: [c.split(" ± ") for c in of] for name, *of in lines if of}


def test_rows_pool_the_seeds_of_all_searches_and_pair_them(results):
    found = cells(results)
    means = {name: [mean for mean, *_ in of] for name, of in found.items()}
    assert means["zero-shot"] == ["50.0", "50.0", "20.0", "80.0"]
    assert means["FT, untuned, at its end"] == ["10.0", "20.0", "20.0", "20.0"]
    assert means["FT, untuned"] == ["65.0", "25.0", "40.0", "10.0"]
    assert means["Lipsum-FT, random search"] == ["80.0", "40.0", "50.0", "30.0"]
    assert means["Lipsum-FT, untuned - FT, untuned"] == ["+15.0", "+15.0", "+10.0", "+20.0"]
    paired = estimate(
        [20, 20, 10, 10], [(100, np.array([DIFFERENCE[0]] * 2 + [DIFFERENCE[1]] * 2))]
    )
    _, half = found["Lipsum-FT, untuned - FT, untuned"][0]
    assert half == f"{paired.high - paired.mean:.1f}"
    assert set(results["params"]) == {"{}", '{"method.name": "lipsum_ft", "optim.lr": 0.1}'}


DIFFERENCE = [0] * 6 + [1, 1, 0, 0], [0] * 7 + [1, 0, 0]
"""Right images of Lipsum-FT less those of FT, without and with one more."""


def test_the_trainings_of_one_search_count_once(results):
    """Two searches, with 3 and 2 right images of 5 in each of their two trainings."""
    _, half = cells(results)["Lipsum-FT, random search"][2]
    right = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    found = estimate([60, 40], [(100, right)])
    assert half == f"{found.high - found.mean:.1f}"
    one = results[results["seed"] == 0]
    assert cells(one)["Lipsum-FT, random search"][2] == ["60.0"]
    assert len(cells(one)["Lipsum-FT, untuned"][2]) == 2


def test_the_table_of_models_counts_id_domains(tmp_path):
    results = models.Results(tmp_path / "models.json")
    for domain, own, plain in (("photo", 80.0, 70.0), ("sketch", 60.0, 58.0)):
        of_seeds = [{"seed": seed, "id": own, "ood": own - seed} for seed in (0, 10)]
        results.add(
            *({"domain": domain, "search": 0, "row": models.SETTINGS, **row} for row in of_seeds),
            {"domain": domain, "search": None, "row": models.ONE}
            | {"seed": 0, "id": plain, "ood": plain},
        )
    again = models.Results(tmp_path / "models.json")
    assert again.has("photo", 0, models.SETTINGS)
    assert not again.has("photo", 10, models.SETTINGS)
    *_, row = models.table(again).splitlines()
    # Ahead by 7.5 and -0.5. 50 / sqrt(50) of the two seeds that are ten points apart.
    half = estimate([7.5, -0.5]).high - 3.5
    cells = ["70.0", "65.0", "67.5", f"+3.5 ± {half:.1f}", "7.1", "50.0"]
    assert row == f"| {' | '.join([models.SETTINGS, *cells])} |"


@pytest.mark.nightly
def test_the_competitor_is_built_of_plain_fine_tunings(whole_root, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "COMPETITORS", 7)
    given = DRAWINGS | {"trial.data.root": whole_root, "trial.steps": 2, "trial.eval.every": 2}
    results = models.Results(tmp_path / "models.json")
    models.competitor("real", given, tmp_path, results)
    rows = [one["row"] for one in results.rows]
    assert rows.count(models.ONE) == rows.count(models.ONE_END) == 1  # and 6 of the searches
    of_three = [one for one in results.rows if one["row"].startswith("plain fine-tuning, ")]
    (other,) = (one for one in results.rows if one["row"] == models.OTHER)
    assert other["val"] == max(one["val"] for one in of_three)
    before = len(results.rows)
    models.competitor("real", given, tmp_path, results)
    assert len(results.rows) == before
