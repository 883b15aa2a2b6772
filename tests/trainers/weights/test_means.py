"""Means of real fine-tunings: their arithmetic, their figures, and which of them are taken."""

from functools import cache

import pytest
import torch
from safetensors.numpy import load_file

from tests.trainers.curves import changed, configured
from trainers.checkpoints.format import WEIGHTS, Header, Progress, load_weights, save_weights
from trainers.checkpoints.storage import fetched, newest_checkpoint
from trainers.data.store import open_store
from trainers.errors import ConfigError
from trainers.evaluation.metrics import MEAN_ACC
from trainers.fine_tune import fine_tune
from trainers.loop.evaluate_run import evaluate_run
from trainers.loop.state import load_split, start
from trainers.methods.registry import METHODS
from trainers.weights.means import (
    Recipe,
    evaluation_config,
    greedy_soup,
    make_and_test,
)

NAMES = [
    n if n in ("ft", "lora", "flyp", "r_adapter") else pytest.param(n, marks=pytest.mark.nightly)
    for n in sorted(METHODS)
]
"""Methods of each kind; all others at night."""


@pytest.fixture(scope="module")
def train(trial, tmp_path_factory):
    """Trains a method with a seed, once: configuration, folder and last report."""

    @cache
    def run(method, seed=0, line=0.5):
        lr = 3e-2 if method == "r_adapter" else 1e-3
        changes = {"optim__lr": lr, "data__ood_domains": ["sketch", "clipart"], "steps": 2}
        config = changed(configured(trial, method), **changes, seed=seed, eval__line=line)
        folder = tmp_path_factory.mktemp(f"{method}-{seed}")
        *_, last = fine_tune(config)
        last.save(folder)
        return config, folder, last.metrics

    return run


def of_validation(metrics):
    return {n: v for n, v in metrics.items() if n.startswith(("id_val/", "ood_val/", "val/"))}


def acc(metrics):
    return metrics[MEAN_ACC]


def weights_in(folder):
    """The newest weights in a folder, and the reports beside them."""
    store = open_store(folder)
    with fetched(store.at(newest_checkpoint(store))) as local:
        return load_file(local / WEIGHTS), load_weights(local)[1]


def is_of_text(method):
    return method in ("flyp", "star_ft", "carot", "r_adapter")


@pytest.mark.parametrize("method", NAMES)
def test_the_mean_of_equal_weights_has_the_figures_of_their_training(method, train):
    config, folder, metrics = train(method)
    evaluated = evaluation_config(config, trains_text=is_of_text(method))
    soup = greedy_soup(evaluated, [str(folder)] * 2, {}, len)
    assert soup.used == (0, 1)
    expected = of_validation(metrics)
    assert {n: soup.metrics[n] for n in expected} == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_weights_of_other_tensors_are_refused(train):
    config = evaluation_config(train("ft")[0], trains_text=False)
    with pytest.raises(ConfigError, match="other tensors"):
        greedy_soup(config, [str(train(method)[1]) for method in ("ft", "flyp")], {}, len)


def test_a_soup_takes_what_makes_the_mean_better(train, tmp_path):
    config, folder, metrics = train("ft", line="off")
    weights, names = load_weights(folder)
    noise = torch.Generator().manual_seed(0)
    ruined = {n: v + torch.randn(v.shape, generator=noise) for n, v in weights.items()}
    save_weights(tmp_path, ruined, Header(Progress(), names))
    folders = [str(folder), str(tmp_path), str(folder)]
    evaluated = evaluation_config(config, trains_text=False)
    merits = iter([1, 2, 2, 2])  # of the larger soup, then of the one so far
    soup = greedy_soup(evaluated, folders, metrics, lambda _: next(merits))
    assert soup.used == (0,)
    soup = greedy_soup(evaluated, folders, metrics, lambda m: m["ood_val/mean_nll"])
    assert soup.used == (0, 1)  # the worst of all by this merit
    soup = greedy_soup(evaluated, [str(folder)] * 2, metrics, lambda m: round(acc(m), 6))
    assert (soup.used, soup.metrics) == ((0,), metrics)  # not strictly better


@pytest.mark.parametrize("method", ["ft", "flyp"])
def test_a_model_is_written_and_tested(method, train, whole_root, tmp_path):
    config, folder, metrics = train(method, line=0.5)
    config = changed(config, data__root=str(whole_root))
    evaluated = evaluation_config(config, trains_text=is_of_text(method))
    one, two = Recipe(evaluated, (str(folder),)), Recipe(evaluated, (str(folder),) * 2)
    found, predictions = make_and_test(one, str(tmp_path / "a"), metrics, "test")
    again, _ = make_and_test(two, str(tmp_path / "b"), metrics, "test")
    assert again == pytest.approx(found, rel=1e-4, abs=1e-4)
    assert {"id_test/acc", "ood_test/mean_acc"} <= found.keys()
    assert predictions
    ours, its = weights_in(tmp_path / "a")[0], load_file(folder / WEIGHTS)
    assert ours.keys() == its.keys()
    exact = {name: (ours[name] == value).all() for name, value in its.items() if name != "head"}
    assert all(exact.values())


def test_the_zero_shot_model_is_made_of_nothing(trial, whole_root, tmp_path):
    config = evaluation_config(changed(trial, data__root=str(whole_root)), trains_text=False)
    found, _ = make_and_test(Recipe(config), str(tmp_path), {}, "test")
    assert found == evaluate_run(start(config), "test", load_split(config, "test"))
