"""What is concluded, before and after `confirm`, and the commands to go on with."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from search_spaces.distributions import Float
from search_spaces.space import SearchSpace
from tests.tuning import fakes
from tests.tuning.confirmation.written import SEEDS, confirmed, write_results
from tuning.config.objectives import Objective, parse_constraint
from tuning.runs.conclusion import conclusion
from tuning.runs.seed_noise import expected_value

SEARCH = fakes.search_record(Path("run"))


def lines(search, records):
    return conclusion(search, records).lines


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (
            [fakes.reference(), fakes.trial(3, 88.6, 61.0)],
            "trial-003 has +4.2 OOD and +0.0 ID points against untuned FT: one seed each. "
            "Confirm it.",
        ),
        (
            [fakes.reference(), fakes.trial(1, 70.0, 60.0), fakes.trial(3, 95.0, 57.0)],
            "trial-003 has +0.2 OOD and +6.4 ID points against untuned FT: one seed each, "
            "the best of 2. Confirm it.",
        ),
        (
            [fakes.trial(3, 84.4, 61.0)],
            "trial-003 has +0.0 OOD and +2.0 ID points against zero-shot: one seed. Confirm it.",
        ),
        (
            [fakes.reference(), fakes.trial(1, 70.0, 50.0)],
            "No trial has a higher val/mean_acc than untuned FT (72.7 against 60.0): "
            "one seed each.",
        ),
        (
            [fakes.trial(1, 80.0, 58.0)],
            "No trial has a higher val/mean_acc than zero-shot (71.7 against 69.0): one seed.",
        ),
        (
            [fakes.reference(), fakes.trial(1, 88.58, 56.78)],
            "No trial has a higher val/mean_acc than untuned FT (72.7 against 72.68): "
            "one seed each.",
        ),
        ([fakes.trial(1, outcome="pruned")], "No trial has finished yet."),
    ],
)
def test_a_search_shows_what_it_observed(records, expected):
    assert lines(SEARCH, records)[0] == expected


def test_an_objective_that_shall_be_low_is_called_so():
    search = replace(SEARCH, objectives=(Objective("id_val/acc", "min"),))
    first, *_ = lines(search, [fakes.reference(), fakes.trial(1, 90.0, 50.0)])
    assert first.startswith("No trial has a lower id_val/acc than zero-shot (82.4 against 90.0)")


def test_a_search_claims_no_difference():
    """Neither an interval nor a verdict, whoever is ahead and however many trials there are."""
    rng = np.random.default_rng(0)
    search = replace(SEARCH, val_images=dict.fromkeys(("real", *fakes.DOMAINS), 800))
    for ahead in (-9.0, 0.0, 9.0):
        records = [fakes.reference()] + [
            fakes.trial(n, *rng.normal((84 + ahead, 60), 1.5), is_first_point=n == 0)
            for n in range(12)
        ]
        text = " ".join(lines(search, records))
        assert not re.search("±|the same|not told apart| more | less |better than", text)


def test_missed_constraints_are_named():
    line = parse_constraint("id_val/acc >= 90", SEARCH.zero_shot)
    search = replace(SEARCH, constraints=(line,))
    first, _ = lines(search, [fakes.trial(1, 88.0, 62.0), fakes.trial(2, 80.0, 70.0)])
    assert first == (
        "No trial meets the constraints: trial-001 comes closest and misses id_val/acc >= 90 by 2."
    )


def test_a_lucky_best_trial_is_not_expected_again():
    rng = np.random.default_rng(0)
    records = [
        fakes.trial(n, 85.0, 62.0 + ood_acc, params={"optim.lr": 1e-5 * (1 + n)})
        for n, ood_acc in enumerate(rng.standard_normal(10))
    ]
    best = max(records, key=lambda record: record.last("val/mean_acc"))
    lr = {"optim.lr": Float(low=1e-6, high=1e-3, log=True)}
    search = replace(SEARCH, space=SearchSpace(parameters=lr))
    expected, seen = expected_value(search, records), best.last("val/mean_acc")
    sentence = f"Its val/mean_acc of {seen:.3g} is partly luck: expect about {expected:.3g}"
    assert f"{sentence} of these settings with a new seed." in lines(search, records)
    assert not any("luck" in line for line in lines(search, records[:9]))


def test_the_limit_says_whether_ood_data_chose():
    blind = replace(SEARCH, objectives=(Objective("id_val/acc"),))
    _, limit = lines(blind, [fakes.trial(1)])
    assert limit == "Chosen on validation data."


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
def test_where_a_reference_is_higher_it_is_confirmed_and_exported(of_ft, trial, won, tmp_path):
    search, (_, best) = searched(tmp_path, trial)
    ft = fakes.reference(curve=(fakes.report(fakes.TOTAL_STEPS, *of_ft),))
    found = conclusion(search, [ft, best])
    assert (found.won.trial_id, found.won.kind) == (won, "reference")
    confirm, extend, export = found.commands("mine")
    assert confirm.startswith("lipsum-tune confirm mine --rule objective ")
    assert extend.startswith("lipsum-tune resume mine --trials +8 ")
    assert f"# {'untuned FT' if won == 'ft' else won}" in export


def test_after_its_hours_a_search_goes_on_with_more_hours(tmp_path):
    search, (_, best) = searched(tmp_path, (86.0, 57.0))
    ended = replace(
        search,
        config={"search": {"budget": {"hours": 0.5}}},
        ended_by="search.budget.hours = 0.5 are used up",
    )
    ft = fakes.reference(curve=(fakes.report(fakes.TOTAL_STEPS, 88.0, 57.0),))
    _, resume, _ = conclusion(ended, [ft, best]).commands("mine")
    assert resume.startswith("lipsum-tune resume mine --hours +0.5 ")


@pytest.mark.parametrize(
    ("of_second", "result"),
    [
        (
            71.5,
            "No trial has a higher val/mean_acc than untuned FT (72.0 against 71.5), "
            "by the means over 2 fresh seeds.",
        ),
        (73.0, "trial-001 is ahead of trial-000 over 2 fresh seeds."),
    ],
)
def test_fresh_seeds_decide_and_test_splits_do_not(of_second, result, tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0), (84.0, 62.0))  # 73.5 and 73.0; FT 72.5
    confirmed(tmp_path, trial_000=(71.0, 95.0), trial_001=(of_second, 99.0), ft=(72.0, 60.0))
    found = conclusion(search, records)
    won = "ft" if of_second < 72 else "trial-001"
    assert (found.won.trial_id, found.seeds, commands_of(found)) == (won, SEEDS, ["export"])
    assert found.means == {"trial-001": of_second, "trial-000": 71.0, "ft": 72.0}
    assert next(iter(found.means)) == "trial-001"
    tested = "trial-001 against untuned FT, on the test splits: OOD +39.0 ± 0.0: higher; "
    tested += "ID +39.0 ± 0.0: higher."
    limit = "Chosen on validation data, OOD included, by the means over 2 fresh seeds; "
    limit += "± holds for new seeds alone."
    read = "Test splits read once, for trial-000, trial-001."
    assert found.lines == [result, tested, limit, read]


def test_damaged_results_of_confirm_are_left_out(tmp_path):
    search, records = searched(tmp_path, (86.0, 64.0))
    before = lines(search, records)
    confirmed(tmp_path, ft=(76.0, 76.0), trial_000=(75.0, 75.0))
    assert lines(search, records) != before
    (tmp_path / "confirm" / "journal.jsonl").write_text("{}\n{}\n")
    *found, damaged = lines(search, records)
    assert found == before
    assert damaged.startswith("Results of confirm are left out")


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ((87.0, 64.0), "It has +2.0 OOD and +2.0 ID points against the first trial."),
        ((85.0, 62.02), "It has +0.0 OOD and +0.0 ID points against the first trial."),
    ],
)
def test_the_first_trial_stands_beside_the_best_and_is_confirmed(best, expected, tmp_path):
    search, (ft, first, other) = searched(tmp_path, (85.0, 62.0), best)
    given = replace(first, is_first_point=True)
    result, gain, limit = lines(search, [ft, given, other])
    assert [result, limit] == lines(search, [ft, first, other])  # it was proposed, not given
    confirm, _ = conclusion(search, [ft, given, other]).commands("mine")
    assert confirm.startswith("lipsum-tune confirm mine --rule objective --rule first ")
    assert gain == expected


def test_a_first_trial_that_is_the_best_says_so(tmp_path):
    search, (ft, first, other) = searched(tmp_path, (87.0, 64.0), (85.0, 62.0))
    given = replace(first, is_first_point=True)
    assert lines(search, [ft, given, other])[1] == "It is the first trial: no other one was higher."
    assert len(lines(search, [ft, given])) == 2
    confirm, _ = conclusion(search, [ft, given, other]).commands("mine")
    assert "first" not in confirm.partition("#")[0]


def test_confirm_measures_both_gains_over_common_seeds(tmp_path):
    search, (ft, first, best) = searched(tmp_path, (85.0, 62.0), (87.0, 64.0))
    records = [ft, replace(first, is_first_point=True), best]
    confirmed(tmp_path, ft=(70.0, 60.0))  # on the test splits 59 and 61, 20 less on other domains
    tested = {1000: (60.0, 49.0), 1001: (61.0, 50.0)}
    for seed, (of_id, ood) in tested.items():
        metrics = {"val/mean_acc": 75.0, "id_test/acc": of_id, "ood_test/mean_acc": ood}
        write_results(tmp_path, {("trial-001", seed): metrics})
    # 12.706 * sqrt(0.5) / sqrt(2) to either side.
    result = "trial-001 against untuned FT, on the test splits: "
    result += "OOD +9.5 ± 6.4: higher; ID +0.5 ± 6.4: not told apart."
    limit = "Chosen on validation data, OOD included, by the means over 2 fresh seeds; "
    limit += "± holds for new seeds alone."
    assert lines(search, records)[:-1] == [result, limit]
    confirmed(tmp_path, trial_000=(71.0, 68.0))
    gain = "trial-001 against the first trial, on the test splits: "
    gain += "OOD +1.5 ± 6.4: not told apart; ID -7.5 ± 6.4: lower."
    assert lines(search, records)[:-1] == [result, gain, limit]


def test_the_best_of_the_search_stays_beside_the_first_trial_that_wins(tmp_path):
    search, (ft, first, best) = searched(tmp_path, (85.0, 62.0), (87.0, 64.0))
    confirmed(tmp_path, ft=(70.0, 60.0), trial_000=(76.0, 68.0), trial_001=(75.0, 67.0))
    found = conclusion(search, [ft, replace(first, is_first_point=True), best])
    ahead, tested, gain, *_ = found.lines
    assert found.won.trial_id == "trial-000"
    assert ahead == "trial-000 is ahead of trial-001 over 2 fresh seeds."
    assert tested.startswith("trial-000 against untuned FT, on the test splits: OOD +8.0 ")
    assert gain.startswith("trial-001 against the first trial, on the test splits: OOD -1.0 ")


def test_a_confirmation_that_is_half_done_says_so_and_goes_on(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0))
    confirmed(tmp_path, SEEDS[:1], wanted=5, ft=(70.0, 60.0), trial_000=(76.0, 68.0))
    found = conclusion(search, records)
    tested, limit, _ = found.lines
    assert tested.endswith("OOD +8.0 (one seed: no interval); ID +8.0 (one seed: no interval).")
    assert limit.endswith(", by the means over 1 of 5 seeds so far.")
    confirm, _ = found.commands("mine")
    assert confirm.startswith("lipsum-tune confirm mine --rule objective --seeds 5 ")
    confirmed(tmp_path, (1001, 1002), wanted=3, ft=(70.0, 60.0), trial_000=(76.0, 68.0))
    assert commands_of(conclusion(search, records)) == ["export"]


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


def test_a_relative_bound_compares_means_with_means(tmp_path):
    """The best single training had 85; all means over fresh seeds are lower."""
    search, records = searched(tmp_path, (85.0, 62.0), (84.9, 61.0))
    bound = parse_constraint("id_val/acc >= best - 0.5", ["id_val/acc"])
    search = replace(search, constraints=(bound,))
    confirmed(tmp_path, trial_000=(75.0, 50.0))
    confirmed(tmp_path, off=2.0, trial_001=(73.0, 50.0))
    found = conclusion(search, records)
    assert found.won.trial_id == "trial-001"  # 82, from which 80 of the other is too far
    assert not any("meets the constraints" in line for line in found.lines)


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
