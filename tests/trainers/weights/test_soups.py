"""Soups of real fine-tunings: their arithmetic, their figures, and what they look at."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from tests.trainers.curves import changed
from tests.trainers.methods.contract import configured
from trainers.checkpoints.format import WEIGHTS, Progress, load_weights, save_weights
from trainers.config import TrialConfig
from trainers.data.dataset import ImageDataset
from trainers.data.storage import open_store
from trainers.errors import ConfigError
from trainers.fine_tune import fine_tune
from trainers.weights.soups import average, build_soup, check_ingredients, greedy

Train = Callable[..., tuple[TrialConfig, Path, dict[str, float]]]


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
def test_a_soup_of_one_trial_twice_has_the_trials_metrics(method, train, tmp_path):
    config, folder, metrics = train(method)
    soup = build_soup(config, [folder, folder], "uniform", tmp_path / "soup")
    assert soup.used == (0, 1)
    assert measures(soup.metrics) == pytest.approx(measures(metrics), rel=1e-4, abs=1e-4)
    assert measures(soup.metrics).keys() == soup.metrics.keys() == measures(metrics).keys()
    assert metrics["ood_val/mean_feature_distortion"] > 1e-3
    written, class_names = load_weights(tmp_path / "soup")
    own, names = load_weights(folder)
    assert class_names == names
    assert written.keys() == own.keys()
    for name, value in own.items():
        torch.testing.assert_close(written[name], value, rtol=1e-4, atol=1e-5)


def test_greedy_takes_what_does_not_lower_the_accuracy():
    accuracies = {
        (0,): 80.0,
        (0, 1): 80.0,  # as good: in
        (0, 1, 2): 79.0,  # worse: out
        (0, 1, 3): 82.0,
        (0, 1, 3, 4): 81.9,
    }
    asked = []

    def id_acc(some):
        asked.append(tuple(some))
        return accuracies[tuple(some)]

    steps = greedy(range(5), id_acc)
    assert [step.ingredient for step in steps if step.kept] == [0, 1, 3]
    assert [step.id_acc for step in steps] == [80.0, 80.0, 79.0, 82.0, 81.9]
    assert asked == list(accuracies)


def test_a_greedy_soup_leaves_out_what_lowers_its_accuracy(train, tmp_path):
    config, folder, metrics = train("ft")
    ruined, names = load_weights(folder)
    save_weights(
        tmp_path / "ruined",
        {n: v + torch.randn(v.shape) if v.is_floating_point() else v for n, v in ruined.items()},
        Progress(),
        names,
    )
    folders = [folder, tmp_path / "ruined", folder]
    soup = build_soup(config, folders, "greedy", tmp_path / "soup")
    assert soup.used == (0, 2)
    assert [step.kept for step in soup.steps] == [True, False, True]
    assert soup.steps[0].id_acc == pytest.approx(metrics["id_val/acc"])
    assert soup.steps[1].id_acc < soup.steps[0].id_acc
    assert soup.metrics["id_val/acc"] == soup.steps[2].id_acc


def test_greedy_reads_only_id_validation_images(train, tmp_path, monkeypatch):
    config, folder, _ = train("ft")
    opened = set()
    looked_at = []
    open_them, batches = ImageDataset.__init__, ImageDataset.eval_batches

    def spy(self, root, domain, split, **arguments):
        opened.add(split)
        open_them(self, root, domain, split, **arguments)

    def look(self, *arguments, **more):
        looked_at.append(self.name)
        return batches(self, *arguments, **more)

    monkeypatch.setattr(ImageDataset, "__init__", spy)
    monkeypatch.setattr(ImageDataset, "eval_batches", look)
    build_soup(config, [folder, folder], "greedy", tmp_path / "soup")
    assert opened == {"val"}
    # Both soups and the final one, perhaps after the zero-shot model; then the other domains.
    of_id = looked_at.count("real/val")
    assert of_id >= 3
    assert set(looked_at[:of_id]) == {"real/val"}
    assert set(looked_at[of_id:]) == {"sketch/val", "clipart/val"}


def test_what_cannot_be_averaged_is_told_in_one_line(train, tmp_path):
    ft, flyp = (open_store(train(method)[1]) for method in ("ft", "flyp"))
    weights, names = load_weights(ft.local_path())
    with pytest.raises(ConfigError, match=r"'text\..*' is not in both, or has another shape"):
        check_ingredients([ft, flyp])
    save_weights(tmp_path / "renamed", weights, Progress(), names[::-1])
    with pytest.raises(ConfigError, match="trained on other classes than"):
        check_ingredients([ft, open_store(tmp_path / "renamed")])
    fewer = weights | {"head": weights["head"][:-1]}
    save_weights(tmp_path / "fewer", fewer, Progress(), names)
    with pytest.raises(ConfigError, match="'head' is not in both, or has another shape"):
        check_ingredients([ft, ft, open_store(tmp_path / "fewer")])


def test_other_classes_than_the_data_have_now_are_told(train, tmp_path):
    config, folder, _ = train("ft")
    weights, names = load_weights(folder)
    other = [tmp_path / name for name in ("a", "b")]
    for path in other:
        save_weights(path, weights, Progress(), names[::-1])
    with pytest.raises(ConfigError, match="other classes than the data have now"):
        build_soup(config, other, "uniform", tmp_path / "soup")
    assert not (tmp_path / "soup").exists()
