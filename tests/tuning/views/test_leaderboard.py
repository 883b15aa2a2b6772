"""What the terminal shows of a search: whole screens, none of them wider than the terminal."""

from dataclasses import replace

import pytest

from tests.tuning import fakes
from tests.tuning.result_tables import printed
from tuning.config.objectives import Objective, parse_constraint
from tuning.views.leaderboard import report

SEARCH = fakes.Search()
TRIALS = [
    fakes.reference(),
    fakes.trial(1, 80, 60),
    fakes.trial(2, 99, 99, outcome="failed", error="RuntimeError: boom"),
    fakes.trial(3, 88, 62),
    fakes.trial(4, 99, 99, outcome="pruned", curve=(fakes.report(40, 99, 99),)),
]
GIVEN = [replace(record, is_first_point=record.kind == "trial") for record in TRIALS]
ON_LINE = fakes.trial(1, curve=(fakes.report(fakes.TOTAL_STEPS, 88.0, 62.0, **{"line/a": 0.6}),))
LIMIT = parse_constraint("id_val/acc >= 90", SEARCH.zero_shot)
BOTH = (Objective("id_val/acc"), Objective("ood_val/mean_acc"))
MANY = {f"method.weight_{index}": 0.123 for index in range(8)} | {"optim.lr": 1e-4}
LONG = {"method.reg_weight": 0.0123, "method.smoothing": 0.1, "optim.lr": 3.33e-5}


@pytest.mark.parametrize(
    ("name", "changes", "records", "options"),
    [
        ("all_trials", {}, TRIALS, {}),
        ("end_of_a_search", {}, GIVEN, {"shown": 3, "seconds": 90}),
        ("best_few", {}, TRIALS, {"shown": 1}),
        ("point_of_the_line", {}, [ON_LINE], {}),
        ("objective_is_an_accuracy", {"objectives": BOTH[:1]}, [fakes.trial(1)], {}),
        (
            "missed_constraint", {"constraints": (LIMIT,)},
            [fakes.trial(1, 88), fakes.trial(2, 91)], {},
        ),
        (
            "front_of_two_objectives", {"objectives": BOTH},
            [fakes.trial(1, 90, 50), fakes.trial(2, 80, 70), fakes.trial(3, 79, 49)], {},
        ),
        ("many_parameters_on_60", {}, [fakes.trial(1, params=MANY)], {"width": 60}),
        ("many_parameters_on_120", {}, [fakes.trial(1, params=MANY)], {"width": 120}),
        (
            "outcomes_on_80", {},
            [fakes.reference(), fakes.trial(0, 80, 60, params=LONG, outcome="stopped")],
            {"width": 80},
        ),
    ],
)  # fmt: skip
def test_a_search_is_shown_as_in_its_file(name, changes, records, options, screen):
    run = replace(SEARCH, **changes).run(records)
    screen(name, printed(report(run, **options), options.get("width", 100)))
