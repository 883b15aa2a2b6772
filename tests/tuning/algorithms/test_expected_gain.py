"""The expected gain against a grid, and a search that it ends."""

import math
from unittest.mock import patch

import numpy as np
import pytest
from optuna.samplers._gp.sampler import gp
from scipy.stats import norm

from tests.tuning.agreement import disagreements
from tests.tuning.execution.inline_tuner import without_ray
from tests.tuning.execution.instant import instant_file, resume_instantly, run_instantly
from tests.tuning.run_folders import LR, WEIGHT, ZERO_SHOT, search_file, trial
from tuning.algorithms.expected_gain import expected_gain
from tuning.config.objectives import Objective, parse_constraint
from tuning.resume import more_trials
from tuning.runs.run_folder import load_run, search_record

AXIS = np.linspace(0, 1, 401)
GRID = np.stack(np.meshgrid(AXIS, AXIS), axis=-1).reshape(-1, 2)
ACCURACIES = np.array([60.0, 61.0, 63.0, 62.5, 61.5, 60.5, 60.2, 62.0])


def trials(accuracies):
    """Trials at different points, each with one accuracy everywhere."""
    lrs, weights = 10 ** np.linspace(-6, -2, 8), [0.02, 30.0, 1.0, 0.1, 8.0, 0.4, 90.0, 3.0]
    points = zip(lrs, weights, accuracies, strict=False)
    return [trial(n, a, a, lr=lr, weight=w) for n, (lr, w, a) in enumerate(points)]


def gain(root, folder, records, **changes):
    """The expected gain, and the Gaussian process that was fitted to the objective."""
    file = search_file(root)
    search = search_record(file, folder, dict(ZERO_SHOT))
    for name, value in changes.items():
        object.__setattr__(search, name, value)
    fitted, fits = gp.fit_kernel_params, []
    with patch.object(gp, "fit_kernel_params", lambda **o: fits.append(fitted(**o)) or fits[-1]):
        return expected_gain(search, file.search_space(), records), fits


def by_hand(fit, records, values):
    """Most expected improvement on a grid of the unit square; of Optuna, the kernel's numbers."""

    def kernel(a, b):
        squares = (a[:, None] - b[None]) ** 2 @ fit.inverse_squared_lengthscales.numpy()
        distance = np.sqrt(5 * squares)
        return scale * (1 + distance + distance**2 / 3) * np.exp(-distance)

    scale = fit.kernel_scale.item()
    x = np.log10([[r.params[WEIGHT] / 0.01, r.params[LR] / 1e-6] for r in records]) / 4
    y = (values - values.mean()) / values.std()
    inverse = np.linalg.inv(kernel(x, x) + fit.noise_var.item() * np.eye(len(x)))
    cross = kernel(GRID, x)
    above = cross @ inverse @ y - y.max()
    sd = np.sqrt(scale - ((cross @ inverse) * cross).sum(axis=1))
    return values.std() * (sd * norm.pdf(above / sd) + above * norm.cdf(above / sd)).max()


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_gain_is_the_highest_expected_improvement(images_root, tmp_path, mode):
    sign = 1 if mode == "max" else -1
    records, objective = trials(sign * ACCURACIES), Objective("id_val/acc", mode)
    found, (fit,) = gain(images_root, tmp_path, records, objectives=(objective,))
    middle = np.median(ACCURACIES)
    below = np.maximum(middle - ACCURACIES, 0)
    reach = ACCURACIES.max() - middle
    values = np.where(below > 0, middle - reach * np.log1p(below / reach), ACCURACIES)
    assert found == pytest.approx(by_hand(fit, records, values), rel=0.01)


def test_constraints_lower_the_gain_and_unmet_ones_make_it_unknown(images_root, tmp_path):
    def bounded(bound):
        constraint = parse_constraint(f"id_val/acc >= {bound}", ["id_val/acc"])
        return gain(images_root, tmp_path, trials(ACCURACIES), constraints=(constraint,))[0]

    assert bounded(64) == math.inf
    assert 0 < bounded(61.5) < bounded(0)


@pytest.fixture
def ended(images_root, tmp_path):
    """A search of trials of no time, each of which is worth more than any gain."""
    with without_ray():
        budget = {"search__budget__trials": 12, "search__budget__worth": 1e9}
        yield run_instantly(instant_file(images_root, tmp_path, **budget))


def test_a_search_ends_when_the_next_trial_is_not_worth_its_hours(ended):
    assert ended.outcome == "finished"
    assert len(ended.history.records) == 6
    assert ended.ended_by.startswith("search.budget.worth = 1e+09: the next trial is expected to")
    figure, unit = ended.ended_by.split()[-3], ended.ended_by.split()[-1]
    hours = np.mean([record.seconds for record in ended.history.records]) / 3600
    found, _ = gain(ended.file.trial.data.root, ended.folder, ended.history.records)
    assert float(figure) == pytest.approx(found / hours, rel=0.06)
    assert unit == "CPU-hour"


def test_a_worthless_search_goes_on_with_more_trials_only(ended):
    again = resume_instantly(ended.folder)
    assert (len(again.history.records), again.ended_by) == (6, ended.ended_by)
    more = resume_instantly(ended.folder, *more_trials(load_run(ended.folder), "+3"))
    assert (len(more.history.records), more.ended_by) == (9, None)
    assert disagreements(ended.folder) == []


def test_a_search_that_is_worth_its_hours_has_all_its_trials(images_root, tmp_path):
    budget = {"search__budget__trials": 7, "search__budget__worth": 1e-6}
    with without_ray():
        found = run_instantly(instant_file(images_root, tmp_path, **budget))
    assert (len(found.history.records), found.ended_by) == (7, None)
