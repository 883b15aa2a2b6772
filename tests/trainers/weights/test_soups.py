"""Soups of real fine-tunings: their arithmetic, their figures, and what they look at."""

from functools import cache

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.trainers.curves import changed, configured
from tests.trainers.tiny_models import random_model
from trainers.checkpoints.format import WEIGHTS, Header, Progress, load_weights, save_checkpoint
from trainers.data.dataset import ImageDataset
from trainers.errors import ConfigError
from trainers.evaluation.line import LineGoal
from trainers.fine_tune import fine_tune
from trainers.loop.state import start
from trainers.models.clip import load_clip
from trainers.weights.soups import average, build_soup, greedy, lines


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


def zero_shot_weights(config):
    return start(config).student.plain_state()


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
    soup = build_soup(config, [folder, folder], "uniform")
    assert soup.used == (0, 1)
    assert measures(soup.metrics) == pytest.approx(measures(metrics), rel=1e-4, abs=1e-4)
    assert measures(soup.metrics).keys() == soup.metrics.keys() == measures(metrics).keys()
    assert metrics["ood_val/mean_feature_distortion"] > 1e-3
    own, names = load_weights(folder)
    assert soup.class_names == names
    assert soup.weights.keys() == own.keys()
    for name, value in own.items():
        torch.testing.assert_close(soup.weights[name], value, rtol=1e-4, atol=1e-5)


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

    assert greedy(range(5), id_acc) == (0, 1, 3)
    assert asked == list(accuracies)


def test_a_greedy_soup_looks_at_id_validation_images_alone(train, tmp_path, monkeypatch):
    config, folder, metrics = train("ft")
    weights, names = load_weights(folder)
    ruined = {n: v + torch.randn(v.shape) for n, v in weights.items()}
    looked_at, batches = [], ImageDataset.eval_batches

    def look(self, *arguments, **more):
        looked_at.append(self.name)
        return batches(self, *arguments, **more)

    monkeypatch.setattr(ImageDataset, "eval_batches", look)
    folders = [folder, saved(tmp_path / "ruined", ruined, names), folder]
    soup = build_soup(config, folders, "greedy")
    assert soup.used == (0, 2)
    assert soup.metrics["id_val/acc"] == pytest.approx(metrics["id_val/acc"])
    # Three soups and the final one, perhaps after the zero-shot model; then the other domains.
    of_id = looked_at.count("real/val")
    assert of_id >= 4
    assert set(looked_at[:of_id]) == {"real/val"}
    assert set(looked_at[of_id:]) == {"sketch/val", "clipart/val"}


def test_model_stock_of_trials_is_the_papers_equation(train):
    (config, *_), folders = train("ft"), [train("ft", seed)[1] for seed in range(3)]
    soup = build_soup(config, folders, "stock")
    files, ratios = [load_file(folder / WEIGHTS) for folder in folders], set()
    for name, value in zero_shot_weights(config).items():
        before = value.double().numpy()
        updates = np.stack([file[name] - before for file in files]).reshape(3, -1)
        lengths = np.linalg.norm(updates, axis=1, keepdims=True)
        units = updates / np.where(lengths, lengths, 1)
        cosine = max(0.0, (units @ units.T)[np.triu_indices(3, 1)].mean())
        ratios.add(ratio := 3 * cosine / (1 + 2 * cosine))
        expected = (before.ravel() + ratio * updates.mean(axis=0)).reshape(before.shape)
        np.testing.assert_allclose(soup.weights[name], expected, rtol=1e-4, atol=1e-6)
    assert 0.1 < np.median([*ratios]) < 0.999
    assert len(ratios) > 10  # each tensor has its own


ROBERTA = "text.text.transformer.encoder.layer.{}."
RESBLOCKS = "transformer.resblocks.{}."
KINDS = {"clip": f"text.{RESBLOCKS}", "coca": f"text.text.{RESBLOCKS}", "roberta": ROBERTA}


@pytest.mark.parametrize("kind", KINDS)
def test_lines_scales_both_encoders_by_their_own_blocks(kind, tmp_path):
    state = load_clip(random_model(tmp_path, kind)).state_dict()
    names = [n if n.startswith("visual.") else f"text.{n}" for n in state]
    zero_shot = {n: torch.zeros(2) for n in [*names, "head"] if "text_decoder" not in n}
    last = [blocks.format(1) for blocks in (f"visual.{RESBLOCKS}", KINDS[kind])]
    for name, value in lines(zero_shot, {n: torch.ones(2) for n in zero_shot}, 0.3).items():
        whole = name == "head" or name.startswith(tuple(last))
        assert value.tolist() == pytest.approx([1.0 if whole else 0.3] * 2), name


def test_lines_is_linear_in_depth():
    names = [f"visual.trunk.blocks.{i}.mlp.fc1.weight" for i in range(12)]
    zero_shot, tuned = ({name: torch.full((2,), v) for name in names} for v in (5.0, 7.0))
    shares = [(float(value[0]) - 5) / 2 for value in lines(zero_shot, tuned, 0.2).values()]
    assert shares == pytest.approx(np.linspace(0.2, 1.0, 12))


def test_lines_needs_transformer_blocks(tmp_path):
    state = load_clip(random_model(tmp_path, "resnet")).state_dict()
    visual = {n: v for n, v in state.items() if n.startswith("visual.")}
    with pytest.raises(ConfigError, match="scales the blocks of a transformer"):
        lines(visual, visual, 0.5)


def test_lines_chooses_its_alpha_by_the_goal(train):
    config, folder, metrics = train("ft")
    ends = {}
    for direction in ("max", "min"):
        goal = LineGoal(objectives=(("ood_val/mean_feature_distortion", direction),))
        aimed = config.model_copy(
            update={"eval": config.eval.model_copy(update={"line_goal": goal})}
        )
        ends[direction] = build_soup(aimed, [folder], "lines")
    # The distortion grows with the update: at alpha = 1 it is that of the trial.
    assert ends["max"].alpha == 1.0
    assert measures(ends["max"].metrics) == pytest.approx(measures(metrics), rel=1e-4, abs=1e-4)
    assert ends["min"].alpha == 0.05
    expected = lines(zero_shot_weights(config), load_weights(folder)[0], 0.05)
    for name, value in ends["min"].weights.items():
        torch.testing.assert_close(value, expected[name])


def test_other_classes_than_the_data_have_now_are_told(train, tmp_path):
    config, folder, _ = train("ft")
    weights, names = load_weights(folder)
    other = [saved(tmp_path / name, weights, names[::-1]) for name in ("a", "b")]
    with pytest.raises(ConfigError, match="other classes than the data have now"):
        build_soup(config, other, "uniform")
