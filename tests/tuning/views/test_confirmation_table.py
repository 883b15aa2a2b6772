"""What `confirm` shows: whole tables. Their figures are compared with scipy's in test_confirmation.

Of two seeds, half an interval is 12.706 times half the difference of the seeds' differences.
"""

import math
from dataclasses import replace

import numpy as np
from rich.text import Text

from tests.tuning import fakes
from tests.tuning.confirmation.written import result, write_predictions
from tests.tuning.result_tables import printed
from tuning.confirmation.confirm import chosen
from tuning.results.estimates import REFERENCE, Confirmation
from tuning.views.confirmation_table import confirmation_table
from tuning.views.result_table import fit_table

SEEDS = (1000, 1001)
DOMAINS = ("sketch", "clipart")
# ID accuracy on both seeds; the OOD mean is 20 less, the ECEs 5 and 10.
ACCS = {
    "ft": (80.0, 82.0),
    "trial-004": (84.0, 86.0),  # ft as tuned
    "trial-005": (86.0, 89.0),
    "trial-006": (85.0, 88.0),
    "trial-007": (88.0, 90.0),
}


def confirmation(rules=("by_method",), without=""):
    search = fakes.Search(ood_domains=DOMAINS)
    picks = chosen(search.run(fakes.compared_methods()), rules=rules)
    configurations = (REFERENCE, *picks)
    configurations = tuple(c for c in configurations if c.trial_id != without)
    results = {
        (name, seed): result((name, seed), metrics(acc, **{"cost/seconds": 60.0 + seed % 1000}))
        for name, accs in ACCS.items()
        for seed, acc in zip(SEEDS, accs, strict=True)
    }
    zero_shot = "zero-shot", None
    results[zero_shot] = result(zero_shot, metrics(78.0))
    return Confirmation(search.run(), SEEDS, configurations, results, {})


def metrics(acc, **more):
    domains = {f"ood_test/{domain}/acc": acc - 20 for domain in DOMAINS}
    errors = {"id_test/ece": 5.0, "ood_test/mean_ece": 10.0}
    return {"id_test/acc": acc, "ood_test/mean_acc": acc - 20, **domains, **errors, **more}


def changed(found, key, **metrics):
    """A confirmation in which a training has other metrics, with `__` for slashes."""
    own = {**found.results[key].metrics, **{k.replace("__", "/"): v for k, v in metrics.items()}}
    return replace(found, results={**found.results, key: result(key, own)})


def shown(found):
    return printed(fit_table(confirmation_table(found), 120, "mine"), 120)


def test_means_and_paired_differences(screen):
    failed = {("trial-004", 1002): "OutOfMemoryError: full"}
    found = replace(confirmation(rules=("id_val",)), failed=failed)
    screen("confirmed", shown(found))
    cells = [row[1] for row in confirmation_table(found).rows]
    bold = [cell.plain for cell in cells if isinstance(cell, Text) and cell.style == "bold"]
    assert bold == ["+4.0\n[+4.0, +4.0]"]  # the other intervals hold 0


def test_methods_are_also_compared_with_fine_tuning_as_tuned(screen):
    screen("confirmed_methods", shown(confirmation()))
    assert ", tuned FT" not in shown(confirmation(without="trial-004"))


def test_a_point_that_ood_data_chose_is_marked_on_plain_fine_tuning_too(screen):
    blind = confirmation(rules=("id_val",))
    on_lines = fakes.Search(ood_domains=DOMAINS, config={"trial.eval.line": "auto"}).run()
    screen("confirmed_on_lines", shown(replace(blind, run=on_lines)))


def test_with_stored_predictions_each_accuracy_has_an_interval(tmp_path, screen):
    """All images of FT are right or wrong in turn, in each seed alike: 98.0 and 78.0 have 10.2 to
    both sides, 1.96 * 100 * (0.25 / 99 + 2 / 102 / 100) ** 0.5."""
    folder = tmp_path / "domainnet-vit-b32"
    right = np.arange(100) % 2
    of_domains = dict.fromkeys(("real", *DOMAINS), right)
    for seed in SEEDS:
        write_predictions(
            folder, ("ft", seed), dict.fromkeys(("predicted", "zero_shot"), of_domains)
        )
    found = confirmation(rules=("id_val",))
    results = {key: result(key, metrics(98.0 if key[0] == "ft" else 78.0)) for key in found.results}
    run = fakes.Search(folder, ood_domains=DOMAINS).run()
    screen("confirmed_with_predictions", shown(replace(found, run=run, results=results)))


def test_the_end_of_a_training_before_which_a_point_was_chosen_has_a_row(screen):
    found = confirmation(rules=("id_val",))
    for seed in SEEDS:
        found = changed(found, ("trial-004", seed), line__1__id_test__acc=70.0)
    screen("confirmed_before_the_end", shown(found))


def test_a_value_that_is_not_finite_is_left_out(screen):
    broken = {"id_test__ece": math.nan, "id_test__acc": math.inf}
    found = changed(confirmation(rules=("id_val",)), ("trial-004", 1001), **broken)
    found = changed(found, ("zero-shot", None), id_test__acc=math.nan)
    screen("confirmed_not_finite", shown(found))
