"""What is said of a model: intervals, and sentences."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from scipy.special import ndtr

from tests.tuning import fakes
from tests.tuning.confirmation.written import write_predictions, write_results
from tests.tuning.result_tables import printed
from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.config.objectives import Objective, parse_constraint
from tuning.runs.confirmation import SPLIT, Confirmation, read_confirmation
from tuning.runs.model import Candidate, Goal, Model, choose, findings, goal_of, model_in_words
from tuning.views.confirmation_table import model_table
from tuning.views.result_table import fit_table

DOMAINS = {"real": 300, "sketch": 200, "clipart": 150}
"""Test images of each."""
NOISE = 0.7
"""Of a model's score of an image, beside the difficulty of the image, which all models share."""


def accuracy(strength, spread=0.0):
    """Of all images, in percent, by the strength of a model; the mean if that has a deviation."""
    return 100 * ndtr(strength / np.sqrt(1 + NOISE**2 + spread**2))


class Drawn:
    """A search of 20 trials and its confirmation, as far as intervals read it.

    Args:
        ft_soup: how much better a mean of FT's weights is than one of these on average.
    """

    search = SimpleNamespace(ood_domains=("sketch", "clipart"), run_folder=Path())
    images = Confirmation.images
    spread = 0.12

    def __init__(self, random, seeds, ft_soup):
        self.random, self.seeds = random, range(seeds)
        trials = 0.8 + 0.15 * random.normal(size=20)
        self.ft = 0.8 + self.spread * random.normal(size=seeds)
        settings = 0.85 + 0.05 * random.normal(size=seeds)
        strengths = [*trials, *settings, *self.ft, self.ft.mean() + ft_soup]
        validation = self.draw(strengths, {"all": 400})
        chosen = max(range(len(strengths)), key=lambda index: validation["all"][index].mean())
        self.strength = strengths[chosen]
        drawn = self.draw([self.strength, 0.5, *self.ft], DOMAINS)
        self.columns = {
            "predicted": {domain: rows[0] for domain, rows in drawn.items()},
            "zero_shot": {domain: rows[1] for domain, rows in drawn.items()},
        }
        self.of_ft = {
            seed: {domain: rows[2 + seed] for domain, rows in drawn.items()} for seed in self.seeds
        }

    def draw(self, strengths, sizes):
        found = {}
        for domain, size in sizes.items():
            noise = NOISE * self.random.normal(size=(len(strengths), size))
            scores = np.array(strengths)[:, None] + self.random.normal(size=size) + noise
            found[domain] = (scores > 0).astype(np.int8)
        return found

    def weights(self, metric):
        domain = MetricKey.parse(metric).domain
        if domain == MEAN_OOD:
            return {"sketch": 50.0, "clipart": 50.0}
        return {"real" if domain == ID else domain: 100.0}

    def measured(self, right):
        metrics = [str(MetricKey(SPLIT, d, "acc")) for d in (ID, MEAN_OOD, "sketch", "clipart")]
        return {
            metric: sum(share * right[d].mean() for d, share in self.weights(metric).items())
            for metric in metrics
        }

    @property
    def zero_shot(self):
        return self.measured(self.columns["zero_shot"])

    def values(self, _, metric):
        return {seed: self.measured(right)[metric] for seed, right in self.of_ft.items()}

    def right(self, *_):
        return self.of_ft

    def model(self):
        test = self.measured(self.columns["predicted"])
        return Model(1, Candidate("single", "trial-000", {}), 20, test=test)

    @property
    def truth(self):
        """What the intervals should hold, by their labels."""
        own = accuracy(self.strength)
        to_ft = own - accuracy(0.8, self.spread)
        return {
            "test accuracy": own,
            "than zero-shot": own - accuracy(0.5),
            "than one plain fine-tuning": to_ft,
        }


@pytest.mark.nightly
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("ft_soup", [0.0, 0.3])
def test_intervals_hold_as_often_as_they_say(seeds, ft_soup):
    random, hits = np.random.default_rng(seeds), {}
    for _ in range(5000):
        drawn = Drawn(random, seeds, ft_soup)
        with patch("tuning.runs.model.read_right", return_value=drawn.columns):
            found = findings(drawn, drawn.model())
        for one in found:
            for metric, value in one.values.items():
                held = value.low <= drawn.truth[one.label] <= value.high
                hits.setdefault((one.label, metric), []).append(held)
    often = {key: np.mean(held) for key, held in hits.items() if len(held) > 2000}
    assert len(often) >= 8
    assert min(often.values()) >= 0.94, often


def measured(id_acc, ood_acc):
    return {"id_test/acc": id_acc, "ood_test/mean_acc": ood_acc, "ood_test/sketch/acc": ood_acc}


@pytest.fixture
def confirmation(tmp_path):
    """Two seeds of FT: six and five of ten ID images are right, four and three OOD ones."""
    search = fakes.search_record(tmp_path, ood_domains=("sketch",))
    results = {("zero-shot", None): measured(20.0, 30.0)}
    results |= {("ft", 0): measured(60.0, 40.0), ("ft", 1): measured(50.0, 30.0)}
    write_results(tmp_path, results)
    for seed, (of_id, of_ood) in enumerate([(6, 4), (5, 3)]):
        right = {"real": np.arange(10) < of_id, "sketch": np.arange(10) < of_ood}
        write_predictions(tmp_path, ("ft", seed), {"predicted": right, "zero_shot": right})
    return read_confirmation(search)


def built(*names, **more):
    kind = "single" if len(names) == 1 else "soup"
    trainings = tuple({"name": name, "seed": 0} for name in names)
    chosen = Candidate(kind, names[0], {}, trainings)
    return Model(1, chosen, 2, test=measured(70.0, 50.0), **more)


def test_a_model_is_compared_with_the_mean_of_plain_fine_tunings(confirmation):
    """Also if it is one of them."""
    for name in ("trial-003", "ft-seed-1"):
        *_, found = findings(confirmation, built(name))
        assert found.label == "than one plain fine-tuning"
        assert found.values["id_test/acc"].mean == pytest.approx(15)


def test_a_model_is_shown_in_sentences_and_beside_others(confirmation, screen):
    records = [fakes.trial(number) for number in range(3)]
    soup, lost = built("trial-003", "ft-seed-1000"), ("the weights of trial-001 are gone",)
    models = [soup, built("trial-003", notes=lost)]
    table = printed(fit_table(model_table(confirmation, models), 100, "mine"), 100)
    screen("model", "\n".join([*model_in_words(confirmation, models, records), table]))


def test_constraints_come_before_the_objective(tmp_path):
    bound = parse_constraint("id_val/acc >= best - 1", ["id_val/acc"])
    search = fakes.search_record(tmp_path, constraints=(bound,))
    goal = goal_of(search, [fakes.trial(0, 80.0, 10.0), fakes.trial(1, 70.0, 60.0)])
    metrics = {"id_val/acc": 78.9, "val/mean_acc": 90.0}
    meets = {"id_val/acc": 79.0, "val/mean_acc": 10.0}
    assert goal.merit(meets) > goal.merit(metrics) > goal.merit({})
    candidates = [Candidate("single", name, of) for name, of in (("a", metrics), ("b", meets))]
    assert choose(goal, [*candidates, Candidate("soup", "c", meets)]).name == "b"
    two = (Objective("id_val/acc"), Objective("id_val/nll", "min"))
    assert goal_of(fakes.search_record(tmp_path, objectives=two), []) is None
    assert Goal(two[1]).merit({"id_val/nll": 1.0}) > Goal(two[1]).merit({"id_val/nll": 2.0})
