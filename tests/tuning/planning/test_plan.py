"""What a plan shows, refuses and warns of; and a real one, on a local Ray."""

from dataclasses import replace

import pytest
import ray
from rich.console import Console

from tests.tuning.result_tables import text_of
from trainers.config import with_overrides
from trainers.errors import ConfigError
from tuning.algorithms.samplers import number_of_trials
from tuning.config.schema import SearchFile
from tuning.execution.ray_session import ray_session
from tuning.planning.cost_model import SearchShape, estimate
from tuning.planning.plan import (
    Plan,
    check_budget,
    create_rule,
    plan_search,
    trial_cost,
)
from tuning.planning.probe import INTERVALS, OVERRIDES, Probe, summarise
from tuning.planning.report import render

PROBE = Probe(
    device="A Processor",
    startup_s=90,
    restart_s=60,
    cache_s=0,
    load_s=5,
    first_eval_s=8,
    step_s=1,
    step_spread=0.05,
    eval_s=9,
    val_images=(4000, 1000),
    view_bytes=3 * 32**2,
    save_s=1,
    checkpoint_bytes=10**9,
    weights_bytes=4 * 10**8,
    memory_bytes=15 * 10**8,
    head_bytes=5 * 10**8,
    gpu_memory_bytes=0,
    gpu_total_bytes=0,
)


def search_file(evaluation=None, **search):
    scheduler = {"name": "asha", "grace_steps": 100}
    trial = {"steps": 900, "eval": {"every": 100, "line": "off", **(evaluation or {})}}
    return SearchFile.model_validate({"trial": trial, "search": {"scheduler": scheduler, **search}})


def make_plan(file, probe=PROBE, memory=10**11, head_memory=10**11):
    """The plan of a search whose probe is known; four trials at once."""
    shape = SearchShape(number_of_trials(file), 900, 100, concurrent=4, references=1)
    cost = trial_cost(probe, file.trial.eval)
    expected = estimate(shape, cost, lambda: create_rule(file))
    return Plan(file, probe, shape, expected, memory, head_memory)


def printed(plan, width=100):
    return text_of(render(plan, width), width)


def test_a_search_beyond_its_budget_is_refused():
    plan = make_plan(search_file(budget={"hours": 0.4}))
    hours = plan.estimate.hours
    expected = (
        f"search.budget.hours = 0.4: the search needs {hours.median:.2f} h "
        f"({hours.low:.2f} to {hours.high:.2f})"
    )
    with pytest.raises(ConfigError) as refused:
        check_budget(plan)
    assert str(refused.value) == expected


def test_a_budget_of_less_than_one_trial_says_so():
    # Before the last step, 2000 + 1000 of 5000 images are evaluated.
    full = (60 + 900 + 8 * (0.6 * 9 + 1) + 9 + 1) / 3600
    plan = make_plan(search_file(budget={"hours": full * 0.9}))
    with pytest.raises(ConfigError, match=r"not even one trial of 900 steps fits.* 0\.28 h"):
        check_budget(plan)


def test_points_of_the_line_cost_evaluations_of_the_sample():
    without, on_line = (make_plan(search_file({"line": line})) for line in ("off", "auto"))
    more = 3600 * (on_line.full_trial_hours - without.full_trial_hours)
    assert more == pytest.approx(4 * 0.6 * PROBE.eval_s)  # three points and the end
    assert with_overrides(on_line.file.trial, OVERRIDES, "trial").eval.line_points == ()


def test_a_plan_tells_first_points_from_proposals():
    lines = {
        trials: printed(make_plan(search_file(budget={"trials": trials}))) for trials in (4, 9)
    }
    assert "all 4 trials are first points: the sampler proposes none" in lines[4]
    assert "4 of 9 trials are first points, 5 the sampler proposes" in lines[9]


