from __future__ import annotations

import io
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib import image
from rich.console import Console

from tests.tuning import fakes
from tuning.algorithms.objectives import Objective, parse_constraint
from tuning.mlflow_logging.description import describe
from tuning.reporting.leaderboard import figure, format_seconds, leaderboard, report
from tuning.runs.records import SearchRecord, TrialRecord

SEARCH = fakes.search_record(Path("run"))


def printed(search: SearchRecord, records: list[TrialRecord], width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(leaderboard(search, records, width))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def first_cells(text: str) -> list[list[str]]:
    rows = [line.split("│")[1:] for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_leaderboard_ranks_finished_trials_and_sets_the_others_under_them() -> None:
    records = [
        fakes.trial(1, 80, 60),
        fakes.trial(2, 99, 99, outcome="failed", error="RuntimeError: boom"),
        fakes.trial(3, 88, 62),
        fakes.trial(4, 99, 99, outcome="pruned", curve=(fakes.report(40, 99, 99),)),
    ]
    rows = first_cells(printed(SEARCH, records))
    assert [row[:2] for row in rows] == [
        ["", "zero-shot"],
        ["1", "trial-003"],
        ["2", "trial-001"],
        ["-", "trial-004"],
        ["-", "trial-002"],
    ]


def test_zero_shot_and_plain_fine_tuning_stand_above_the_trials() -> None:
    text = printed(SEARCH, [fakes.trial(1), fakes.reference()])
    assert [row[1] for row in first_cells(text)] == ["zero-shot", "ft", "trial-001"]
    between = text.split("ft ")[1].split("trial-001")[0]
    assert "├" in between


def test_the_caption_says_which_split_chose_and_whether_it_was_out_of_distribution() -> None:
    assert "val/mean_acc at the last step, which looks at OOD validation data." in printed(
        SEARCH, [fakes.trial(1)]
    )
    blind = replace(SEARCH, objectives=(Objective("id_val/acc"),))
    text = printed(blind, [fakes.trial(1)])
    assert "Chosen by the highest id_val/acc at the last step." in text
    assert "looks at" not in text


def test_failed_trials_are_named_with_what_they_raised() -> None:
    traceback = "Traceback (most recent call last):\n  File x\nValueError: [bad] shape\n"
    text = printed(SEARCH, [fakes.trial(7, outcome="failed", error=traceback)])
    assert "1 failed:" in text
    assert "trial-007: ValueError: [bad] shape" in text


@pytest.mark.parametrize("width", [200, 100, 80])
def test_a_narrow_terminal_gets_whole_numbers_in_fewer_columns(width: int) -> None:
    text = printed(SEARCH, fakes.finished_search(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert ("painting" in text) == (width == 200)
    assert ("Left out for want of room: domains" in text) == (width < 200)


def test_with_several_objectives_the_front_is_marked() -> None:
    two = replace(SEARCH, objectives=(Objective("id_val/acc"), Objective("ood_val/mean_acc")))
    records = [fakes.trial(1, 80, 64), fakes.trial(2, 90, 60), fakes.trial(3, 79, 63)]
    text = printed(two, records)
    assert [row[:2] for row in first_cells(text)][1:] == [
        ["1*", "trial-002"],
        ["2*", "trial-001"],
        ["3", "trial-003"],
    ]
    assert "* On the Pareto front of the objectives; ranked by their mean." in text
    assert "*" not in printed(SEARCH, records)


def constrained(*lines: str) -> SearchRecord:
    return replace(
        SEARCH, constraints=tuple(parse_constraint(line, SEARCH.zero_shot) for line in lines)
    )


def test_a_trial_that_misses_a_constraint_stands_below_and_says_by_how_much() -> None:
    records = [
        fakes.trial(1, 84.5, 90),
        fakes.trial(2, 86, 60),
        fakes.trial(3, 60, 60, outcome="pruned"),
    ]
    text = printed(constrained("id_val/acc >= 85"), records)
    rows = [(row[0], row[1], row[-2]) for row in first_cells(text)[1:]]
    assert rows == [("1", "trial-002", ""), ("2", "trial-001", "0.5"), ("-", "trial-003", "")]
    assert "No finished trial" not in text


def test_the_worst_of_several_misses_is_shown_and_named() -> None:
    search = constrained("id_val/acc >= 85", "ood_val/mean_acc >= 62")
    text = printed(search, [fakes.trial(1, 84, 60), fakes.trial(2, 82, math.nan)])
    cells = {row[1]: row[-2] for row in first_cells(text)}
    assert (cells["trial-001"], cells["trial-002"]) == ("2 b", "inf b")
    assert "Misses a: id_val/acc >= 85; b: ood_val/mean_acc >= 62." in text
    assert "No finished trial meets the constraints" in text


@pytest.mark.parametrize("width", [120, 80])
def test_the_report_is_the_leaderboard_above_the_rules(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    search = constrained("id_val/acc >= best - 1.5", "ood_val/mean_acc >= 61.5")
    console.print(report(search, fakes.finished_search(), width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.index("trial-012") < text.index("What each rule chooses")


def test_several_methods_share_the_columns_that_all_have_and_one_for_the_others() -> None:
    text = printed(SEARCH, fakes.compared_methods(1))
    headers = [cell.strip() for cell in text.splitlines()[3].split("┃")[1:]]
    assert headers[:7] == ["#", "trial", "method", "lr", "parameters", "(ID)", "mean"]
    assert [row[1:5] for row in first_cells(text)] == [
        ["zero-shot", "", "", ""],
        ["ft", "", "", ""],
        ["trial-003", "carot", "1e-05", "orthogonality_weight=0.2 distillation_weight=1.5"],
        ["trial-002", "lipsum_ft", "1e-05", "reg_weight=0.7 text_length=8"],
        ["trial-001", "kd", "1e-05", "reg_weight=1.2"],
        ["trial-000", "ft", "1e-05", ""],
    ]


@pytest.mark.parametrize("width", [200, 140, 100, 80])
def test_a_narrow_terminal_goes_without_the_parameters_of_methods_and_says_so(width: int) -> None:
    text = printed(SEARCH, fakes.compared_methods(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert ("orthogonality_weight" in text) == (width >= 140)
    assert "lipsum_ft" in text
    assert ("want of room: domains, parameters" in text) == (width < 140)


@pytest.mark.parametrize("width", [160, 80])
def test_the_report_has_the_best_of_each_method_between_leaderboard_and_rules(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(report(SEARCH, fakes.compared_methods(), width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    titles = [text.index(t) for t in (SEARCH.name, "The best of each method", "What each rule")]
    assert titles == sorted(titles)


def test_the_note_for_mlflow_has_a_table_of_the_methods() -> None:
    lines = describe(SEARCH, fakes.compared_methods(), "finished").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| method "))
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines[start : start + 8]]
    assert len({len(row) for row in cells}) == 1
    assert [row[0] for row in cells[2:]] == [
        "zero-shot", "ft, reference", "carot", "lipsum_ft", "kd", "ft",
    ]  # fmt: skip
    assert cells[4][1:7] == [
        "2/0/0", "trial-007", "lr=2e-05 orthogonality_weight=0.2 distillation_weight=1.5",
        "85.1", "64.1", "74.6",
    ]  # fmt: skip
    assert "- Equal numbers of trials, 2 a method: finished/pruned/failed." in lines
    assert not any(
        line.startswith("| method")
        for line in describe(SEARCH, fakes.finished_search(), "finished").splitlines()
    )


def test_a_search_without_any_trial_still_has_a_leaderboard_and_a_figure(tmp_path: Path) -> None:
    assert "zero-shot" in printed(SEARCH, [])
    assert figure(SEARCH, [], tmp_path / "empty.png").exists()


def test_the_figure_is_a_image_in_a_folder_made_for_it(tmp_path: Path) -> None:
    path = figure(SEARCH, fakes.finished_search(), tmp_path / "report" / "accuracy.png")
    height, width, _ = image.imread(path).shape
    assert (width, height) == (1290, 930)


@pytest.mark.parametrize(
    "records",
    [
        [fakes.trial(1, params={"optim.lr": 1e-5})],
        [fakes.trial(1, params={"method.reg_weight": 0.0}), fakes.trial(2)],
        [fakes.trial(1, math.nan, math.nan), fakes.trial(2, outcome="running", curve=())],
        [fakes.trial(1, outcome=outcome) for outcome in ("finished", "pruned", "stopped")],
        fakes.compared_methods(),
        [replace(record, outcome="running", curve=()) for record in fakes.compared_methods()],
    ],
    ids=[
        "weight not searched",
        "weight zero",
        "nothing to draw",
        "one weight",
        "methods",
        "methods without results",
    ],
)
def test_the_figure_can_be_drawn_whatever_the_trials_lack(
    records: list[TrialRecord], tmp_path: Path
) -> None:
    assert figure(SEARCH, records, tmp_path / "accuracy.png").stat().st_size > 10_000


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    figure(SEARCH, fakes.finished_search(), tmp_path / "accuracy.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (math.nan, ""), (8.4, "8s"), (59.6, "1m 00s"), (3725, "1h 02m")],
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text


def test_the_note_for_mlflow_says_how_the_search_ended_and_what_it_found() -> None:
    records = fakes.finished_search()
    note = describe(SEARCH, records, "finished")
    assert "**Best: trial-006** with `method.reg_weight` 3.64" in note
    assert "The search is complete: 14 trials, 9 finished, 4 pruned, 1 failed." in note
    assert "- trial-005 failed: `OutOfMemoryError: CUDA out of memory.`" in note
    assert "Best" not in describe(SEARCH)


def test_the_note_for_mlflow_has_a_table_of_the_rules_once_the_search_ended() -> None:
    records = [fakes.trial(1, 90, 60), fakes.trial(2, 80, 65)]
    lines = describe(SEARCH, records, "finished").splitlines()
    table = next(line for line in lines if line.startswith("| rule "))
    start = lines.index(table)
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines[start : start + 8]]
    assert len({len(row) for row in cells}) == 1
    assert [row[:8] for row in cells[2:]] == [
        ["objective", "001", "90.0", "60.0", "46.0", "-5.0", "0.0", "yes"],
        ["id_val", "001", "90.0", "60.0", "46.0", "-5.0", "0.0", "no"],
        ["ood_val", "002", "80.0", "65.0", "51.0", "0.0", "-10.0", "yes"],
        ["leave_one_domain_out", "002", "80.0", "65.0", "51.0", "0.0", "-10.0", "yes"],
        ["worst_domain", "002", "80.0", "65.0", "51.0", "0.0", "-10.0", "yes"],
        ["pareto", "001, 002", "80-90", "60-65", "46-51", "-", "-", "yes"],
    ]
    assert not any(line.startswith("| rule") for line in describe(SEARCH, records).splitlines())
