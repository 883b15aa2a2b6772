from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest

from tests.benchmarks.rung_ranks import main as rank_table
from tests.benchmarks.rung_ranks import rank_correlations, read_curves


def test_rank_correlations_are_those_of_the_better_half() -> None:
    # Finals 1 to 6: the better half is 4, 5, 6 (and the median's own side), ranked at step 10 as
    # 3, 1, 2 by values that the others do not share.
    rows = [
        {"configuration": i, "seed": 0, "step": step, "acc": values[i]}
        for step, values in ((10, [0.0, 0.0, 0.0, 30.0, 10.0, 20.0]), (20, [1, 2, 3, 4, 5, 6.0]))
        for i in range(6)
    ]
    measured, low, high = rank_correlations(pd.DataFrame(rows), "acc", "acc")[10]
    # 1 - 6 * sum(d^2) / (n * (n^2 - 1)), d = ranks (3, 1, 2) less (1, 2, 3)
    assert measured == pytest.approx(1 - 6 * (4 + 1 + 1) / (3 * 8))
    assert (low, high) == (-1, 1)  # as three configurations show nothing


def test_an_nll_ranks_with_the_opposite_sign() -> None:
    rows = [
        {"configuration": i, "seed": 0, "step": step, "acc": acc, "nll": nll}
        for i in range(6)
        for step, acc, nll in ((10, 5.0 - i, 3.0 - i / 10), (20, 10.0 + i, 1.0))
    ]
    curves = pd.DataFrame(rows)
    assert rank_correlations(curves, "acc", "acc")[10][0] == pytest.approx(-1)
    assert rank_correlations(curves, "nll", "acc")[10][0] == pytest.approx(1)


def test_rungs_are_ranked_by_accuracy_and_by_its_nll(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"configuration": i, "step": step, "id_val/acc": 50.0 + i, "id_val/nll": 4.0 - i / 10}
        | {"ood_val/a/nll": 1.0, "ood_val/b/nll": 8.0, "raw/id_val/acc": i, "raw/id_val/nll": i}
        for i in range(12)
        for step in (10, 20)
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "old.parquet")
    curves = read_curves(tmp_path / "old.parquet")
    assert curves["val/mean_nll"][0] == pytest.approx(math.sqrt(4.0 * 4.5))
    rank_table([str(tmp_path / "old.parquet"), "--objectives", "id_val/acc", "--seeds", "0"])
    found = re.findall(r"id_val/(acc|nll) *│ (rungs|raw) *│ ([-0-9.]+)", capsys.readouterr().out)
    assert found == [
        ("acc", "rungs", "1.00"),
        ("acc", "raw", "1.00"),
        ("nll", "rungs", "1.00"),
        ("nll", "raw", "-1.00"),
    ]
