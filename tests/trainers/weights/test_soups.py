"""Soups of real fine-tunings: their arithmetic, their figures, and what they look at."""

from functools import cache

import pytest
import torch
from safetensors.numpy import load_file

from tests.trainers.curves import changed, configured
from trainers.checkpoints.format import WEIGHTS, Header, Progress, load_weights, save_checkpoint
from trainers.errors import ConfigError
from trainers.fine_tune import fine_tune
from trainers.weights.soups import average, build_soup


@pytest.fixture(scope="module")
def train(trial, tmp_path_factory):
    """Trains a method with a seed, once: configuration, checkpoint and last report."""

    @cache
    def run(method, seed=0):
        lr = 3e-2 if method == "r_adapter" else 5e-4
        changes = {"optim__lr": lr, "data__ood_domains": ["sketch", "clipart"], "steps": 2}
        config = changed(configured(trial, method), **changes, seed=seed)
        folder = tmp_path_factory.mktemp(f"{method}-{seed}")
        *_, last = fine_tune(config)
        last.save(folder)
        return config, folder, last.metrics

    return run


def measures(metrics):
    return {n: v for n, v in metrics.items() if n.startswith(("id_val/", "ood_val/", "val/"))}


def acc(metrics):
    return (metrics["id_val/acc"],)


def saved(folder, weights, class_names=("cat", "dog")):
    save_checkpoint(folder, weights, {}, Header(Progress(), tuple(class_names)))
    return folder


def test_the_mean_is_of_every_tensor(train):
    folders = [train("ft", seed)[1] for seed in range(3)]
    found = average(folders)
    files = [load_file(folder / WEIGHTS) for folder in folders]
    assert found.keys() == files[0].keys()
    for name, value in found.items():
        expected = sum(file[name].astype("float64") for file in files) / 3
        torch.testing.assert_close(value.double(), torch.from_numpy(expected), rtol=1e-6, atol=1e-7)
    alone = average(folders[:1])
    assert all((alone[name].numpy() == value).all() for name, value in files[0].items())


@pytest.mark.parametrize("method", ["ft", "wise_ft", "flyp", "r_adapter"])
def test_a_soup_of_one_trial_twice_has_the_trials_metrics(method, train):
    config, folder, metrics = train(method)
    soup = build_soup(config, [folder, folder], acc)
    assert soup.used == (0, 1)
    assert measures(soup.metrics) == pytest.approx(measures(metrics), rel=1e-4, abs=1e-4)
    assert measures(soup.metrics).keys() == soup.metrics.keys() == measures(metrics).keys()
    own, names = load_weights(folder)
    assert soup.class_names == names
    assert soup.weights.keys() == own.keys()
    for name, value in own.items():
        torch.testing.assert_close(soup.weights[name], value, rtol=1e-4, atol=1e-5)


def test_an_ingredient_that_lowers_a_value_of_the_merit_is_left_out(train, tmp_path):
    config, folder, metrics = train("ft")
    weights, names = load_weights(folder)
    ruined = {n: v + torch.randn(v.shape) for n, v in weights.items()}
    folders = [folder, saved(tmp_path / "ruined", ruined, names), folder]
    seen = []

    def merit(metrics):
        seen.append(metrics)
        return metrics["id_val/acc"], -metrics["ood_val/mean_nll"]

    soup = build_soup(config, folders, merit)
    assert soup.used == (0, 2)
    assert measures(soup.metrics) == pytest.approx(measures(metrics), rel=1e-4, abs=1e-4)
    first, spoilt = (
        measures(seen[1]),
        measures(seen[0]),
    )  # the larger soup is compared with the first
    assert first == pytest.approx(measures(metrics), rel=1e-4, abs=1e-4)
    assert spoilt["ood_val/mean_nll"] > first["ood_val/mean_nll"]
    # One value that is better does not make up for another one that is worse.
    assert build_soup(config, folders[:2], lambda m: (m["ood_val/mean_nll"], *acc(m))).used == (0,)
    assert build_soup(config, folders[:2], lambda m: (m["ood_val/mean_nll"],)).used == (0, 1)


def test_other_classes_than_the_data_have_now_are_told(train, tmp_path):
    config, folder, _ = train("ft")
    weights, names = load_weights(folder)
    other = [saved(tmp_path / name, weights, names[::-1]) for name in ("a", "b")]
    with pytest.raises(ConfigError, match="other classes than the data have now"):
        build_soup(config, other, acc)
