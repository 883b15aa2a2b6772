import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib import image

from tests.tuning import fakes
from tests.tuning.result_tables import cells, column, notes, printed
from tuning.config.objectives import Objective, parse_constraint
from tuning.views.figures.frame import save_figure
from tuning.views.figures.id_vs_ood import draw, line_of
from tuning.views.leaderboard import leaderboard, report

SEARCH = fakes.search_record(Path("run"))


def constrained(*lines):
    return replace(
        SEARCH, constraints=tuple(parse_constraint(line, SEARCH.zero_shot) for line in lines)
    )


def test_finished_trials_are_ranked_and_the_others_follow():
    records = [
        fakes.trial(1, 80, 60),
        fakes.trial(2, 99, 99, outcome="failed", error="RuntimeError: boom"),
        fakes.trial(3, 88, 62),
        fakes.trial(4, 99, 99, outcome="pruned", curve=(fakes.report(40, 99, 99),)),
    ]
    table = leaderboard(SEARCH, records)
    assert [row[:2] for row in cells(table)] == [
        ["-", "zero-shot"],
        ["1", "trial-003"],
        ["2", "trial-001"],
        ["-", "trial-004"],
        ["-", "trial-002"],
    ]
    assert column(table, "outcome") == ["-", "finished", "finished", "pruned 40", "failed"]
    assert column(table, "val/ mean_acc") == ["71.7", "75.0", "70.0", "99.0", "99.0"]
    assert column(table, "step") == ["0/240", "240/240", "240/240", "40/240", "240/240"]
    assert column(table, "real (ID)") == ["82.4", "88.0", "80.0", "99.0", "99.0"]
    assert column(table, "lr") == ["-", *["1e-05"] * 4]
    assert [row.style for row in table.rows] == ["dim", "bold green", "", "", ""]


def test_plain_fine_tuning_is_labelled_as_not_tuned():
    table = leaderboard(SEARCH, [fakes.trial(1), fakes.reference()])
    assert column(table, "trial") == ["zero-shot", "FT, not tuned (lr = 1e-05)", "trial-001"]
    assert [row.ends_section for row in table.rows] == [False, True, False]
    config = {"trial": {"optim": {"lr": 6e-4}}}
    table = leaderboard(replace(SEARCH, config=config), [fakes.reference()])
    assert column(table, "trial")[-1] == "FT, not tuned (lr = 6e-04)"


def test_the_notes_state_the_split_that_chose():
    text = notes(leaderboard(SEARCH, [fakes.trial(1)]))
    assert "val/mean_acc at the last step, which looks at OOD validation data." in text
    blind = replace(SEARCH, objectives=(Objective("id_val/acc"),))
    assert "looks at" not in notes(leaderboard(blind, [fakes.trial(1)]))
    text = notes(leaderboard(replace(blind, sampler_metric="val/mean_nll"), [fakes.trial(1)]))
    assert "proposed by val/mean_nll, which looks at OOD validation data." in text


def test_the_point_of_the_line_has_a_column():
    on_line = fakes.report(fakes.TOTAL_STEPS, 88.0, 62.0, **{"line/a": 0.6})
    table = leaderboard(SEARCH, [fakes.reference(), fakes.trial(1, curve=(on_line,))])
    assert column(table, "a") == ["-", "-", "0.6"]
    assert "a" not in [c.header for c in leaderboard(SEARCH, [fakes.trial(1)]).columns]


def test_the_figure_draws_the_lines_of_trials():
    points = {0.0: (82.4, 61.0), 0.5: (86.0, 63.0), 1.0: (88.0, 58.0)}
    metrics = {
        f"line/{a:g}/{name}": value
        for a, both in points.items()
        for name, value in zip(("id_val/acc", "ood_val/mean_acc"), both, strict=True)
    }
    last = fakes.report(fakes.TOTAL_STEPS, 86.0, 63.0, **metrics)
    trial = fakes.trial(1, curve=(last,))
    assert line_of(trial) == [(a, *both) for a, both in points.items()]
    figure, note = draw(SEARCH, [trial, fakes.trial(2)])
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert [tuple(line.get_xdata()) for line in drawn] == [(82.4, 86.0, 88.0)]
    assert "Thin: from zero-shot to the end of each training" in note


