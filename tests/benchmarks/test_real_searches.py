"""The searches beside the simulated ones begin where these do."""

import numpy as np
import pytest

from tests.benchmarks.curve_table import unit_point
from tests.benchmarks.real_searches import DISTANCE, settings, with_prior
from tests.benchmarks.simulate import recorded_setting, start_points
from tuning import load_config


def test_a_real_search_begins_at_the_centre_of_the_simulated_one(tmp_path):
    setting = recorded_setting()
    for seed in range(2):
        file = load_config("quickstart", settings(seed, tmp_path) + with_prior(seed, setting))
        first = dict(file.search_space().initial_points[0])
        center = dict(start_points(setting, DISTANCE, seed)[0])
        assert {key: first[key] for key in center} == pytest.approx(center)
        away = unit_point(setting.problem.space, first) - setting.ends.best_point
        assert np.linalg.norm(away[setting.ends.matters]) == pytest.approx(DISTANCE, abs=1e-6)
