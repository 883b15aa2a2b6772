"""Means of real fine-tunings: their arithmetic, their figures, and which of them are taken."""

from functools import cache

import pytest
import torch
from safetensors.numpy import load_file

from tests.trainers.curves import changed, configured
from trainers.checkpoints.format import WEIGHTS, Header, Progress, load_weights
from trainers.checkpoints.storage import fetched, newest_checkpoint, write_weights
from trainers.data.store import open_store
from trainers.errors import ConfigError
from trainers.evaluation.metrics import MEAN_ACC
from trainers.fine_tune import fine_tune
from trainers.loop.evaluate_run import evaluate_run
from trainers.loop.state import load_split, start
from trainers.methods.registry import METHODS
from trainers.weights.means import (
    Recipe,
    add_ends,
    evaluation_config,
    greedy_soup,
    make_and_test,
    mean_of_ends,
)

NAMES = sorted(METHODS)


@pytest.fixture(scope="module")
def train(trial, tmp_path_factory):
    """Trains a method with a seed, once: configuration, folder and last report.

    The checkpoint is in the folder, the end of the training in `end` in it.
    """

    @cache
    def run(method, seed=0, line=0.5):
        lr = 3e-2 if method == "r_adapter" else 1e-3
        changes = {"optim__lr": lr, "data__ood_domains": ["sketch", "clipart"], "steps": 2}
        config = changed(configured(trial, method), **changes, seed=seed, eval__line=line)
        folder = tmp_path_factory.mktemp(f"{method}-{seed}")
        *_, last = fine_tune(config)
        last.save(folder)
        last.save_end(open_store(folder / "end"))
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
def test_the_mean_of_one_end_has_the_figures_of_its_training(method, train, tmp_path):
    config, folder, metrics = train(method)
    assert add_ends(str(tmp_path), [(7, str(folder / "end"))]) == (7,)
    found = mean_of_ends(
        evaluation_config(config, trains_text=is_of_text(method)), str(tmp_path), acc
    )
    assert found.point == metrics.get("line/a")
    assert (found.point is None) == (not config.method.has_line)
    expected = of_validation(metrics)
    assert {n: found.metrics[n] for n in expected} == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("method", ["ft", "ema", "tpgm", "lora", "flyp"])
def test_a_resumed_training_has_the_same_end(method, train, tmp_path):
    """Killed when all its steps were saved, and before its end was."""
    config, folder, _ = train(method)
    (again,) = fine_tune(config, resume_from=folder)
    again.save_end(open_store(tmp_path))
    ours, its = weights_in(tmp_path)[0], weights_in(folder / "end")[0]
    assert ours.keys() == its.keys()
    assert all((ours[name] == value).all() for name, value in its.items())


def test_a_sum_has_each_seed_once_and_in_order(train, tmp_path):
    ends = [(seed, str(train("ft", seed)[1] / "end")) for seed in range(3)]
    total = str(tmp_path / "sum")
    assert add_ends(total, ends[:2]) == (0, 1)
    (before,) = open_store(total).list()
    assert add_ends(total, ends) == (0, 1, 2)
    assert not open_store(total).exists(before.base_name)  # the former sum
    (now,) = open_store(total).list()
    assert add_ends(total, ends[:1]) == (0, 1, 2)
    assert [info.base_name for info in open_store(total).list()] == [now.base_name]
    found, _ = weights_in(total)
    files = [weights_in(end)[0] for _, end in ends]
    assert found.keys() == files[0].keys()
    for name, value in found.items():
        expected = files[0][name].astype("float64")
        for file in files[1:]:
            expected = expected + file[name]
        assert (value == expected).all()


def test_an_end_of_other_tensors_is_refused(train, tmp_path):
    ends = [(seed, str(train(method)[1] / "end")) for seed, method in enumerate(("ft", "flyp"))]
    with pytest.raises(ConfigError, match="other tensors"):
        add_ends(str(tmp_path), ends)


@pytest.mark.parametrize("better", ["end", "point"])
def test_a_point_is_taken_if_it_is_strictly_better_on_all_images(better, train, tmp_path):
    config, folder, metrics = train("ft")
    add_ends(str(tmp_path), [(0, str(folder / "end"))])
    config = changed(config, eval__line=[0.5])
    seen = []

    def merit(found):
        seen.append(found)
        return len(seen) if better == "point" else 0

    found = mean_of_ends(evaluation_config(config, trains_text=False), str(tmp_path), merit)
    if len(seen) == 1:  # the end was proposed
        assert found.point is None
    else:
        assert (found.point is None) == (better == "end")
        assert found.metrics == seen[better == "point"]
    assert metrics["line/a"] == 0.5


def test_a_soup_takes_what_makes_the_mean_better(train, tmp_path):
    config, folder, metrics = train("ft", line="off")
    weights, names = load_weights(folder)
    noise = torch.Generator().manual_seed(0)
    ruined = {n: v + torch.randn(v.shape, generator=noise) for n, v in weights.items()}
    write_weights(open_store(tmp_path / "ruined"), ruined, Header(Progress(), names))
    folders = [str(folder), str(tmp_path / "ruined"), str(folder)]
    evaluated = evaluation_config(config, trains_text=False)
    merits = iter([1, 2, 2, 2])  # of the larger soup, then of the one so far
    soup = greedy_soup(evaluated, folders, metrics, lambda _: next(merits))
    assert soup.used == (0,)
    soup = greedy_soup(evaluated, folders, metrics, lambda m: m["ood_val/mean_nll"])
    assert soup.used == (0, 1)  # the worst of all by this merit
    soup = greedy_soup(evaluated, [str(folder)] * 2, metrics, lambda m: round(acc(m), 6))
    assert (soup.used, soup.metrics) == ((0,), metrics)  # not strictly better


@pytest.mark.parametrize("method", ["ft", "flyp"])
def test_a_model_is_written_and_tested_at_its_point(method, train, whole_root, tmp_path):
    config, folder, metrics = train(method, line=0.5)
    config = changed(config, data__root=str(whole_root))
    evaluated = evaluation_config(config, trains_text=is_of_text(method))
    of_point = Recipe(evaluated, (str(folder),))
    of_end = Recipe(evaluated, (str(folder / "end"),), 1, 0.5)
    found, predictions = make_and_test(of_point, str(tmp_path / "a"), metrics, "test")
    again, _ = make_and_test(of_end, str(tmp_path / "b"), metrics, "test")
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
