"""What a plan says; and a real one, on a local Ray."""

from dataclasses import replace

import pytest
from rich.console import Console

from tests.tuning.execution.inline_tuner import without_ray
from tests.tuning.execution.instant import instant_file, instant_options
from tests.tuning.execution.slot import BREAK
from tests.tuning.result_tables import text_of
from trainers.config import with_overrides
from trainers.errors import ConfigError
from tuning.config.schema import SearchFile
from tuning.log.records import TrialRecord
from tuning.planning import plan as planning
from tuning.planning.plan import Plan, budget_line, plan_of, plan_search, render

QUIET = Console(quiet=True)


def search_file(**search):
    trial = {"steps": 900, "eval": {"every": 100}, "optim": {"batch_size": 50}}
    scheduler = {"name": "asha", "grace_steps": 100}
    return SearchFile.model_validate({"trial": trial, "search": {"scheduler": scheduler, **search}})


def make_plan(file):
    """A step takes 1 s, an evaluation 5 s, the last one 9 s, a checkpoint 1 s; four at once."""
    return Plan(file, 4, setup_s=60, start_s=2, step_s=1, save_s=1, rung_s=5, eval_s=9)


FULL = 2 + 900 + 8 * (5 + 1) + 9


def test_both_prices_are_sums_of_rounds():
    plan = make_plan(search_file(budget={"trials": 9}))
    assert plan.full_s == FULL
    whole, least = plan.prices
    assert whole.hours * 3600 == 60 + 3 * FULL  # nine trials and ft
    assert whole.device_hours * 3600 == pytest.approx(10 * FULL)
    stopped = 2 + 100 + 5 + 1
    assert least.what == "6 in full, 3 to step 100"
    assert least.hours * 3600 == pytest.approx(60 + 2 * FULL + stopped)
    assert least.device_hours * 3600 == pytest.approx(7 * FULL + 3 * stopped)
    # Twice as many test images, read at the chosen point of the line and at its end. For the
    # model, of nine trials, ft and ten trainings: their ends; of points and of ends, the means of
    # the first 2, 3, 5, 8, 12 and 20, and a greedy soup; five points of a line; in another order
    # of ends, by ID accuracy and without each of four domains, five means and a line; and tests of
    # two models on five domains, and of four on two.
    of_rules = 5 * (5 + 5)
    tests = (2 + 4 * 2 / 5) * 2
    model_s = (20 + 2 * (6 + 18) + 5 + of_rules + tests) * 5
    assert plan.confirm_price.hours * 3600 == pytest.approx(60 + 3 * (FULL + 2 * 2 * 9) + model_s)
    trial = with_overrides(plan.file.trial, {"eval.line": "off"}, "test")
    off = make_plan(plan.file.model_copy(update={"trial": trial}))
    model_s = (6 + 18 + 5 + of_rules + tests) * 5
    assert off.confirm_price.hours * 3600 == pytest.approx(60 + 3 * (FULL + 2 * 9) + model_s)


def test_the_peak_of_the_disk_is_stated():
    plan = replace(make_plan(search_file()), weights_gb=1.0, checkpoint_gb=3.0)
    # Of four trials at once, an old and a new checkpoint. All twenty and ft.
    search, confirmation = plan.disk_gb
    assert search == 4 * 2 * 3 + 20 + 1
    # Five trainings of two settings, the model, and that of `id_val`.
    assert confirmation == search + 5 * 2 + 2
    # In any case the first, ft, and those of ID and OOD accuracy, of one method, and without each
    # of four domains.
    in_any_case = 1 + 1 + 2 + 1 + 4
    for limits, kept in (
        ({"keep_top": 4}, 4 + in_any_case),
        ({"gigabytes": 15}, 15),
        ({"gigabytes": 1}, in_any_case),
    ):
        limited = replace(plan, file=search_file(checkpoints=limits))
        assert limited.disk_gb[0] == 4 * 2 * 3 + kept


@pytest.mark.parametrize("search", [{"scheduler": {"name": "none"}}, {"budget": {"trials": 6}}])
def test_a_search_that_stops_no_trial_has_one_price(search):
    assert len(make_plan(search_file(**search)).prices) == 1


def test_of_each_method_six_trials_cost_all_their_steps():
    file = search_file(space={"methods": ["ft", "kd"]}, budget={"trials": 15})
    assert make_plan(file).prices[1].what == "12 in full, 3 to step 100"


