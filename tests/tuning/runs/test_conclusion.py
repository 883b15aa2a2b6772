"""What is concluded, before and after `confirm`, and the commands to go on with."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tuning import fakes
from tests.tuning.confirmation.written import SEEDS, confirmed, write_results
from tuning.config.objectives import Objective, parse_constraint
from tuning.runs.conclusion import conclusion
from tuning.runs.confirmation import confirm_history, results_of
from tuning.runs.seed_noise import deviation_between_seeds, expected_value

SEARCH = fakes.search_record(Path("run"))


def lines(search, records):
    return conclusion(search, records).lines


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (
            (88.6, 61.0),
            "has 4.2 points more OOD accuracy than untuned FT, at the same ID accuracy.",
        ),
        ((87.6, 60.8), "has 4.0 points more OOD accuracy than untuned FT, at 1.0 point less ID"),
        ((95.0, 57.0), "has 6.4 points more ID accuracy than untuned FT, at 0.2 points more OOD"),
    ],
)
def test_the_gain_over_plain_fine_tuning_is_said_in_words(best, expected):
    first, limit = lines(SEARCH, [fakes.reference(), fakes.trial(3, *best)])
    assert first.startswith(f"trial-003 {expected}")
    assert limit.startswith("Chosen on validation data, OOD included.")


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (
            [fakes.trial(3, 84.4, 61.0)],
            "trial-003 has 2.0 points more ID accuracy than zero-shot, at the same OOD accuracy.",
        ),
        (
            [fakes.reference(), fakes.trial(1, 70.0, 50.0)],
            "No trial is better than untuned FT: val/mean_acc 72.7 against 60 of trial-001.",
        ),
        ([fakes.trial(1, outcome="pruned")], "No trial has finished yet."),
    ],
)
def test_what_there_is_is_compared(records, expected):
    assert lines(SEARCH, records)[0] == expected


def test_missed_constraints_are_named():
    line = parse_constraint("id_val/acc >= 90", SEARCH.zero_shot)
    search = replace(SEARCH, constraints=(line,))
    first, _ = lines(search, [fakes.trial(1, 88.0, 62.0), fakes.trial(2, 80.0, 70.0)])
    assert first == (
        "No trial meets the constraints: trial-001 comes closest and misses id_val/acc >= 90 by 2."
    )


IMAGES = {"real": 800, **dict.fromkeys(fakes.DOMAINS, 800)}


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (
            (88.9, 61.2),
            "4.4 ± 2.4 points more OOD accuracy than untuned FT, "
            "at the same ID accuracy within ± 3.1.",
        ),
        (
            (90.0, 57.6),
            "the same ID accuracy as untuned FT within ± 3.0, "
            "at the same OOD accuracy within ± 2.4.",
        ),
        (
            (85.0, 60.6),
            "3.8 ± 2.4 points more OOD accuracy than untuned FT, "
            "at 3.6 ± 3.3 points less ID accuracy.",
        ),
    ],
)
def test_a_difference_within_its_uncertainty_is_none(best, expected):
    search = replace(SEARCH, val_images=IMAGES)
    first, _ = lines(search, [fakes.reference(), fakes.trial(3, *best)])
    assert first == f"trial-003 has {expected}"


def test_the_uncertainty_holds_for_two_models_of_equal_accuracy():
    """On other images, and the more so on the same ones."""
    rng = np.random.default_rng(0)
    rights = rng.binomial(800, 0.7, (2, 4, 20_000)) / 8  # two models, four domains
    gaps = (rights[0] - rights[1]).mean(axis=0)
    first, _ = lines(
        replace(SEARCH, val_images=IMAGES),
        [fakes.measured(1, 70.0, dict.fromkeys(fakes.DOMAINS, 70.0), kind="reference"),
         fakes.measured(3, 90.0, dict.fromkeys(fakes.DOMAINS, 70.0))],
    )  # fmt: skip
    margin = float(re.search(r"the same OOD accuracy within ± (.*)\.$", first)[1])
    assert (np.abs(gaps) <= margin).mean() == pytest.approx(0.95, abs=0.015)


def test_the_uncertainty_covers_other_seeds_as_far_as_the_trials_tell():
    """A tie for new seeds, though not for new images alone."""
    search = replace(SEARCH, val_images=IMAGES)
    rng = np.random.default_rng(0)
    trials = [
        fakes.trial(n, id_acc, ood_acc, params={"optim.lr": 1e-5 * (1 + n)})
        for n, (id_acc, ood_acc) in enumerate(rng.normal((84.0, 58.0), 1.5, (9, 2)))
    ]
    records = [fakes.reference(), *trials, fakes.trial(9, 88.0, 60.0, params={"optim.lr": 3e-5})]
    first, *_, limit = lines(search, records)
    ood, id_acc = (
        deviation_between_seeds(search, records, metric)
        for metric in ("ood_val/mean_acc", "id_val/acc")
    )
    of_images = lines(search, [fakes.reference(), records[-1]])[0]
    images = float(re.search(r"± ([\d.]+) points more OOD", of_images)[1])
    both = math.hypot(images, 1.96 * math.sqrt(2) * ood)
    shown = float(re.search(r"the same OOD accuracy[^,]* within ± ([\d.]+)", first)[1])
    assert shown == pytest.approx(both, abs=0.1)
    deviation = f"standard deviation about {ood:.1f} OOD and {id_acc:.1f} ID points"
    assert f"; ± covers new images and new seeds ({deviation})." in limit
    assert "±" not in lines(search, [fakes.trial(n, 80.0 + n % 3, 50.0) for n in range(6)])[-1]


def test_a_lucky_best_trial_is_not_expected_again():
    rng = np.random.default_rng(0)
    records = [
        fakes.trial(n, 85.0, 62.0 + ood_acc, params={"optim.lr": 1e-5 * (1 + n)})
        for n, ood_acc in enumerate(rng.standard_normal(10))
    ]
    best = max(records, key=lambda record: record.last("val/mean_acc"))
    expected, seen = expected_value(SEARCH, records), best.last("val/mean_acc")
    sentence = f"Its val/mean_acc of {seen:.3g} is partly luck: expect about {expected:.3g}"
    assert f"{sentence} with a new seed." in lines(SEARCH, records)
    assert not any("luck" in line for line in lines(SEARCH, records[:9]))


def test_the_zero_shot_model_has_no_seeds():
    search = replace(SEARCH, val_images=IMAGES)
    records = [fakes.trial(n, 85.0 - n, 66.0 - n % 3) for n in range(6)]
    records = [replace(r, params={"optim.lr": 1e-5 * (1 + r.number)}) for r in records]
    deviation = deviation_between_seeds(search, records, "ood_val/mean_acc")
    (alone, *_), (first, *_) = lines(search, records[:1]), lines(search, records)
    images, both = (float(re.search(r"± ([\d.]+)", line)[1]) for line in (alone, first))
    assert both == pytest.approx(math.hypot(images, 1.96 * deviation), abs=0.1)


def test_the_limit_says_whether_ood_data_chose():
    blind = replace(SEARCH, objectives=(Objective("id_val/acc"),))
    _, limit = lines(blind, [fakes.trial(1)])
    assert limit.startswith("Chosen on validation data. Confirm it")


def searched(folder, *trials):
    """A search whose trials end at these ID and OOD accuracies, beside a reference at 88 / 57."""
    ft = fakes.reference(curve=(fakes.report(fakes.TOTAL_STEPS, 88.0, 57.0),))
    return fakes.search_record(folder), [ft, *(fakes.trial(i, *at) for i, at in enumerate(trials))]


def commands_of(found):
    return [command.split()[1] for command in found.commands("mine")]


def test_the_best_trial_is_confirmed_and_exported(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0), (86.0, 64.0))
    found = conclusion(search, records)
    assert found.won == records[-1]
    confirm, export = found.commands("mine")
    assert confirm.startswith("lipsum-tune confirm mine ")
    assert export.startswith("lipsum-tune export mine --output model ")
    assert "trial-001" in export
    stopped = conclusion(search, [replace(record, outcome="stopped") for record in records])
    assert commands_of(stopped) == ["export"]  # a trial that has not finished is not confirmed


@pytest.mark.parametrize(
    ("of_ft", "trial", "won"),
    [((88.0, 57.0), (86.0, 57.0), "ft"), ((80.0, 57.0), (80.0, 58.0), "zero-shot")],
)
def test_a_reference_that_beats_all_trials_is_exported(of_ft, trial, won, tmp_path):
    search, (_, best) = searched(tmp_path, trial)
    ft = fakes.reference(curve=(fakes.report(fakes.TOTAL_STEPS, *of_ft),))
    found = conclusion(search, [ft, best])
    assert (found.won.trial_id, found.won.kind) == (won, "reference")
    label = {"ft": "untuned FT"}.get(won, won)
    assert found.lines[0].startswith(f"No trial is better than {label}: val/mean_acc ")
    extend, export = found.commands("mine")
    assert extend.startswith("lipsum-tune resume mine --trials +8 ")
    assert f"# {label}" in export


@pytest.mark.parametrize(("of_second", "won"), [(71.5, "ft"), (73.0, "trial-001")])
def test_fresh_seeds_decide_and_test_splits_do_not(of_second, won, tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0), (84.0, 62.0))  # 73.5 and 73.0; FT 72.5
    confirmed(tmp_path, trial_000=(71.0, 95.0), trial_001=(of_second, 99.0), ft=(72.0, 60.0))
    found = conclusion(search, records)
    assert (found.won.trial_id, found.seeds, commands_of(found)) == (won, SEEDS, ["export"])
    if won == "ft":
        text = "No trial is better than untuned FT: val/mean_acc 72 against 71.5 of trial-001."
    else:
        text = (
            "trial-001 has 39.0 points more OOD accuracy than untuned FT, "
            "at 39.0 points more ID accuracy, on the test splits."
        )
    limit = "Chosen on validation data, OOD included, by the means over 2 fresh seeds."
    read = "Test splits read once, for trial-000, trial-001."
    assert found.lines == [text, limit, read]


def test_repeats_that_chose_the_trial_do_not_vote_again(tmp_path):
    search, (ft, first, _) = searched(tmp_path, (86.0, 64.0), (80.0, 60.0))
    lucky = first.with_repeat(fakes.repeat(first, 1, 99.0, 99.0))
    confirmed(tmp_path, ft=(76.0, 76.0), trial_000=(75.0, 75.0))
    found = conclusion(search, [ft, lucky])
    assert found.won.trial_id == "ft"
    assert found.lines[0].endswith("val/mean_acc 76 against 75 of trial-000.")


def test_damaged_results_of_confirm_are_left_out(tmp_path):
    search, records = searched(tmp_path, (86.0, 64.0))
    before = lines(search, records)
    confirmed(tmp_path, ft=(76.0, 76.0), trial_000=(75.0, 75.0))
    assert lines(search, records) != before
    (tmp_path / "confirm" / "journal.jsonl").write_text("{}\n{}\n")
    *found, damaged = lines(search, records)
    assert found == before
    assert damaged.startswith("Results of confirm are left out")


OPTIMISTIC = " (optimistic, as the best of 2)"


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ((87.0, 64.0), f"2.0 points more OOD accuracy, at 2.0 points more ID accuracy{OPTIMISTIC}"),
        ((85.0, 62.02), "the same OOD accuracy, at the same ID accuracy"),
    ],
)
def test_the_gain_over_the_first_trial_stands_beside_it(best, expected, tmp_path):
    search, (ft, first, other) = searched(tmp_path, (85.0, 62.0), best)
    given = replace(first, is_first_point=True)
    result, gain, limit = lines(search, [ft, given, other])
    assert [result, limit] == lines(search, [ft, first, other])  # it was proposed, not given
    confirm, _ = conclusion(search, [ft, given, other]).commands("mine")
    assert confirm.startswith("lipsum-tune confirm mine --rule objective --rule first ")
    than = " than the first trial," if "more" in expected else " as the first trial,"
    assert gain == f"It has {expected.replace(',', than, 1)}."


def test_a_first_trial_that_wins_says_that_nothing_was_gained(tmp_path):
    search, (ft, first, other) = searched(tmp_path, (87.0, 64.0), (85.0, 62.0))
    given = replace(first, is_first_point=True)
    text = "It is the first trial: the search has gained nothing over it."
    assert lines(search, [ft, given, other])[1] == text
    assert len(lines(search, [ft, given])) == 2


def test_after_confirm_both_gains_come_from_common_fresh_seeds(tmp_path):
    search, (ft, first, best) = searched(tmp_path, (85.0, 62.0), (87.0, 64.0))
    records = [ft, replace(first, is_first_point=True), best]
    confirmed(tmp_path, ft=(70.0, 60.0))  # on the test splits 59 and 61, 20 less on other domains
    tested = {1000: (60.0, 49.0), 1001: (61.0, 50.0)}
    for seed, (of_id, ood) in tested.items():
        metrics = {"val/mean_acc": 75.0, "id_test/acc": of_id, "ood_test/mean_acc": ood}
        write_results(tmp_path, {("trial-001", seed): metrics})
    # 12.706 * sqrt(0.5) / sqrt(2) to either side.
    result = (
        "trial-001 has 9.5 ± 6.4 points more OOD accuracy than untuned FT, "
        "at the same ID accuracy within ± 6.4, on the test splits."
    )
    limit = "OOD included, by the means over 2 fresh seeds; ± holds for new seeds alone."
    limit = f"Chosen on validation data, {limit}"
    assert lines(search, records)[:-1] == [result, limit]
    confirmed(tmp_path, trial_000=(71.0, 68.0))
    gain = (
        "It has 7.5 ± 6.4 points less ID accuracy than the first trial, "
        "at the same OOD accuracy within ± 6.4."
    )
    assert lines(search, records)[:-1] == [result, gain, limit]


def test_only_equal_seeds_are_compared(tmp_path):
    """The other trial diverged with the second seed, and was better with the first."""
    search, records = searched(tmp_path, (85.0, 62.0), (84.0, 62.0))
    confirmed(tmp_path, trial_000=(73.0, 50.0), ft=(70.0, 50.0))
    confirmed(tmp_path, SEEDS[:1], trial_001=(90.0, 50.0))
    confirmed(tmp_path, (1001,), trial_001=(math.nan, 50.0))
    found = conclusion(search, records)
    assert (found.won.trial_id, found.seeds) == ("trial-000", SEEDS)


def test_a_failed_training_of_the_reference_does_not_leave_it_out(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0))
    confirmed(tmp_path, trial_000=(73.0, 50.0))
    confirmed(tmp_path, SEEDS[1:], ft=(80.0, 50.0))
    for outcome in ("finished", "failed"):  # of the reference beside the search
        found = conclusion(search, [replace(records[0], outcome=outcome), *records[1:]])
        assert (found.won.trial_id, found.seeds) == ("ft", SEEDS[1:])


def test_what_misses_the_bound_of_the_search_does_not_win(tmp_path):
    """The bound is 84.5, of the best ID accuracy that the search has seen."""
    search, records = searched(tmp_path, (85.0, 62.0), (84.9, 61.0))
    bound = parse_constraint("id_val/acc >= best - 0.5", ["id_val/acc"])
    search = replace(search, constraints=(bound,))
    confirmed(tmp_path, trial_000=(75.0, 50.0))
    confirmed(tmp_path, off=4.8, trial_001=(73.0, 50.0))
    found = conclusion(search, records)
    assert found.won.trial_id == "trial-001"


def test_each_reading_of_the_test_splits_is_counted_with_its_choice(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0), (84.0, 62.0), (83.0, 62.0))
    assert not any("read" in line for line in lines(search, records))

    def confirmed_one(name, seed):
        confirmed(tmp_path, (seed,), **{"ft": (70.0, 50.0), name: (73.0, 50.0)})
        return lines(search, records)[-1]

    assert confirmed_one("trial_000", 1000) == "Test splits read once, for trial-000."
    assert confirmed_one("trial_000", 1001) == "Test splits read twice, for trial-000."
    assert confirmed_one("trial_002", 1000) == (
        "Test splits read 3 times, for trial-000; then for trial-002, "
        "chosen when test accuracies were known."
    )


def test_a_new_best_trial_is_not_judged_by_the_seeds_of_others(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0), (89.0, 64.0))
    confirmed(tmp_path, trial_000=(71.0, 50.0), ft=(72.0, 60.0))
    found = conclusion(search, records)
    assert (found.won.trial_id, found.seeds) == ("trial-001", ())
    assert commands_of(found) == ["confirm", "export"]
    assert " --rule objective --again " in found.commands("mine")[0]


def test_results_without_the_objective_choose_nothing(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0))
    write_results(tmp_path, {("trial-000", 1000): {"id_test/acc": 50.0, "id_val/acc": 50.0}})
    found = conclusion(search, records)
    assert (found.won.trial_id, found.seeds) == ("trial-000", ())


@pytest.mark.ray
@pytest.mark.nightly
def test_a_search_that_loses_to_its_reference_exports_the_reference(
    whole_root, tmp_path, local_ray
):
    """FT moves the features; the trials, whose learning rates are tiny, hardly do."""
    lr = "{optim.lr: {type: float, low: 1.0e-8, high: 1.0e-7, log: true}}"
    settings = {
        "trial.data.root": whole_root, "trial.steps": 2, "trial.eval.every": 2,
        "trial.optim.batch_size": 8, "trial.method.text_count": 16,
        "search.space.parameters": lr, "search.scheduler": "{name: none}",
        "search.objective": "{metric: id_val/feature_distortion, mode: max}",
        "search.budget.trials": 2, "search.name": "mine",
    }  # fmt: skip
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]

    def lipsum_tune(*words):
        command = [sys.executable, "-m", "tuning", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = lipsum_tune("search", "quickstart", *overrides)
    assert "lipsum-tune export mine --output model   # untuned FT, for open_clip\n" in said
    said = lipsum_tune("confirm", "mine", "--seeds", "2")
    assert "Result      No trial is better than untuned FT: id_val/feature_distortion " in said
    assert ", by the means over 2 fresh seeds." in said
    lipsum_tune("export", "mine", "--output", "after")
    assert json.loads((tmp_path / "after" / "classes.json").read_text())["trial"] == "ft"
    card = (tmp_path / "after" / "README.md").read_text()
    results = results_of(confirm_history(tmp_path / "runs" / "mine"))
    accs = [r.metrics["id_test/acc"] for (name, _), r in results.items() if name == "ft"]
    assert len(accs) == 2
    row = f"| untuned FT, test, mean of 2 fresh trainings | {sum(accs) / 2:.1f} |"
    assert row in card
    assert "| zero-shot, test |" in card
