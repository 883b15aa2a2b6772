import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.tuning import fakes
from tests.tuning.confirmation.written import result, write_predictions
from tests.tuning.result_tables import cells, notes
from tuning.confirmation.confirm import chosen
from tuning.runs.confirmation import REFERENCE, Confirmation
from tuning.views.confirmation_table import confirmation_table

SEEDS = (1000, 1001)
# ID accuracy on both seeds; the OOD mean is 20 less, the ECEs 5 and 10.
ACCS = {
    "ft": (80.0, 82.0),
    "trial-004": (84.0, 86.0),  # ft as tuned
    "trial-005": (86.0, 89.0),
    "trial-006": (85.0, 88.0),
    "trial-007": (88.0, 90.0),
}
UNTUNED = "untuned FT"


def confirmation(rules=("by_method",), without=""):
    search = fakes.search_record(Path("run"))
    picks = chosen(search, fakes.compared_methods(), rules=rules)
    configurations = (REFERENCE, *picks)
    configurations = tuple(c for c in configurations if c.trial_id != without)
    results = {
        (name, seed): result((name, seed), metrics(acc, **{"cost/seconds": 60.0 + seed % 1000}))
        for name, accs in ACCS.items()
        for seed, acc in zip(SEEDS, accs, strict=True)
    }
    zero_shot = "zero-shot", None
    results[zero_shot] = result(zero_shot, metrics(78.0))
    return Confirmation(search, SEEDS, configurations, results, {})


def metrics(acc, **more):
    domains = {f"ood_test/{domain}/acc": acc - 20 for domain in fakes.DOMAINS}
    errors = {"id_test/ece": 5.0, "ood_test/mean_ece": 10.0}
    return {"id_test/acc": acc, "ood_test/mean_acc": acc - 20, **domains, **errors, **more}


def test_means_and_paired_differences():
    failed = {("trial-004", 1002): "OutOfMemoryError: full"}
    table = confirmation_table(replace(confirmation(rules=("id_val",)), failed=failed))
    trial = "trial-004 id_val method=ft lr=2e-05"
    assert [row[:3] for row in cells(table)] == [
        ["mean ± standard deviation", "-", "-"],
        ["zero-shot", "78.0", "58.0"],
        [UNTUNED, "81.0 ± 1.4", "61.0 ± 1.4"],
        [trial, "85.0 ± 1.4", "65.0 ± 1.4"],
        [f"difference to {UNTUNED} [95 % interval]", "-", "-"],
        ["trial-004 (ft)", "+4.0 [+4.0, +4.0]", "+4.0 [+4.0, +4.0]"],
        ["difference to zero-shot [95 % interval]", "-", "-"],
        # 12.706 * sqrt(2) / sqrt(2) to either side.
        [UNTUNED, "+3.0 [-9.7, +15.7]", "+3.0 [-9.7, +15.7]"],
        ["trial-004 (ft)", "+7.0 [-5.7, +19.7]", "+7.0 [-5.7, +19.7]"],
    ]
    assert [row[-3:] for row in cells(table)[1:3]] == [
        ["5.0", "10.0", "-"],
        ["5.0 ± 0.0", "10.0 ± 0.0", "1m 00s"],
    ]
    assert "trial-004 seed 1002: OutOfMemoryError: full" in notes(table)
    assert "Chosen with OOD" not in notes(table)
    assert "Chosen with OOD" in notes(confirmation_table(confirmation()))


def test_a_point_that_ood_data_chose_is_marked_on_plain_fine_tuning_too():
    blind = confirmation(rules=("id_val",))
    lines = {"trial": {"eval": {"line": "auto"}}}
    seen = replace(blind, search=replace(blind.search, config=lines))
    names = [row[0] for row in cells(confirmation_table(seen))]
    assert f"{UNTUNED} *" in names
    assert "Chosen with OOD" in notes(confirmation_table(seen))


def test_with_stored_predictions_each_accuracy_has_an_interval(tmp_path):
    """All images of FT are right or wrong in turn, in each seed alike."""
    right = np.arange(100) % 2
    of_domains = dict.fromkeys(("real", *fakes.DOMAINS), right)
    for seed in SEEDS:
        write_predictions(
            tmp_path, ("ft", seed), dict.fromkeys(("predicted", "zero_shot"), of_domains)
        )
    found = confirmation(rules=("id_val",))
    search = replace(found.search, run_folder=tmp_path)
    results = {key: result(key, metrics(98.0 if key[0] == "ft" else 78.0)) for key in found.results}
    found = replace(found, search=search, results=results)
    table = confirmation_table(found)
    head, zero_shot, ft, trial, *_ = cells(table)
    assert head[0] == "mean ± standard deviation [95 % interval]"
    half = 1.96 * 100 * (0.25 / 99 + 2 / 102 / 100) ** 0.5
    assert zero_shot[1] == f"78.0 [{78 - half:.1f}, {78 + half:.1f}]"
    assert ft[1] == f"98.0 ± 0.0 [{98 - half:.1f}, 100.0]"
    assert trial[1] == "78.0 ± 0.0"
    assert ft[-3] == "5.0 ± 0.0"
    said = notes(table)
    text = "Intervals hold for new seeds and new images, those of trial-004 for new seeds alone."
    assert text in said
    assert "Intervals hold for new seeds alone: no predictions are stored." in notes(
        confirmation_table(confirmation())
    )


def test_the_end_of_a_training_before_which_a_point_was_chosen_has_a_row():
    found = confirmation(rules=("id_val",))
    ends = {
        key: result(key, {**one.metrics, "line/1/id_test/acc": 70.0})
        for key, one in found.results.items()
        if key[0] == "trial-004"
    }
    rows = cells(confirmation_table(replace(found, results={**found.results, **ends})))
    assert [row[1] for row in rows if row[0] == "at the end of its training"] == ["70.0 ± 0.0"]


def test_methods_are_also_compared_with_fine_tuning_as_tuned():
    rows = cells(confirmation_table(confirmation()))
    heading = "difference to trial-004, tuned FT [95 % interval]"
    begin = next(index for index, row in enumerate(rows) if row[0] == heading)
    gaps = {row[0]: row[1] for row in rows[begin + 1 : begin + 5]}
    assert gaps == {
        UNTUNED: "-4.0 [-4.0, -4.0]",
        "trial-007 (carot)": "+4.0 [+4.0, +4.0]",
        "trial-006 (lipsum_ft)": "+1.5 [-4.9, +7.9]",
        # 86 - 84 and 89 - 86: 2.5, and 12.706 * sqrt(0.5) / sqrt(2) = 6.353 to either side.
        "trial-005 (kd)": "+2.5 [-3.9, +8.9]",
    }
    without = cells(confirmation_table(confirmation(without="trial-004")))
    assert not any(", tuned FT" in row[0] for row in without)


def test_a_value_that_is_not_finite_is_left_out():
    found = confirmation()

    def with_metrics(key, **changes):
        report = {**found.results[key].metrics, **changes}
        return replace(found, results={**found.results, key: result(key, report)})

    broken = {"id_test/ece": math.nan, "id_test/acc": math.inf}
    table = confirmation_table(with_metrics(("trial-005", 1001), **broken))
    row = next(row for row in cells(table) if row[0].startswith("trial-005 *"))
    assert (row[1], row[-3]) == ("86.0", "5.0")
    assert "Fewer seeds: trial-005: 1." in notes(table)
    blind = with_metrics(("zero-shot", None), **{"id_test/acc": math.nan})
    assert blind.against("zero-shot", "trial-005", "id_test/acc") is None
