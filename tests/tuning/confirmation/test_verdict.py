"""Which model is recommended and exported, before and after `confirm`."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.tuning import fakes
from tests.tuning.confirmation.written import write_results
from tests.tuning.run_folders import search_file, write_run
from tuning.config.objectives import parse_constraint
from tuning.confirmation.results import confirm_history, results_of
from tuning.confirmation.verdict import better_search, findings, verdict
from tuning.runs.run_folder import load_run
from tuning.views.answer import answer, commands_after

SEEDS = (1000, 1001)


def searched(folder, *trials):
    """A search whose trials end at these ID and OOD accuracies, beside a reference at 88 / 57."""
    ft = fakes.reference(curve=(fakes.report(fakes.TOTAL_STEPS, 88.0, 57.0),))
    return fakes.search_record(folder), [ft, *(fakes.trial(i, *at) for i, at in enumerate(trials))]


def confirmed(folder, seeds=SEEDS, off=0.0, **accs):
    """Write results of `confirm`: mean validation accuracy over two seeds, and on the test splits.

    The seeds are two points apart.

    Args:
        off: added to the ID accuracy on validation splits, which is 80.
    """
    results = {
        (name.replace("_", "-"), seed): {
            "val/mean_acc": validated + noise,
            "id_val/acc": 80.0 + off,
            "id_test/acc": tested + noise,
            "ood_test/mean_acc": tested + noise - 20,
        }
        for name, (validated, tested) in accs.items()
        for seed, noise in zip(seeds, (-1.0, 1.0), strict=False)
    }
    write_results(folder, results)


def commands(found):
    return commands_after(found.record, "mine", is_confirmed=found.seeds > 0)


def commands_of(found):
    return [command.split()[1] for command in commands(found)]


def test_the_best_trial_is_confirmed_and_exported(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0), (86.0, 64.0))
    found = verdict(search, records)
    assert (found.record, found.label) == (records[-1], "trial-001")
    assert found.why == search.selection
    confirm, export = commands(found)
    assert confirm.startswith("lipsum-tune confirm mine ")
    assert export.startswith("lipsum-tune export mine --output model ")
    assert "trial-001" in export
    stopped = verdict(search, [replace(record, outcome="stopped") for record in records])
    assert commands_of(stopped) == ["export"]  # a trial that has not finished is not confirmed


@pytest.mark.parametrize(
    ("of_ft", "trial", "won"),
    [((88.0, 57.0), (86.0, 57.0), "ft"), ((80.0, 57.0), (80.0, 58.0), "zero-shot")],
)
def test_a_reference_that_beats_all_trials_is_exported(of_ft, trial, won, tmp_path):
    search, (_, best) = searched(tmp_path, trial)
    ft = fakes.reference(curve=(fakes.report(fakes.TOTAL_STEPS, *of_ft),))
    found = verdict(search, [ft, best])
    assert (found.record.trial_id, found.record.kind) == (won, "reference")
    assert found.why.startswith("No trial is better: val/mean_acc = ")
    extend, export = commands(found)
    assert extend.startswith("lipsum-tune resume mine --trials +8 ")
    assert f"# {found.label}" in export


@pytest.mark.parametrize(("of_second", "won"), [(71.5, "ft"), (73.0, "trial-001")])
def test_fresh_seeds_decide_and_test_splits_do_not(of_second, won, tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0), (84.0, 62.0))  # 73.5 and 73.0; FT 72.5
    confirmed(tmp_path, trial_000=(71.0, 95.0), trial_001=(of_second, 99.0), ft=(72.0, 60.0))
    found = verdict(search, records)
    assert (found.record.trial_id, found.seeds, commands_of(found)) == (won, 2, ["export"])
    values = found.why.partition("on the validation splits: val/mean_acc ")[2]
    if won == "ft":
        assert found.why.startswith("No trial is better. ")
        assert values == "untuned FT 72, trial-000 71, trial-001 71.5."


def test_repeats_that_chose_the_trial_do_not_vote_again(tmp_path):
    search, (ft, first, _) = searched(tmp_path, (86.0, 64.0), (80.0, 60.0))
    lucky = first.with_repeat(fakes.repeat(first, 1, 99.0, 99.0))
    confirmed(tmp_path, ft=(76.0, 76.0), trial_000=(75.0, 75.0))
    found = verdict(search, [ft, lucky])
    assert found.record.trial_id == "ft"
    assert "trial-000 75." in found.why


def test_terminal_and_page_say_what_fresh_seeds_found(tmp_path):
    search, records = searched(tmp_path, (86.0, 64.0))
    assert findings(search, records) == answer(search, records)
    confirmed(tmp_path, ft=(76.0, 76.0), trial_000=(75.0, 75.0))
    assert findings(search, records)[0].startswith("untuned FT. No trial is better. Compared")
    (tmp_path / "confirm" / "journal.jsonl").write_text("{}\n{}\n")
    *found, damaged = findings(search, records)
    assert found == answer(search, records)
    assert damaged.startswith("Results of confirm are left out")


def test_only_equal_seeds_are_compared(tmp_path):
    """The other trial diverged with the second seed, and was better with the first."""
    search, records = searched(tmp_path, (85.0, 62.0), (84.0, 62.0))
    confirmed(tmp_path, trial_000=(73.0, 50.0), ft=(70.0, 50.0))
    confirmed(tmp_path, SEEDS[:1], trial_001=(90.0, 50.0))
    confirmed(tmp_path, (1001,), trial_001=(math.nan, 50.0))
    found = verdict(search, records)
    assert (found.record.trial_id, found.seeds) == ("trial-000", 2)


def test_a_failed_training_of_the_reference_does_not_leave_it_out(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0))
    confirmed(tmp_path, trial_000=(73.0, 50.0))
    confirmed(tmp_path, SEEDS[1:], ft=(80.0, 50.0))
    for outcome in ("finished", "failed"):  # of the reference beside the search
        found = verdict(search, [replace(records[0], outcome=outcome), *records[1:]])
        assert (found.record.trial_id, found.seeds) == ("ft", len(SEEDS) - 1)


def test_what_misses_the_bound_of_the_search_does_not_win(tmp_path):
    """The bound is 84.5, of the best ID accuracy that the search has seen."""
    search, records = searched(tmp_path, (85.0, 62.0), (84.9, 61.0))
    bound = parse_constraint("id_val/acc >= best - 0.5", ["id_val/acc"])
    search = replace(search, constraints=(bound,))
    confirmed(tmp_path, trial_000=(75.0, 50.0))
    confirmed(tmp_path, off=4.8, trial_001=(73.0, 50.0))
    found = verdict(search, records)
    assert found.record.trial_id == "trial-001"


def test_a_new_best_trial_is_not_judged_by_the_seeds_of_others(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0), (89.0, 64.0))
    confirmed(tmp_path, trial_000=(71.0, 50.0), ft=(72.0, 60.0))
    found = verdict(search, records)
    assert (found.record.trial_id, found.why) == ("trial-001", search.selection)
    assert commands_of(found) == ["confirm", "export"]


def test_results_without_the_objective_choose_nothing(tmp_path):
    search, records = searched(tmp_path, (85.0, 62.0))
    write_results(tmp_path, {("trial-000", 1000): {"id_test/acc": 50.0, "id_val/acc": 50.0}})
    found = verdict(search, records)
    assert (found.record.trial_id, found.why) == ("trial-000", search.selection)


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
    assert "Best        untuned FT. No trial is better. Compared" in said
    assert "Compared by the means over 2 fresh seeds on the validation splits: " in said
    lipsum_tune("export", "mine", "--output", "after")
    assert json.loads((tmp_path / "after" / "classes.json").read_text())["trial"] == "ft"
    card = (tmp_path / "after" / "README.md").read_text()
    results = results_of(confirm_history(tmp_path / "runs" / "mine"))
    accs = [r.metrics["id_test/acc"] for (name, _), r in results.items() if name == "ft"]
    assert len(accs) == 2
    row = f"| untuned FT, test, mean of 2 fresh trainings | {sum(accs) / 2:.1f} |"
    assert row in card
    assert "| zero-shot, test |" in card


def test_of_two_searches_the_better_one_is_named(images_root, tmp_path):
    first, second = (tmp_path / name for name in ("first", "second"))
    for folder, ood in ((first, 62.0), (second, 64.0)):
        write_run(folder, search_file(images_root), [fakes.trial(0, 85.0, ood)])

    def said(*folders):
        return better_search([load_run(folder) for folder in folders])

    text = "second is ahead of first by val/mean_acc 74.5 to 73.5, on validation data."
    assert said(first, second) == f"{text} Confirm both with the same seeds before you choose."
    confirmed(first, trial_000=(73.0, 80.0))
    confirmed(second, trial_000=(74.0, 81.5))
    assert said(second, first).startswith(text)
    assert said(first, second).endswith("by OOD +1.5 [1.5, 1.5] and ID +1.5 [1.5, 1.5].")
    write_results(second, {("zero-shot", None): {"id_test/acc": 1.0}})  # of other test splits
    assert said(first, second).endswith("before you choose.")
    file = search_file(images_root, search__objective=[{"metric": "id_val/acc"}])
    assert said(first, write_run(tmp_path / "third", file, [fakes.trial(0)])) == ""