def test_first_points_are_told_from_proposals():
    lipsum = {"trial": {"method": {"name": "lipsum_ft"}, "optim": {"lr": 1e-5}}}  # as in fakes
    search = replace(SEARCH, config=lipsum)
    first = fakes.trial(0, 88.0, 62.0, is_first_point=True)  # the authors' weight and length
    worse = fakes.trial(1, 86.0, 62.0)
    table = leaderboard(search, [first, worse])
    assert column(table, "trial") == ["zero-shot", "trial-000°", "trial-001"]
    assert table.notes[-1].startswith("° A first point")
    assert table.notes[0] == "The best trial is the published setting; no proposal was better."
    other = replace(first, params={**first.params, "method.reg_weight": 0.5})
    best = "The best trial is a first point; no proposal was better."
    assert leaderboard(search, [other, worse]).notes[0] == best
    moved = replace(first, params={**first.params, "optim.lr": 1e-3})
    assert leaderboard(search, [moved, worse]).notes[0] == best
    running = replace(worse, outcome="running")
    assert "proposal" not in notes(leaderboard(search, [first, running]))
    none = "All trials are first points: the sampler has proposed none."
    assert leaderboard(search, [first, replace(worse, is_first_point=True)]).notes[0] == none
    proposed = [replace(first, is_first_point=False), replace(worse, is_first_point=True)]
    assert "proposal" not in notes(leaderboard(search, proposed))
    assert "first point" not in notes(leaderboard(search, [worse]))


def test_failed_trials_are_named_with_their_errors():
    traceback = "Traceback (most recent call last):\n  File x\nValueError: [bad] shape\n"
    table = leaderboard(SEARCH, [fakes.trial(7, outcome="failed", error=traceback)])
    assert "trial-007: ValueError: [bad] shape" in notes(table)


def test_the_front_of_several_objectives_is_marked():
    two = replace(SEARCH, objectives=(Objective("id_val/acc"), Objective("ood_val/mean_acc")))
    records = [fakes.trial(1, 80, 64), fakes.trial(2, 90, 60), fakes.trial(3, 79, 63)]
    table = leaderboard(two, records)
    assert column(table, "#") == ["-", "1*", "2*", "3"]
    assert "Pareto front" in notes(table)
    assert column(leaderboard(SEARCH, records), "#") == ["-", "1", "2", "3"]


def test_a_trial_that_misses_a_constraint_ranks_lower():
    records = [
        fakes.trial(1, 84.5, 90),
        fakes.trial(2, 86, 60),
        fakes.trial(3, 60, 60, outcome="pruned"),
    ]
    table = leaderboard(constrained("id_val/acc >= 85"), records)
    assert column(table, "trial")[1:] == ["trial-002", "trial-001", "trial-003"]
    assert column(table, "misses by")[1:] == ["-", "0.5", "-"]
    assert "No finished trial" not in notes(table)


def test_the_worst_of_several_violations_is_shown_and_named():
    search = constrained("id_val/acc >= 85", "ood_val/mean_acc >= 62")
    table = leaderboard(search, [fakes.trial(1, 84, 60), fakes.trial(2, 82, math.nan)])
    assert column(table, "misses by")[1:] == ["2 b", "inf b"]
    assert "a: id_val/acc >= 85; b: ood_val/mean_acc >= 62." in notes(table)
    assert "No finished trial meets the constraints" in notes(table)


def test_methods_share_columns_of_common_parameters():
    table = leaderboard(SEARCH, fakes.compared_methods(1))
    headers = [column.header for column in table.columns][:7]
    assert headers == ["#", "trial", "method", "lr", "parameters", "real\n(ID)", "OOD\nmean"]
    assert [row[1:5] for row in cells(table)][2:] == [
        ["trial-003", "carot", "1e-05", "orthogonality_weight=0.2 distillation_weight=1.5"],
        ["trial-002", "lipsum_ft", "1e-05", "reg_weight=0.7 text_length=8"],
        ["trial-001", "kd", "1e-05", "reg_weight=1.2"],
        ["trial-000", "ft", "1e-05", "-"],
    ]


@pytest.mark.parametrize("width", [200, 120, 80, 60])
def test_the_report_fits_the_terminal(width):
    search = constrained("id_val/acc >= best - 1.5", "ood_val/mean_acc >= 61.5")
    text = printed(report(search, fakes.finished_search(), width), width)
    assert text.index("trial-012") < text.index("What each rule chooses")
    assert ("painting" in text.split("Chosen by")[0]) == (width == 200)
    assert ("outcome" in text.split("Chosen by")[0]) == (width >= 80)
    text = printed(report(SEARCH, fakes.compared_methods(), width), width)
    titles = (SEARCH.name, "The best trial of each method", "What each rule chooses")
    positions = [text.index(title) for title in titles]
    assert positions == sorted(positions)
    assert ("distillation_weight=1.5" in text) == (width >= 120)


def test_rules_without_a_trial_to_choose_are_left_out():
    stopped = fakes.trial(1, outcome="stopped", curve=())
    assert "What each rule chooses" not in printed(report(SEARCH, [stopped]), 200)
    assert "What each rule chooses" in printed(report(SEARCH, [stopped, fakes.trial(2)]), 200)
    assert column(leaderboard(SEARCH, []), "trial") == ["zero-shot"]


@pytest.mark.parametrize("records", [[fakes.trial(1)], fakes.compared_methods()[1:]])
def test_the_figure_labels_plain_fine_tuning_as_not_tuned(records):
    drawn, _ = draw(SEARCH, [*records, fakes.reference()])
    labels = [text.get_text() for text in drawn.axes[0].texts]
    assert "FT, not tuned (lr = 1e-05)" in labels


