"""Searches on an Optuna that lacks what is worked around."""

import inspect
import logging
import math
import textwrap

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import GPSampler
from optuna.samplers._gp import sampler as module

from tests.tuning.algorithms.test_expected_gain import ACCURACIES, trials
from tests.tuning.run_folders import ZERO_SHOT, search_file
from tuning.algorithms.expected_gain import expected_gain
from tuning.algorithms.gp_sampler import RobustGPSampler
from tuning.algorithms.optuna_workarounds import has_hook
from tuning.runs.run_folder import search_record


@pytest.fixture
def renamed(monkeypatch):
    """Optuna's Gaussian process with another name for the method that is overridden."""
    source = textwrap.dedent(inspect.getsource(GPSampler._sample_relative_impl))
    found = {}
    source = "from __future__ import annotations\n" + source.replace("_optimize_acqf", "_maximize")
    exec(source, vars(module), found)
    monkeypatch.setattr(GPSampler, "_sample_relative_impl", found["_sample_relative_impl"])
    monkeypatch.setattr(GPSampler, "_maximize", GPSampler._optimize_acqf, raising=False)
    monkeypatch.delattr(GPSampler, "_optimize_acqf")
    has_hook.cache_clear()
    yield
    has_hook.cache_clear()


def proposals():
    study = optuna.create_study(sampler=RobustGPSampler(seed=0, n_startup_trials=4, reach=0.25))
    for number in range(8):
        trial = study.ask({"x": FloatDistribution(0, 1)})
        if number == 5:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, (trial.params["x"] - 0.4) ** 2)
    return [trial.params["x"] for trial in study.trials]


def test_proposals_go_on_and_the_log_says_once_what_is_lost(renamed, images_root, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        found = proposals()
        file = search_file(images_root)
        search = search_record(file, tmp_path, dict(ZERO_SHOT))
        assert expected_gain(search, file.search_space(), trials(ACCURACIES)) == math.inf
    assert all(0 <= x <= 1 for x in found)
    assert min(abs(x - 0.4) for x in found[4:]) < 0.05
    (line,) = (record.message for record in caplog.records if "GPSampler" in record.message)
    assert "search.budget.worth ends no search" in line


def test_this_optuna_has_the_hook():
    has_hook.cache_clear()
    assert has_hook()