def test_gpu_hours_are_gpus_times_hours():
    resources = {"workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 4}
    file = search_file(budget={"gpu_hours": 1}, resources=resources)
    plan = make_plan(file)
    assert plan.device_hours == plan.estimate.trial_hours * 2.0
    assert plan.device == "GPU"
    with pytest.raises(ConfigError, match=r"search\.budget\.gpu_hours = 1: the search needs"):
        check_budget(plan)


def test_cpu_hours_stand_in_where_trials_take_no_gpu():
    plan = make_plan(search_file(resources={"workers": 2, "cpus_per_worker": 4}))
    assert (plan.device, plan.device_hours) == ("CPU", plan.estimate.trial_hours * 8)


def test_between_the_low_end_and_the_median_it_warns_and_goes_on():
    hours = make_plan(search_file()).estimate.hours
    plan = make_plan(search_file(budget={"hours": (hours.low + hours.median) / 2}))
    check_budget(plan)
    assert any("search.budget.hours" in warning for warning in plan.warnings)
    late = {"name": "asha", "grace_steps": 700}
    enough = make_plan(search_file(budget={"hours": hours.high * 2}, scheduler=late))
    check_budget(enough)
    assert enough.warnings == []


def test_it_warns_of_raw_weights_at_rungs_before_three_quarters():
    assert "grace_steps = 100 is early" in make_plan(search_file()).warnings[-1]
    assert make_plan(search_file({"rung_weights": "averaged"})).warnings == []


def test_it_warns_of_too_little_memory_disk_or_gpu_memory():
    file = search_file(
        checkpoints={"disk_gb": 10}, resources={"gpus_per_worker": 0.5}, budget={"trials": 4}
    )
    gpu = replace(PROBE, gpu_memory_bytes=5 * 10**9, gpu_total_bytes=8 * 10**9)
    plan = make_plan(file, gpu, memory=7 * 10**9)
    assert plan.peak_checkpoint_bytes == 4 * 2 * 10**9 + (6 + 1) * 4 * 10**8
    memory, on_gpu, disk, _ = plan.warnings
    assert "4 trials at once take 8 GB of memory, and the cluster has 7 GB" in memory
    assert "2 workers on a GPU take 10 GB, and it has 8 GB" in on_gpu
    assert "search.checkpoints.disk_gb = 10: some checkpoints" in disk
    small_head = make_plan(search_file(budget={"trials": 4}), head_memory=10**9)
    assert "take 2 GB of the head's memory, and it has 1 GB" in small_head.warnings[0]
    tight = make_plan(search_file(checkpoints={"disk_gb": 7}))
    assert "running trials alone take 8 GB" in tight.warnings[0]


@pytest.mark.parametrize(
    ("val_images", "workers", "rung_images", "kept"),
    [
        pytest.param((4000, 1000), 1, 2000, 2000 * 150_528, id="sample"),
        pytest.param((4000, 1000), 1, 0, 0, id="all-images"),
        pytest.param((4000,) * 20, 2, 2000, 20 * 2000 * 150_528, id="two-workers"),
        pytest.param((4000,) * 20, 1, 2000, 4 << 30, id="limit-of-a-worker"),
        pytest.param((9000,), 1, 8000, 0, id="larger-than-is-kept"),
    ],
)
def test_decoded_samples_take_memory(val_images, workers, rung_images, kept):
    file = search_file({"rung_images": rung_images}, resources={"workers": workers})
    probe = replace(PROBE, val_images=val_images, view_bytes=3 * 224**2)
    plan = make_plan(file, probe, memory=8 * 10**9 + 4 * kept)
    assert plan.trial_memory_bytes == 2 * 10**9 + kept
    assert not any("of memory" in warning for warning in plan.warnings)
    less = replace(plan, cluster_memory_bytes=plan.cluster_memory_bytes - 1)
    assert any("of memory, and the cluster" in warning for warning in less.warnings)


@pytest.mark.parametrize(("keep_top", "more"), [(0, 0), (3, 3), (50, 4)])
def test_kept_weights_take_disk_but_of_no_more_than_all_trials(keep_top, more):
    budget = {"trials": 4}
    plan = make_plan(search_file(budget=budget, checkpoints={"keep_top": keep_top}))
    usual = make_plan(search_file(budget=budget)).peak_checkpoint_bytes
    assert plan.peak_checkpoint_bytes - usual == more * PROBE.weights_bytes


def test_the_marks_are_the_rungs():
    assert make_plan(search_file()).marks == [100, 300]
    assert make_plan(search_file(scheduler={"name": "none"})).marks == []
    median = make_plan(search_file(scheduler={"name": "median", "grace_steps": 250})).marks
    assert median == [300, 500, 700]
    assert make_plan(search_file(scheduler={"name": "asha"})).marks == [600]
    assert make_plan(search_file(scheduler={"name": "median"})).marks == [600, 700, 800]


def test_a_small_grid_ends_the_search_before_its_budget():
    space = {"name": None, "parameters": {"seed": {"type": "categorical", "choices": [1, 2, 3]}}}
    file = search_file(space=space, sampler={"name": "grid"}, budget={"trials": 20})
    assert number_of_trials(file) == 3
    sampler = {"name": "grid", "grid_points": 3}
    of_methods = search_file(sampler=sampler, space=METHODS, budget={"trials": 100})
    assert number_of_trials(of_methods) == 3 + 3 * 3 + 3 * 3
    assert number_of_trials(search_file(budget={"trials": 20})) == 20


METHODS = {"methods": ["ft", "kd", "l2_sp"]}


def test_several_methods_are_priced_like_one():
    text = printed(make_plan(search_file(space=METHODS)), width=200)
    assert "3 methods are priced like one, trial.method.name = 'lipsum_ft'" in text
    assert "priced like" not in printed(make_plan(search_file()), width=200)


def timing(step_s, seconds, load_s, cache_s=0.0):
    """One probe of intervals of 10 steps, whose evaluations take 3 s and checkpoints 0.5 s."""
    assert OVERRIDES["eval.every"] == 10
    later = INTERVALS - 1
    return {
        "device": "A Processor",
        "seconds": seconds,
        "cache_s": cache_s,
        "first_s": load_s + 10 * step_s,
        "later_s": later * (10 * step_s + 3.0 + 0.5),
        "restart_s": 0.25,
        "steps_s": [9.0, *[step_s] * later],  # the first loads and warms up
        "evals_s": [7.0, *[3.0] * later],
        "saves_s": [0.5] * INTERVALS,
        "val_images": [4000, 1000],
        "view_bytes": 3 * 32**2,
        "checkpoint_bytes": 11,
        "weights_bytes": 4,
        "memory_bytes": 1000,
        "driver_bytes": 100,
        "gpu_memory_bytes": 0,
        "gpu_total_bytes": 0,
    }


def test_start_up_is_the_rest_of_a_probe():
    probe = summarise([timing(1.0, 60.0, 4.0), timing(1.0, 62.0, 6.0)], workers=3)
    assert (probe.step_s, probe.eval_s, probe.save_s) == (1.0, 3.0, 0.5)
    assert probe.startup_s == 61 - INTERVALS * (10 * 1 + 3 + 0.5)
    assert (probe.load_s, probe.first_eval_s, probe.restart_s) == (5.0, 7.0, 0.25)
    assert probe.step_spread == 0.0
    assert (probe.memory_bytes, probe.head_bytes) == (3 * 1000, 100)


def test_filling_a_cold_cache_is_shown_and_in_no_cost():
    warm = summarise([timing(1.0, 60.0, 4.0), timing(1.0, 62.0, 6.0)], workers=3)
    cold = [timing(1.0, 1860.0, 4.0, 1800.0), timing(1.0, 1861.0, 6.0, 1799.0)]
    assert summarise(cold, workers=3) == replace(warm, cache_s=1800.0)
    plans = [make_plan(search_file(), replace(PROBE, cache_s=s)) for s in (0, 1800)]
    assert plans[0].estimate == plans[1].estimate
    assert "30m 00s  once per machine" in printed(plans[1], 80)


def test_the_spread_is_that_of_all_measured_intervals():
    probe = summarise([timing(1.0, 60.0, 4.0), timing(3.0, 190.0, 4.0)], workers=1)
    assert probe.step_s == 2
    assert probe.step_spread == pytest.approx((6 / 5) ** 0.5 / 2)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_what_is_printed_fits_the_terminal_and_is_complete(width):
    file = search_file(budget={"hours": 1000, "target": 90})
    text = printed(make_plan(file), width)
    assert max(map(len, text.splitlines())) <= width
    for words in (
        "method.reg_weight",
        "first point",
        "A Processor",
        "20 trials of 900 steps, 4 at once",
        "wall clock",
        "CPU-hours",
        "1000 h",
        "kept",
        "11 GB",
        "target",
    ):
        assert words in text


@pytest.mark.parametrize("budget", [{}, {"hours": 1}])
@pytest.mark.parametrize("width", [80, 120])
def test_no_cell_of_the_tables_wraps(width, budget):
    lines = printed(make_plan(search_file(budget=budget)), width).splitlines()
    assert any("2,000 images" in line for line in lines)
    indented = [line.split() for line in lines if line.startswith(4 * " ") and line.strip()]
    assert indented == [["expected", "90", "%", "between", "budget"]]  # the header of the costs


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_real_plan_measures_and_leaves_nothing_behind(trial, tmp_path):
    file = SearchFile.model_validate(
        {
            "trial": with_overrides(trial, {"data.workers": 1}, "test").model_dump(mode="json"),
            "search": {
                "storage": str(tmp_path / "a" / "runs"),
                "space": {"methods": ["ft", "l2_sp"]},
                "budget": {"trials": 3},
            },
        }
    )
    with ray_session():
        cpus = int(ray.cluster_resources()["CPU"])
        plan = plan_search(file, console=Console(quiet=True))
    assert not list(tmp_path.iterdir())
    probe, shape = plan.probe, plan.shape
    assert shape.concurrent == min(cpus, 4)  # three trials and a reference
    assert shape.methods == 2
    assert 0 < probe.step_s < 10
    assert 0 < probe.eval_s < 10
    assert probe.cache_s > 0
    assert probe.startup_s > probe.restart_s > 0
    memory = plan.cluster_memory_bytes
    assert 10**8 < probe.memory_bytes < memory
    assert 10**8 < probe.head_bytes < plan.head_memory_bytes == memory
    assert probe.checkpoint_bytes > 2.9 * probe.weights_bytes > 10**6  # AdamW: two more each
    one = plan.full_trial_hours
    assert one * 3600 >= probe.restart_s + 6 * probe.step_s + 2 * probe.eval_s
    assert plan.estimate.trial_hours.median == pytest.approx(4 * one, rel=0.5)
    assert plan.estimate.steps.median == 4 * 6
    with pytest.raises(ConfigError, match="not even one trial"):
        check_budget(replace(plan, file=search_file(budget={"hours": one / 2})))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_trial_that_fails_is_one_clear_sentence(trial, tmp_path):
    values = trial.model_dump(mode="json")
    values["optim"]["lr"] = 1e3
    search = {"storage": str(tmp_path), "resources": {"max_concurrent": 1}}
    file = SearchFile.model_validate({"trial": values, "search": search})
    with (
        ray_session(),
        pytest.raises(ConfigError, match="not a finite number at step 10") as error,
    ):
        plan_search(file, console=Console(quiet=True))
    assert "\n" not in str(error.value)