def test_device_hours_are_devices_times_hours():
    gpus = make_plan(search_file(resources={"workers": 2, "gpus_per_worker": 1}))
    cpus = make_plan(search_file(resources={"workers": 2, "cpus_per_worker": 4}))
    one = make_plan(search_file()).prices[0].device_hours
    assert [(plan.device, plan.prices[0].device_hours) for plan in (gpus, cpus)] == [
        ("GPU", pytest.approx(2 * one)),
        ("CPU", pytest.approx(8 * one)),
    ]


def test_a_plan_says_which_budget_ends_the_search_first():
    resources = {"gpus_per_worker": 1}
    # Of nine trials and ft, eight take two rounds of four.
    budget = {"trials": 9, "hours": (60 + 2 * FULL + 1) / 3600}
    wall = make_plan(search_file(budget=budget, resources=resources))
    assert "ends the search after 7 of 9 trials in full." in text_of(render(wall), 160)
    budget = {"trials": 9, "gpu_hours": 5.5 * FULL / 3600}
    gpus = make_plan(search_file(budget=budget, resources=resources))
    assert budget_line(gpus, "L4").endswith("ends the search on L4 after 4 of 9 trials in full.")
    enough = make_plan(search_file(budget={"trials": 9, "hours": 9}))
    assert budget_line(enough) is None


def test_durations_are_those_of_trials_that_found_workers():
    def record(number, begins, lasts, seconds):
        curve = (
            {"step": 10, "cost/seconds": seconds - 19, "cost/eval_seconds": 5.0},
            {
                "step": 20,
                "cost/seconds": seconds,
                "cost/eval_seconds": 13.0,
                "train/images_per_s": 50.0,
            },
        )
        found = TrialRecord(f"trial-{number:03d}", number, "trial", {}, curve=curve)
        return found.with_attempt(begins, 0).with_end("finished", begins + lasts)

    records = [record(0, 110.0, 70.0, 40.0), record(1, 180.0, 35.0, 33.0)]
    plan = plan_of(search_file(), records, concurrent=4, at_once=1, began=100.0)
    # 10 s until the first trial, 30 s in which its workers start, 8 s for the zero-shot model.
    expected = {"setup_s": 10 + 30 + 8, "start_s": 2, "step_s": 1, "rung_s": 5, "eval_s": 8}
    expected["test_images"] = 1.5  # of the drawings
    assert plan == Plan(search_file(), 4, save_s=19 - 10 - 8, **expected)


def test_a_small_grid_ends_the_search_before_its_budget():
    space = {"name": None, "parameters": {"seed": {"type": "categorical", "choices": [1, 2, 3]}}}
    file = search_file(space=space, sampler={"name": "grid"}, budget={"trials": 20})
    assert make_plan(file).file.most_trials == 3
    sampler = {"name": "grid", "grid_points": 3}
    methods = {"methods": ["ft", "kd", "l2_sp"]}
    of_methods = search_file(sampler=sampler, space=methods, budget={"trials": 100})
    assert of_methods.most_trials == 3 + 3 * 3 + 3 * 3
    assert search_file(budget={"trials": 20}).most_trials == 20


def test_a_plan_is_short(screen):
    plan = replace(make_plan(search_file()), weights_gb=1.0, checkpoint_gb=3.0)
    screen("plan", text_of(render(plan), 100))


def test_a_trial_that_fails_is_one_sentence_and_nothing_is_left(images_root, tmp_path, monkeypatch):
    (tmp_path / BREAK).write_text("TrainingDiverged: not a finite number at step 10")
    file = instant_file(images_root, tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(planning, "SearchOptions", lambda **more: instant_options(file, **more))
    with without_ray(), pytest.raises(ConfigError, match="TrainingDiverged: not a finite") as error:
        plan_search(file, console=QUIET)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.nightly
@pytest.mark.usefixtures("local_ray")
def test_a_real_plan_measures_and_leaves_nothing_behind(trial, tmp_path):
    search = {"storage": str(tmp_path), "space": {"methods": ["ft", "l2_sp"]}}
    base = with_overrides(trial, {"data.workers": 1}, "test").model_dump(mode="json")
    file = SearchFile.model_validate({"trial": base, "search": {**search, "budget": {"trials": 3}}})
    plan = plan_search(file, console=QUIET)
    assert not list(tmp_path.iterdir())
    assert plan.concurrent == 2
    assert all(0 < s < 10 for s in (plan.step_s, plan.rung_s, plan.eval_s))
    assert plan.setup_s > plan.start_s > 0
    (price,) = plan.prices
    assert price.device_hours * 3600 == pytest.approx(4 * plan.full_s)
