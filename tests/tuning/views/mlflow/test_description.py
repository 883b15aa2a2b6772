from dataclasses import replace
from pathlib import Path

from tests.tuning import fakes
from tests.tuning.confirmation.written import write_results
from tuning.views.mlflow.description import describe

SEARCH = fakes.search_record(Path("run"))


def test_the_description_has_best_trial_ending_and_failures():
    text = describe(SEARCH, fakes.finished_search(), "finished")
    assert "**Best: trial-006** with `method.reg_weight` 3.64" in text
    assert "14 trials, 9 finished, 4 pruned, 1 failed." in text
    assert "- trial-005 failed: `OutOfMemoryError: CUDA out of memory.`" in text
    assert "Best" not in describe(SEARCH)


def test_a_reference_that_beats_the_best_trial_comes_before_it():
    plain = fakes.reference(curve=(fakes.report(240, 90.0, 64.0),))
    records = [plain, fakes.trial(1, 80.0, 60.0)]
    first, _, best, *_ = describe(SEARCH, records, "finished").splitlines()
    assert first.startswith("**No trial is better than FT, not tuned")
    assert best.startswith("**Best: trial-001**")
    assert describe(SEARCH, records[1:], "finished").count("No trial is better") == 1  # zero-shot


def test_the_description_has_methods_and_rules_once_the_search_ended():
    records = fakes.compared_methods()
    ended = describe(SEARCH, records, "finished").splitlines()
    assert sum(line.startswith("| method |") for line in ended) == 1
    assert sum(line.startswith("| rule |") for line in ended) == 1
    assert any(line.startswith("| FT, not tuned (lr = 1e-05) |") for line in ended)
    running = describe(SEARCH, records).splitlines()
    assert not any(line.startswith(("| rule", "| method")) for line in running)
    one_method = describe(SEARCH, fakes.finished_search(), "finished").splitlines()
    assert not any(line.startswith("| method") for line in one_method)


def test_confirm_is_proposed_until_it_has_results(tmp_path):
    search = fakes.search_record(tmp_path)
    assert f"`lipsum-tune confirm {tmp_path}`" in describe(search, [fakes.trial(1)], "finished")
    write_results(tmp_path, {("ft", 1000): {"id_test/acc": 71.0}})
    text = describe(search, [fakes.trial(1)], "finished")
    assert "lipsum-tune confirm" not in text
    assert "over fresh seeds: see the report" in text


def test_the_description_ends_with_the_interval_of_an_accuracy():
    search = replace(SEARCH, val_images=dict.fromkeys((SEARCH.id_domain, *SEARCH.ood_domains), 200))
    text = describe(search, fakes.finished_search(), "finished")
    assert "± 6.9 on 200 images" in text.splitlines()[-1]
