"""The study of models at equal budget: its rules, its rows and its table."""

import pytest

from tests.benchmarks.models import study
from tests.benchmarks.models.budget import (
    ALL,
    ENDS,
    ID_VAL,
    LABELLED,
    MODEL,
    ONE,
    PLAIN,
    POOLS,
    ROWS,
    SEARCH,
    SINGLE,
    TODAY,
    WITHOUT,
    equal_budget,
    read_rows,
)
from tests.benchmarks.models.study import Setting, chosen_rows, criteria
from trainers.weights.means import Candidate, Stored
from tuning import load_config
from tuning.results.estimates import estimate

METRICS = {
    "id_val/acc": 80.0,
    "id_val/nll": 0.5,
    "val/mean_acc": 70.0,
    "val/mean_nll": 1.0,
    **{f"ood_val/{one}/{name}": v for one in "abc" for name, v in (("acc", 60.0), ("nll", 2.0))},
}


def test_a_rule_reads_its_own_metrics_alone():
    rules = criteria(["a", "b", "c"])
    reads = {
        rule: {
            name
            for name, value in METRICS.items()
            if criterion.order(single(METRICS)) != criterion.order(single(METRICS | {name: -value}))
        }
        for rule, criterion in rules.items()
    }
    assert reads.pop(ALL) == {"val/mean_acc", "val/mean_nll"}
    assert reads.pop(ID_VAL) == {"id_val/acc", "id_val/nll"}
    for left_out, found in reads.items():
        others = {"a", "b", "c"} - {left_out.removeprefix(WITHOUT)}
        assert found == {f"ood_val/{one}/{name}" for one in others for name in ("acc", "nll")}
    assert [rule for rule, criterion in rules.items() if not criterion.ends_alone] == [ALL]


def test_each_row_has_its_candidate():
    def candidate(kind, of_ends, number, accuracy, line=1.0):
        trainings = tuple(stored(str(n)) for n in range(number))
        return Candidate(kind, of_ends, trainings, line, METRICS | {"val/mean_acc": accuracy})

    one, best = candidate("single", False, 1, 60.0), candidate("single", False, 1, 61.0)
    greedy, of_ends = candidate("greedy", False, 2, 62.0), candidate("greedy", True, 2, 64.0)
    two, all_ends = candidate("first", True, 2, 63.0), candidate("first", True, 3, 50.0)
    longer = candidate("first", True, 3, 65.0, line=1.3)
    found = [one, best, greedy, of_ends, two, all_ends, longer]
    criterion = criteria(["a", "b"])[ALL]
    rows = chosen_rows(ALL, criterion, found)
    assert rows == {SINGLE: best, TODAY: greedy, ENDS: all_ends, MODEL: longer}
    assert chosen_rows(ALL, criterion, [one, best, two])[TODAY] == best


def single(metrics):
    return Candidate("single", False, (stored("a"),), metrics=metrics)


def stored(folder):
    return Stored(folder, None, "ft", {})


def test_differences_are_paired_by_id_domain():
    def row(domain, pool, id_acc, ood, rule=ALL, name=MODEL):
        accuracies = {"id": id_acc, "ood": ood}
        return {"domain": domain, "pool": pool, "rule": rule, "row": name, **accuracies}

    rows = [
        *(row(domain, PLAIN, 80.0, 60.0) for domain in ("photo", "sketch")),
        row("photo", SEARCH, 84.0, 64.0),
        row("sketch", SEARCH, 80.0, 62.0),
        row("photo", LABELLED, 84.0, 80.0, name=ONE),
        row("sketch", LABELLED, 86.0, 80.0, name=ONE),
        *(row("photo", SEARCH, 80.0, ood, WITHOUT + "art") for ood in (50.0, 60.0)),
    ]
    _, _, plain, search, labelled = equal_budget(rows).splitlines()
    half = estimate([4.0, 1.0]).high - 2.5
    assert plain.endswith("| 80.0 | 60.0 | 70.0 |  |")
    assert search.endswith(f"| 82.0 | 63.0 | 72.5 | +2.5 ± {half:.1f} |")
    half = estimate([12.0, 13.0]).high - 12.5
    assert labelled.endswith(f"| 85.0 | 80.0 | 82.5 | +12.5 ± {half:.1f} |")
    photo = [one for one in rows if one["domain"] == "photo"]
    assert "| other OOD domains | 80.0 | 55.0 | 67.5 |" in equal_budget(photo)


@pytest.mark.nightly
def test_a_study_stores_each_training_and_row_once(whole_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "TRIALS", 2)
    monkeypatch.setattr(study, "TRAININGS", 4)
    given = {"trial.data.root": whole_root, "trial.steps": 2, "trial.eval.every": 2}
    given |= {"trial.data.suite": "{id_domain: real, ood_domains: [sketch, clipart]}"}
    given |= {"search.references": "[]"}

    def configure(changes):
        return load_config("quickstart", [f"{k}={v}" for k, v in (given | changes).items()])

    settings = {"real": Setting(configure, {"steps": 3, "eval.every": 3, "eval.line": "off"})}
    study.study(settings, tmp_path)
    shown = capsys.readouterr().out
    assert all(f"| {name} |" in shown for name in (*POOLS.values(), *ROWS.values()))
    rows = read_rows(tmp_path / "rows.csv")
    models = [row for row in rows if row["row"] == MODEL]
    assert len(models) == 4 * len(criteria(["sketch", "clipart"]))
    for row in rows:
        same = [m for m in models if all(m[key] == row[key] for key in ("pool", "rule"))]
        rounding = 1e-9
        assert row["pool"] == LABELLED or row["val"] <= same[0]["val"] + rounding
    assert len([*(tmp_path / "pools").glob("*/*/*/metrics.json")]) == 4 + 4 + 3
    monkeypatch.setattr(study, "fine_tune", None)
    study.study(settings, tmp_path)
    assert read_rows(tmp_path / "rows.csv") == rows
