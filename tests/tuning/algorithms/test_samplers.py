import optuna
import pytest
from optuna.samplers import CmaEsSampler, GridSampler, RandomSampler

from search_spaces import Categorical, Float, Int, SearchSpace
from trainers.errors import ConfigError
from tuning.algorithms.samplers import (
    check_sampler,
    resolve_sampler,
)
from tuning.config.schema import SamplerConfig

LR = Float(low=1e-6, high=1e-3, log=True)
NUMERIC = SearchSpace(parameters={"optim.lr": LR, "method.text_length": Int(low=2, high=24)})
FIXED = SearchSpace(parameters={"optim.lr": LR, "precision": Categorical(choices=("fp32",))})
CHOICE = SearchSpace(
    parameters={"optim.lr": LR, "precision": Categorical(choices=("fp32", "bf16"))}
)


@pytest.mark.parametrize(
    ("space", "trials", "objectives", "name", "startup_trials"),
    [
        (NUMERIC, 20, 1, "gp", 4),
        (NUMERIC, 100, 1, "gp", 4),
        (FIXED, 20, 1, "gp", 4),
        (NUMERIC, 101, 1, "tpe", 6),
        (CHOICE, 20, 1, "tpe", 6),
        (NUMERIC, 20, 2, "tpe", 6),
    ],
)
def test_auto_is_gp_for_small_searches_over_numbers(
    space, trials, objectives, name, startup_trials
):
    found = resolve_sampler(SamplerConfig(), space, trials, objectives)
    assert (found.name, found.startup_trials) == (name, startup_trials)


def test_a_chosen_sampler_is_kept():
    config = SamplerConfig(name="tpe", startup_trials=9)
    assert resolve_sampler(config, NUMERIC, 20) == config


@pytest.mark.parametrize(
    ("sampler", "objectives"), [(GridSampler({"lr": [1e-4]}), 1), (CmaEsSampler(), 2)]
)
def test_a_sampler_that_cannot_search_the_space_is_refused(sampler, objectives):
    with pytest.raises(ConfigError, match=type(sampler).__name__) as caught:
        check_sampler(sampler, NUMERIC, objectives)
    assert caught.value.key == "sampler"


def test_the_check_of_a_sampler_leaves_its_random_numbers():
    def first(sampler):
        return optuna.create_study(sampler=sampler).ask(NUMERIC.distributions()).params

    checked = RandomSampler(seed=3)
    check_sampler(checked, NUMERIC, 1)
    assert first(checked) == first(RandomSampler(seed=3))