def test_the_figure_is_an_image_in_a_folder_made_for_it(tmp_path):
    drawn, note = draw(SEARCH, fakes.finished_search())
    path = save_figure(drawn, note, tmp_path / "report" / "accuracy.png")
    height, width, _ = image.imread(path).shape
    assert (width, height) == (1290, 930)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize(
    "records",
    [
        [],
        [fakes.trial(1, params={"optim.lr": 1e-5})],  # without a weight
        [fakes.trial(1, params={"method.reg_weight": 0.0}), fakes.trial(2)],
        [fakes.trial(1, math.nan, math.nan), fakes.trial(2, outcome="running", curve=())],
        [fakes.trial(1, outcome=outcome) for outcome in ("finished", "pruned", "stopped")],
        fakes.compared_methods(),
        [replace(record, outcome="running", curve=()) for record in fakes.compared_methods()],
    ],
)
def test_the_figure_can_be_drawn_whatever_the_trials_lack(records, tmp_path):
    path = save_figure(*draw(SEARCH, records), tmp_path / "accuracy.png")
    assert path.stat().st_size > 10_000


def test_the_interval_of_an_accuracy_is_that_of_the_id_and_of_the_smallest_ood_domain():
    images = {"real": 800, "painting": 800, "clipart": 400, "infograph": 200, "sketch": 200}
    text = (
        "95 % interval of an accuracy, in points at most: ± 3.5 on 800 images (real, painting), "
        "± 6.9 on 200 images (infograph, sketch)."
    )
    assert text in leaderboard(replace(SEARCH, val_images=images), []).notes
    assert not any("interval" in note for note in leaderboard(SEARCH, []).notes)


def test_table_and_figure_label_averaged_weights_and_samples_of_the_images():
    def notes(images, averaged):
        early = fakes.report(40, 80.0, 60.0) | {"eval/images": images, "eval/averaged": averaged}
        ended = fakes.report(240, 85.0, 62.0) | {"eval/images": 500.0}
        pruned = fakes.trial(1, outcome="pruned", curve=(early,))
        trials = [pruned, fakes.trial(2, curve=(ended,))]
        return [" ".join(leaderboard(SEARCH, trials).notes), draw(SEARCH, trials)[1]]

    for text in notes(100.0, 1.0):
        assert "Trials that ended early: accuracy of their averaged weights." in text
        assert "Trials before the last step: accuracy on 100 of 500 validation images" in text
    assert not any("Trials" in text for text in notes(500.0, 0.0))


@pytest.mark.parametrize(("limit", "noted"), [(200, True), (0, False)])
def test_a_sample_is_labelled_before_any_trial_reaches_the_end(limit, noted):
    point = fakes.report(40, 80.0, 60.0) | {"eval/images": 1000.0}
    running = fakes.trial(1, outcome="running", curve=(point,))
    search = replace(SEARCH, config={"trial": {"eval": {"rung_images": limit}}})
    text = " ".join(leaderboard(search, [running]).notes)
    assert ("accuracy on at most 200 validation images of each domain" in text) == noted


PLAIN = fakes.reference(curve=(fakes.report(240, 90.0, 64.0),))
NONE_BETTER = (
    "No trial is better than FT, not tuned (lr = 1e-05): val/mean_acc = 77 against 70 of the best."
)


def test_the_title_and_the_figure_say_that_no_trial_beats_a_reference():
    weak, strong = [PLAIN, fakes.trial(1, 80.0, 60.0)], [PLAIN, fakes.trial(1, 95.0, 66.0)]
    assert leaderboard(SEARCH, weak).title == f"{SEARCH.name}\n{NONE_BETTER}"
    assert leaderboard(SEARCH, strong).title == SEARCH.name
    assert draw(SEARCH, weak)[1].startswith(NONE_BETTER)
    assert draw(SEARCH, strong)[1].startswith(SEARCH.selection)
    both = replace(SEARCH, objectives=(Objective("id_val/acc"), Objective("ood_val/mean_acc")))
    title = leaderboard(both, weak).title
    values = "id_val/acc = 90 against 80, ood_val/mean_acc = 64 against 60 of the best."
    assert title.endswith(f"FT, not tuned (lr = 1e-05): {values}")
    strict = leaderboard(constrained("id_val/acc <= 92"), strong).title
    met = "FT, not tuned (lr = 1e-05) meets the constraints, and no trial does: "
    assert strict.endswith(f"{met}val/mean_acc = 77 against 80.5 of the best.")


def test_a_long_note_has_its_place_below_the_figure(tmp_path):
    def height(note):
        drawn, _ = draw(SEARCH, [PLAIN])
        return len(image.imread(save_figure(drawn, note, tmp_path / "figure.png")))

    assert height("word " * 60) == 930
    assert height("word " * 200) > 930 + 3 * 20
