"""What is concluded, before and after `confirm`: whole screens, with the commands to go on with."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.tuning import fakes
from tests.tuning.confirmation.written import (
    SEEDS,
    confirmed,
    write_predictions,
    write_results,
)
from tests.tuning.run_folders import edit_journal
from tuning.config.objectives import Objective, parse_constraint
from tuning.log.history import History

SEARCH = fakes.Search()
BLIND = replace(SEARCH, objectives=(Objective("id_val/acc"),))
LOW = replace(SEARCH, objectives=(Objective("id_val/acc", "min"),))
LIMIT = replace(SEARCH, constraints=(parse_constraint("id_val/acc >= 90", SEARCH.zero_shot),))
BOTH = replace(SEARCH, objectives=(Objective("id_val/acc"), Objective("id_val/nll", "min")))
HOURS = replace(
    SEARCH,
    config={"search.budget.hours": 0.5},
    history=History(ended_by="search.budget.hours = 0.5 are used up"),
)


def shown(search, records):
    """Sentences, who won, the means over fresh seeds that decided, and commands."""
    found = search.run(records).conclusion
    best = "none" if found.best is None else f"{found.best.trial_id} ({found.best.kind})"
    lines = [*found.lines, "", f"best: {best}"]
    if found.means:
        means = ", ".join(f"{trial} {mean:g}" for trial, mean in found.means.items())
        lines.append(f"over seeds {', '.join(map(str, found.seeds))}: {means}")
    return "\n".join([*lines, "", *found.commands("mine")])


def ft(id_acc=88.0, ood_acc=57.0):
    return fakes.reference(curve=(fakes.report(fakes.TOTAL_STEPS, id_acc, ood_acc),))


def given(number, *accs):
    return fakes.trial(number, *accs, is_first_point=True)


@pytest.mark.parametrize(
    ("name", "search", "records"),
    [
        ("ahead_of_ft", SEARCH, [fakes.reference(), fakes.trial(3, 88.6, 61.0)]),
        ("best_of_two", SEARCH, [ft(), fakes.trial(1, 85.0, 62.0), fakes.trial(2, 86.0, 64.0)]),
        ("ahead_of_zero_shot", SEARCH, [fakes.trial(3, 84.4, 61.0)]),
        ("behind_ft", SEARCH, [fakes.reference(), fakes.trial(1, 70.0, 50.0)]),
        ("behind_zero_shot", SEARCH, [ft(80.0, 57.0), fakes.trial(0, 80.0, 58.0)]),
        ("nearly_equal", SEARCH, [fakes.reference(), fakes.trial(1, 88.58, 56.78)]),
        ("nothing_finished", SEARCH, [fakes.trial(1, outcome="pruned")]),
        ("best_was_stopped", SEARCH, [fakes.trial(1, outcome="stopped")]),
        ("behind_ft_within_the_limit", LIMIT, [ft(91.0, 60.0), fakes.trial(1, 90.5, 59.0)]),
        ("behind_zero_shot_in_both", BOTH, [fakes.trial(1, 82.0, 60.0)]),
        ("lower_is_better", LOW, [fakes.reference(), fakes.trial(1, 90.0, 50.0)]),
        ("no_ood_data", BLIND, [fakes.trial(1)]),
        ("misses_the_limit", LIMIT, [fakes.trial(1, 88.0, 62.0), fakes.trial(2, 80.0, 70.0)]),
        ("hours_are_used_up", HOURS, [ft(), fakes.trial(0, 86.0, 57.0)]),
        ("beside_the_first", SEARCH, [ft(), given(0, 85.0, 62.0), fakes.trial(1, 87.0, 64.0)]),
        ("like_the_first", SEARCH, [ft(), given(0, 85.0, 62.0), fakes.trial(1, 85.0, 62.02)]),
        ("is_the_first", SEARCH, [ft(), given(0, 87.0, 64.0), fakes.trial(1, 85.0, 62.0)]),
        ("is_the_only_one", SEARCH, [ft(), given(0, 87.0, 64.0)]),
    ],
)
def test_a_search_shows_what_it_observed(name, search, records, screen):
    screen(name, shown(search, records))


def test_a_search_whose_hours_and_trials_are_used_up_needs_both():
    search = replace(HOURS, config=HOURS.config | {"search.budget.trials": 1})
    _, resume, _ = search.run([ft(), fakes.trial(0, 86.0, 57.0)]).conclusion.commands("mine")
    assert resume.startswith("lipsum-tune resume mine --hours +0.5 --trials +8 ")


def searched(folder, *trials):
    """A search whose trials end at these ID and OOD accuracies, beside a reference at 88 / 57."""
    records = [ft(), *(fakes.trial(i, *accs) for i, accs in enumerate(trials))]
    return fakes.Search(folder), records


@pytest.mark.parametrize("of_second", [71.5, 73.0])
def test_fresh_seeds_decide_and_test_splits_do_not(of_second, tmp_path, screen):
    search, records = searched(tmp_path, (85.0, 62.0), (84.0, 62.0))  # 73.5 and 73.0; FT 72.5
    confirmed(tmp_path, trial_000=(71.0, 95.0), trial_001=(of_second, 99.0), ft=(72.0, 60.0))
    won = "ft" if of_second < 72 else "another"
    screen(f"confirmed_{won}", shown(search, records))


def test_damaged_results_of_confirm_are_left_out(tmp_path):
    search, records = searched(tmp_path, (86.0, 64.0))
    before = search.run(records).conclusion.lines
    confirmed(tmp_path, ft=(76.0, 76.0), trial_000=(75.0, 75.0))
    whole = search.run(records).conclusion.lines
    journal = tmp_path / "confirm" / "journal.jsonl"
    created, session, *others = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([created, b"?" + session, *others]))
    *found, reading = whole
    assert search.run(records).conclusion.lines == found
    assert reading.startswith("Test splits read once")
    journal.write_text("{}\n{}\n")
    *found, damaged = search.run(records).conclusion.lines
    assert found == before
    assert damaged.startswith("Results of confirm are left out")


def test_confirm_measures_both_gains_over_common_seeds(tmp_path, screen):
    """Of two seeds: half an interval is 12.706 * sqrt(0.5) / sqrt(2) = 6.4."""
    search, (plain, _, best) = searched(tmp_path, (85.0, 62.0), (87.0, 64.0))
    records = [plain, given(0, 85.0, 62.0), best]
    confirmed(tmp_path, ft=(70.0, 60.0))  # on the test splits 59 and 61, 20 less on other domains
    for seed, of_id, ood in ((1000, 60.0, 49.0), (1001, 61.0, 50.0)):
        metrics = {"val/mean_acc": 75.0, "id_test/acc": of_id, "ood_test/mean_acc": ood}
        write_results(tmp_path, {("trial-001", seed): metrics})
    screen("confirmed_best_alone", shown(search, records))
    confirmed(tmp_path, trial_000=(71.0, 68.0))
    screen("confirmed_best_and_first", shown(search, records))


def test_a_sentence_states_what_its_own_interval_covers(tmp_path):
    """With predictions of FT alone, a difference to it does not cover images."""
    search, records = searched(tmp_path, (85.0, 62.0))
    confirmed(tmp_path, ft=(70.0, 60.0), trial_000=(76.0, 68.0))
    right = dict.fromkeys(("real", *fakes.DOMAINS), np.arange(50) % 2)
    columns = {"predicted": right, "zero_shot": right}
    for name, covered in (("ft", "new seeds alone"), ("trial-000", "new seeds and new images")):
        for seed in SEEDS:
            write_predictions(tmp_path, (name, seed), columns)
        first, *others = search.run(records).conclusion.lines
        assert f"against untuned FT, on the test splits (± for {covered}): OOD +8.0 ± " in first
        assert not any("±" in line for line in others)


def test_the_best_of_the_search_stays_beside_the_first_trial_that_wins(tmp_path, screen):
    search, (plain, _, best) = searched(tmp_path, (85.0, 62.0), (87.0, 64.0))
    confirmed(tmp_path, ft=(70.0, 60.0), trial_000=(76.0, 68.0), trial_001=(75.0, 67.0))
    screen("confirmed_first_wins", shown(search, [plain, given(0, 85.0, 62.0), best]))


def test_a_confirmation_that_is_half_done_says_so_and_goes_on(tmp_path, screen):
    search, records = searched(tmp_path, (85.0, 62.0))
    confirmed(tmp_path, SEEDS[:1], wanted=5, ft=(70.0, 60.0), trial_000=(76.0, 68.0))
    screen("confirmed_half", shown(search, records))
    confirmed(tmp_path, (1001, 1002), wanted=3, ft=(70.0, 60.0), trial_000=(76.0, 68.0))
    screen("confirmed_whole", shown(search, records))


def won(search, records):
    found = search.run(records).conclusion
    return found.best.trial_id, tuple(found.seeds)


def test_only_equal_seeds_are_compared(tmp_path):
    """The other trial diverged with the second seed, and was better with the first."""
    search, records = searched(tmp_path, (85.0, 62.0), (84.0, 62.0))
    confirmed(tmp_path, trial_000=(73.0, 50.0), ft=(70.0, 50.0))
    confirmed(tmp_path, SEEDS[:1], trial_001=(90.0, 50.0))
    confirmed(tmp_path, (1001,), trial_001=(math.nan, 50.0))
    assert won(search, records) == ("trial-000", SEEDS)


def test_a_failed_training_of_the_reference_does_not_leave_it_out(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0))
    confirmed(tmp_path, trial_000=(73.0, 50.0))
    confirmed(tmp_path, SEEDS[1:], ft=(80.0, 50.0))
    for outcome in ("finished", "failed"):  # of the reference beside the search
        reference = replace(records[0], outcome=outcome)
        assert won(search, [reference, *records[1:]]) == ("ft", SEEDS[1:])


def test_a_relative_bound_compares_means_with_means(tmp_path):
    """The best single training had 85; all means over fresh seeds are lower."""
    search, records = searched(tmp_path, (85.0, 62.0), (84.9, 61.0))
    bound = parse_constraint("id_val/acc >= best - 0.5", ["id_val/acc"])
    search = replace(search, constraints=(bound,))
    confirmed(tmp_path, trial_000=(75.0, 50.0))
    confirmed(tmp_path, off=2.0, trial_001=(73.0, 50.0))
    found = search.run(records).conclusion
    assert found.best.trial_id == "trial-001"  # 82, from which 80 of the other is too far
    assert not any("meets the constraints" in line for line in found.lines)


def test_each_reading_of_the_test_splits_is_counted_with_its_choice(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0), (84.0, 62.0), (83.0, 62.0))
    assert not any("read" in line for line in search.run(records).conclusion.lines)

    def confirmed_one(name, seed, wanted):
        confirmed(tmp_path, (seed,), wanted=wanted, **{"ft": (70.0, 50.0), name: (73.0, 50.0)})
        return search.run(records).conclusion.lines[-1]

    assert confirmed_one("trial_000", 1000, 1) == "Test splits read once, for trial-000."
    late = "; then for trial-002, chosen when test accuracies were known"
    found = confirmed_one("trial_002", 1000, 1)
    assert found == f"Test splits read twice, for trial-000{late}."
    narrow = "; with more seeds after a look, for which ± is too narrow"
    found = confirmed_one("trial_000", 1001, 2)
    assert found == f"Test splits read 3 times, for trial-000{late}{narrow}."


def test_an_interrupted_confirmation_that_goes_on_is_one_reading(tmp_path):
    """The journal of a killed call lacks its end."""
    search, records = searched(tmp_path, (85.0, 62.0))
    accs = {"ft": (70.0, 60.0), "trial_000": (76.0, 68.0)}
    confirmed(tmp_path, SEEDS[:1], wanted=2, **accs)
    edit_journal(tmp_path / "confirm", lambda events: events[:-1])
    confirmed(tmp_path, SEEDS[1:], wanted=2, **accs)
    assert search.run(records).conclusion.lines[-1] == "Test splits read once, for trial-000."


def test_a_new_best_trial_is_not_judged_by_the_seeds_of_others(tmp_path, screen):
    search, records = searched(tmp_path, (85.0, 62.0), (89.0, 64.0))
    confirmed(tmp_path, trial_000=(71.0, 50.0), ft=(72.0, 60.0))
    screen("confirmed_an_earlier_one", shown(search, records))


def test_results_without_the_objective_choose_nothing(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0))
    write_results(tmp_path, {("trial-000", 1000): {"id_test/acc": 50.0, "id_val/acc": 50.0}})
    assert won(search, records) == ("trial-000", ())
