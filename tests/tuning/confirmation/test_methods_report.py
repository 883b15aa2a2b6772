from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.tuning import fakes
from tuning.confirmation.confirm import chosen
from tuning.confirmation.methods_report import methods_table
from tuning.confirmation.report import report
from tuning.confirmation.results import Configuration, Confirmation, TestResult

SEEDS = (1000, 1001)
# ID accuracy on both seeds; the OOD mean is 20 less, the ECEs 5 and 10.
ACCS = {
    "ft": (80.0, 82.0),
    "trial-004": (84.0, 86.0),  # ft as tuned
    "trial-005": (86.0, 89.0),
    "trial-006": (85.0, 88.0),
    "trial-007": (88.0, 90.0),
}


def confirmation(rules: tuple[str, ...] = ("by_method",), **without: object) -> Confirmation:
    search = fakes.search_record(Path("run"))
    picks = chosen(search, fakes.compared_methods(), rules=rules)
    configurations = (Configuration("ft", {}, method="ft"), *picks)
    configurations = tuple(c for c in configurations if c.trial_id not in without)
    results = [
        TestResult(
            name, "trial", seed, {}, (), metrics(acc, **{"cost/seconds": 60.0 + seed % 1000})
        )
        for name, accs in ACCS.items()
        for seed, acc in zip(SEEDS, accs, strict=True)
    ]
    results.append(TestResult("zero-shot", "zero_shot", None, {}, (), metrics(78.0)))
    return Confirmation(search, SEEDS, configurations, {one.key: one for one in results}, {})


def metrics(acc: float, **more: float) -> Mapping[str, float]:
    domains = {f"ood_test/{domain}/acc": acc - 20 for domain in fakes.DOMAINS}
    errors = {"id_test/ece": 5.0, "ood_test/mean_ece": 10.0}
    return {"id_test/acc": acc, "ood_test/mean_acc": acc - 20, **domains, **errors, **more}


def printed(found: Confirmation, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    table = methods_table(found, width)
    assert table is not None
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def cells(text: str) -> dict[str, list[str]]:
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_a_row_a_method_in_the_order_of_validation_has_its_difference_to_the_tuned_ft() -> None:
    text = printed(confirmation())
    found = cells(text)
    assert list(found) == ["zero-shot", "ft, reference", "carot", "lipsum_ft", "kd", "ft"]
    assert found["zero-shot"] == ["", "78.0", "58.0", "5.0", "10.0", "", "", ""]
    # 86 - 84 and 89 - 86: 2.5, and 12.706 * sqrt(0.5) / sqrt(2) = 6.353 to either side.
    gap = "+2.5 [-3.9, +8.9]"
    assert found["kd"] == [
        "trial-005", "87.5 ± 2.1", "67.5 ± 2.1", "5.0 ± 0.0", "10.0 ± 0.0", "1m 00s", gap, gap,
    ]  # fmt: skip
    assert found["ft"][-2:] == ["", ""]
    assert found["ft, reference"][-2:] == ["-4.0 [-4.0, -4.0]"] * 2
    assert "Differences are to ft as the search tuned it (trial-004)" in text
    assert "which looks at OOD validation data" in " ".join(text.split())


def test_where_ft_is_none_of_the_methods_the_differences_are_to_the_reference() -> None:
    text = printed(confirmation(**{"trial-004": True}))
    found = cells(text)
    assert list(found) == ["zero-shot", "ft, reference", "carot", "lipsum_ft", "kd"]
    assert found["carot"][-1] == "+8.0 [+8.0, +8.0]"
    assert found["ft, reference"][-1] == ""
    assert "Differences are to ft, the reference, which has the settings" in text


@pytest.mark.parametrize("width", [140, 110, 80])
def test_a_narrow_terminal_gets_whole_figures_in_fewer_columns(width: int) -> None:
    text = printed(confirmation(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "[-3.9, +8.9]" in text
    assert "87.5 ± 2.1" in text
    assert ("Left out for want of room: trial" in text) == (width < 140)


def test_methods_without_a_metric_have_a_dash() -> None:
    found = confirmation()
    old = {
        key: replace(one, metrics={n: v for n, v in one.metrics.items() if n.endswith("acc")})
        for key, one in found.results.items()
    }
    assert cells(printed(replace(found, results=old)))["kd"][3:6] == ["-", "-", ""]


def test_the_report_of_a_confirmation_has_the_methods_above_where_there_are_several() -> None:
    def text(found: Confirmation) -> str:
        console = Console(file=io.StringIO(), width=120)
        console.print(report(found, 120))
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    shown = text(confirmation())
    assert shown.index("methods on the test splits") < shown.index("test accuracy in percent")
    assert "difference to FT, reference" in shown
    assert "trial-005 (kd)" in shown
    by_others = text(confirmation(rules=("objective", "id_val")))
    assert "methods on the test splits" not in by_others
    assert "difference to FT [95 % interval]" in " ".join(by_others.split())


def test_what_a_difference_to_zero_shot_lacks_is_left_out() -> None:
    found = confirmation()
    assert found.against_zero_shot("trial-005", "cost/seconds") is None
    gap = found.against_zero_shot("trial-005", "id_test/acc")
    assert gap is not None
    assert gap.mean == pytest.approx(9.5)
