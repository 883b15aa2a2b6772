from __future__ import annotations

import numpy as np

from tests.benchmarks.contenders import OURS, RANDOM, STOCK
from tests.benchmarks.simulate import BUDGETS, budget_for, summary


def test_the_budget_of_a_reference_is_where_its_mean_regret_is_as_low() -> None:
    random = np.array([[4.0, 3.0, 3.0, 1.0]])
    needed = [int(budget_for(np.array([regret]), random)[0]) for regret in (4.0, 2.0, 0.5)]
    assert needed == [1, 4, 4]  # the last is not reached


def test_ratios_of_budgets_have_intervals_paired_by_seed() -> None:
    falling = np.linspace(2, 0, 100)
    random = np.array([falling, falling + 0.2])
    shown = summary({(RANDOM, None): random, (OURS, 0.2): np.maximum(random - 0.5, 0)})
    cells = {column.header: list(column.cells) for column in shown.columns}
    assert cells["prior off by"] == ["", "0.2"]
    assert str(cells["@5"][0]).startswith("2.02 [1.92, 2.12]")
    assert float(str(cells["x random @5"][0]).split()[0]) == 1.0
    assert float(str(cells["x random @10"][1]).split()[0]) > 3
    late = np.where(np.arange(100) < [[4], [5]], np.nan, random)  # one has none finished at 5
    cells = {
        c.header: list(c.cells) for c in summary({(RANDOM, None): random, (OURS, 0): late}).columns
    }
    assert (cells["@5"][1], cells["x random @5"][1]) == ("-", "-")
    assert cells["@10"][1] == cells["@10"][0]


def test_budgets_are_compared_with_rays_pair_from_the_same_prior() -> None:
    seeds = np.array([[0.0], [3.0], [10.0], [20.0]])
    random = np.arange(200, 100, -1) + seeds
    pair = np.arange(60, 0, -1) + seeds
    ours = pair[:, 1::2][:, :20]  # after 1 trial, where the pair is after 2
    shown = summary(
        {(RANDOM, None): random, (STOCK, 0.2): pair, (OURS, 0.2): ours, (OURS, 0): ours}
    )
    for budget in BUDGETS:
        (column,) = (c for c in shown.columns if c.header == f"x Ray's pair @{budget}")
        # Seeds differ by more than trials, but are resampled together, so the interval is narrow.
        assert list(column.cells) == ["-", "1.0 [1.0, 1.0]", "2.0 [2.0, 2.0]", "-"]
