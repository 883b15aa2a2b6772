"""Models of real fine-tunings: their arithmetic, their figures, and which candidate is taken."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.curves import changed, configured
from trainers.checkpoints.format import WEIGHTS, Header, Progress, load_weights, save_weights
from trainers.checkpoints.storage import newest_checkpoint
from trainers.data.store import open_store
from trainers.fine_tune import fine_tune
from trainers.loop.images import load_split
from trainers.loop.measure import holding, measure, measure_zero_shot
from trainers.loop.setup import set_up
from trainers.methods.registry import METHODS
from trainers.weights import means
from trainers.weights.means import (
    Candidate,
    Criterion,
    Recipe,
    Stored,
    build,
    evaluation_config,
    make_and_test,
    most_evaluations,
)

NAMES = [
    n if n in ("ft", "lora", "flyp", "r_adapter") else pytest.param(n, marks=pytest.mark.nightly)
    for n in sorted(METHODS)
]
"""Methods of each kind; all others at night."""


NLL = "val/mean_nll"


@pytest.fixture(scope="module")
def train(trial, tmp_path_factory):
    """Trains a method with a seed, once: what is stored of it, and its last report."""

    @cache
    def run(method, seed=0, line=0.5):
        lr = 3e-2 if method == "r_adapter" else 1e-3
        changes = {"optim__lr": lr, "data__ood_domains": ["sketch", "clipart"], "steps": 2}
        config = changed(configured(trial, method), **changes, seed=seed, eval__line=line)
        folder = tmp_path_factory.mktemp(f"{method}-{seed}")
        *_, last = fine_tune(config)
        last.save(folder)
        config = evaluation_config(config, trains_text=is_of_text(method))
        point = last.metrics.get("line/a", 1.0)
        return Stored(str(folder), config, method, of_validation(last.metrics), point), last

    return run


@pytest.fixture(scope="module")
def scaled(trial, tmp_path_factory):
    """Stores the zero-shot model with a multiple of its head, of which its NLL is a function."""
    config = changed(trial, data__ood_domains=["sketch", "clipart"])
    config = evaluation_config(config, trains_text=False)
    setup = set_up(config)
    student = setup.student()
    images = load_split(config, "val")

    @cache
    def store(scale, method="ft", point=1.0):
        folder = tmp_path_factory.mktemp("scaled")
        weights = {**student.weights, "head": scale * student.head.detach()}
        with holding(setup, student, weights):
            metrics = measure(setup, student, images)
            header = Header(Progress(), setup.class_names)
            save_weights(folder, student.plain_state(), header)
        return Stored(str(folder), config, method, metrics, point)

    return store


def of_validation(metrics):
    return {n: v for n, v in metrics.items() if n.startswith(("id_val/", "ood_val/", "val/"))}


def close_to(wanted, **others):
    """Prefers a model whose NLL is that of another one."""
    return Criterion(lambda m: -round(abs(m[NLL] - wanted.metrics[NLL]), 5), nll_of, **others)


def nll_of(metrics):
    return metrics[NLL]


def folders(candidate):
    return [one.folder for one in candidate.trainings]


def newest(folder):
    """The newest checkpoint in a folder."""
    store = open_store(folder)
    return store.at(newest_checkpoint(store)).local_path()


def is_of_text(method):
    return method in ("flyp", "star_ft", "carot", "r_adapter")


@pytest.mark.parametrize("method", NAMES)
def test_the_mean_of_equal_weights_has_the_figures_of_their_training(method, train):
    stored, _ = train(method)
    built = build([replace(stored, metrics={NLL: 0.0})] * 2, [Criterion(len, nll_of)])[0]
    (mean,) = (one for one in built.candidates if one.kind == "first" and not one.of_ends)
    assert of_validation(mean.metrics) == pytest.approx(stored.metrics, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("method", NAMES)
def test_the_end_of_a_stored_point_is_that_of_the_training(method, train, tmp_path):
    stored, last = train(method)
    setup = last.training.setup
    student = last.training.student
    with holding(setup, student, last.evaluated.end):
        own = {name: value.clone() for name, value in student.plain_state().items()}
        expected = measure(setup, student, load_split(setup.config, "val"))
    end = Candidate("single", True, (stored,))
    found, _ = make_and_test(end.recipe, str(tmp_path), {}, "val")
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    made = load_weights(newest(tmp_path))[0]
    assert made.keys() == own.keys()
    for name, value in own.items():
        torch.testing.assert_close(made[name], value, rtol=1e-5, atol=1e-5)
    assert (stored.point == 0.5) == METHODS[method].has_line


@pytest.mark.parametrize("point", [0.5, 1.0])
@pytest.mark.parametrize("number", [1, 2, 4, 6])
def test_the_most_evaluations_are_known_before(number, point, scaled):
    """The better one is higher, so that each mean is worse than the best of its parts."""
    stored = [scaled(1 + 0.01 * index, point=point) for index in range(number)]
    (built,) = build(stored, [close_to(scaled(1.3))])
    assert built.evaluations == most_evaluations(number, has_line=point < 1)


def test_other_criteria_need_few_evaluations_more(scaled):
    stored = [scaled(1 + 0.01 * index, point=0.5) for index in range(4)]
    criteria = [close_to(scaled(1.3)), close_to(scaled(1.0), ends_alone=True)]
    evaluations = sum(built.evaluations for built in build(stored, criteria))
    assert evaluations == most_evaluations(4, has_line=True, ends_alone=1)


def test_greedy_stalls_and_the_first_k_win(scaled):
    """The best is a little too high, the others are far too high and far too low."""
    stored = [scaled(1.35), scaled(1.6), scaled(0.95)]
    built = build(stored, [close_to(scaled(1.3))])[0]
    assert not any(one.kind == "greedy" for one in built.candidates)
    assert (built.chosen.kind, len(built.chosen.trainings)) == ("first", 3)
    assert folders(built.chosen)[0] == stored[0].folder


def test_a_greedy_soup_leaves_out_what_makes_the_mean_worse(scaled):
    stored = [scaled(1.4), scaled(1.402), scaled(1.165), scaled(2.0)]
    built = build(stored, [close_to(scaled(1.3))])[0]
    assert built.chosen.kind == "greedy"
    assert folders(built.chosen) == [stored[0].folder, stored[2].folder]


def test_a_point_beyond_the_mean_of_ends_wins(scaled):
    """Points 0.5 of lines whose ends have 1.2 times the head."""
    stored = [scaled(1.1, point=0.5), scaled(1.1, "kd", point=0.5)]
    built = build(stored, [close_to(scaled(1.26))])[0]
    chosen = built.chosen
    assert (chosen.kind, chosen.of_ends, chosen.line) == ("first", True, 1.3)
    shares = [share for _, share in chosen.recipe.shares]
    assert shares == pytest.approx([1.3, 1.3])
    assert chosen.metrics[NLL] == pytest.approx(scaled(1.26).metrics[NLL], abs=1e-5)


def test_a_tie_goes_to_the_mean(scaled):
    equal = [scaled(1.2), scaled(1.2)]
    built = build(equal, [close_to(scaled(1.2))])[0]
    assert built.chosen.kind == "first"
    assert built.chosen.metrics == built.candidates[0].metrics


def test_the_lower_nll_decides_between_equal_merits(scaled):
    stored = [scaled(1.0), scaled(1.2)]
    built = build(stored, [Criterion(lambda _: 0, nll_of)])[0]
    assert built.chosen.metrics[NLL] == min(one.metrics[NLL] for one in built.candidates)


def test_what_meets_the_constraints_wins(scaled):
    """The mean alone lies between both bounds."""
    low, high = sorted(nll_of(scaled(c).metrics) for c in (1.15, 1.25))

    def merit(metrics):
        missed = max(0.0, low - metrics[NLL], metrics[NLL] - high)
        return -missed, abs(metrics[NLL] - high)

    stored = [scaled(1.0), scaled(1.4)]
    chosen = build(stored, [Criterion(merit, nll_of)])[0].chosen
    assert chosen.kind in ("first", "greedy")
    assert low <= chosen.metrics[NLL] <= high


def test_weights_of_two_kinds_are_never_averaged(train):
    image, text = train("ft")[0], train("flyp")[0]
    built = build([image, text, image], [Criterion(lambda _: 0, nll_of)])[0]
    made_of = [{*folders(one)} for one in built.candidates]
    assert all(one in ({image.folder}, {text.folder}) for one in made_of)
    assert {len(one.trainings) for one in built.candidates} == {1, 2}


def test_the_first_k_of_each_method_are_candidates(scaled):
    stored = [scaled(1.0), scaled(1.1), scaled(1.2, "kd"), scaled(1.3, "kd"), scaled(1.4, "kd")]
    built = build(stored, [close_to(scaled(1.0))])[0]
    firsts = [one for one in built.candidates if one.kind == "first" and one.line == 1]
    scales = {one.folder: scale for one, scale in zip(stored, range(5), strict=True)}
    found = [[scales[folder] for folder in folders(one)] for one in firsts if not one.of_ends]
    # 0 and 1 are the first two of all and of `ft`.
    assert found == [[0, 1], [0, 1, 2], [0, 1, 2, 3, 4], [2, 3], [2, 3, 4]]


def test_a_choice_by_ends_alone_has_neither_points_nor_greedy_soups(scaled):
    stored = [scaled(1.1, point=0.5), scaled(1.3, point=0.5), scaled(1.2)]
    both, alone = build(stored, [close_to(scaled(1.3)), close_to(scaled(1.3), ends_alone=True)])
    assert {(one.kind, one.of_ends) for one in alone.candidates} == {
        ("single", True),
        ("first", True),
    }
    assert both.evaluations > 0
    assert alone.evaluations == 0  # the same order, so the same means


def test_candidates_have_the_same_figures_one_at_a_time(scaled, monkeypatch):
    stored = [scaled(1.1, point=0.5), scaled(1.3, "kd", point=0.5), scaled(1.4)]
    criteria = [close_to(scaled(1.25)), close_to(scaled(1.0), ends_alone=True)]
    together = build(stored, criteria)
    monkeypatch.setattr(means, "HELD_BYTES", 0)
    assert build(stored, criteria) == together


@pytest.mark.parametrize("method", ["ft", "flyp"])
def test_a_model_is_written_and_tested(method, train, whole_root, tmp_path):
    stored, _ = train(method)
    config = changed(stored.config, data__root=str(whole_root))
    one = Recipe(config, ((stored.folder, 1.0),))
    two = Recipe(config, ((stored.folder, 0.5),) * 2)
    found, predictions = make_and_test(one, str(tmp_path / "a"), stored.metrics, "test")
    again, _ = make_and_test(two, str(tmp_path / "b"), stored.metrics, "test")
    assert again == pytest.approx(found, rel=1e-4, abs=1e-4)
    assert {"id_test/acc", "ood_test/mean_acc"} <= found.keys()
    assert predictions
    ours, its = load_weights(newest(tmp_path / "a"))[0], load_file(Path(stored.folder, WEIGHTS))
    assert ours.keys() == its.keys()
    exact = {name: (ours[name] == value).all() for name, value in its.items() if name != "head"}
    assert all(exact.values())


def test_the_zero_shot_model_is_made_of_nothing(trial, whole_root, tmp_path):
    config = evaluation_config(changed(trial, data__root=str(whole_root)), trains_text=False)
    found, _ = make_and_test(Recipe(config), str(tmp_path), {}, "test")
    assert found == measure_zero_shot(set_up(config), load_split(config, "test"))
