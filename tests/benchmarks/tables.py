"""Writes what README and docs show of stored results: `python -m tests.benchmarks.tables`

Each text stands on its page between `<!-- result: NAME -->` and `<!-- end -->`. `test_tables.py`
fails where a page differs from what this command writes.
"""

import re
from io import StringIO
from pathlib import Path

import pandas as pd
from rich.console import Console

from tests.benchmarks.models.budget import read_rows
from tests.benchmarks.models.table import (
    BUILT,
    ROWS,
    TAKEN_HOME,
    differences,
    figure,
    markdown,
    pairs,
    table,
)
from tuning import load_run
from tuning.views.leaderboard import SHOWN, report

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COLUMNS = {
    "real, clipart, sketch": ["real", "clipart", "sketch"],
    "infograph": ["infograph"],
    "photographs": ["photographs"],
}
"""Tables of recorded trainings whose mean a column shows."""
SEARCHES = (
    ("0.2", "auto", "Lipsum-Tune"),
    ("0.2", "tpe", "TPE"),
    ("0.4", "auto", "Lipsum-Tune"),
    ("0.4", "tpe", "TPE"),
    ("", "random", "random search"),
)
REGRETS, TRIALS = HERE / "simulate" / "regrets.csv", ["5", "10", "20"]
FIGURE = ROOT / "docs" / "images" / "models.png"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
MARKED = re.compile(
    r"(?<=<!-- result: )(?P<name>[^>]+)( -->\n\n)(?P<text>.*?)(?=<!-- end -->)", re.DOTALL
)


def models():
    """The stored test accuracies of photographs."""
    return read_rows(HERE / "models" / "photographs.csv")


def searches():
    """Mean regrets after 5 / 10 / 20 trials of simulated searches."""
    regrets = pd.read_csv(REGRETS, dtype={"distance": str}, keep_default_na=False)
    lines = [["distance", "search", *COLUMNS], ["---"] * (2 + len(COLUMNS))]
    for distance, sampler, name in SEARCHES:
        of = regrets[(regrets["distance"] == distance) & (regrets["sampler"] == sampler)]
        regret = [of[of["table"].isin(tables)][TRIALS].mean() for tables in COLUMNS.values()]
        cells = [" / ".join(f"{mean:.2f}" for mean in column) for column in regret]
        lines.append([distance, name, *cells])
    return markdown(lines)


def transcript():
    """What a search of the quickstart prints at its end on 80 columns, without the time it took.

    `quickstart/` has its configuration and its journal.
    """
    run, out = load_run(HERE / "quickstart"), StringIO()
    Console(file=out, width=80).print(report(run, 80, SHOWN), highlight=False)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(["```text", *lines, "```", ""])


RESULTS = {
    "quickstart": transcript,
    "taken home": lambda: table(models(), TAKEN_HOME, of_seeds=False),
    "photographs": lambda: table(models(), ROWS),
    "photographs, each ID domain": lambda: differences(models(), BUILT),
    "photographs, paired": lambda: pairs(models()),
    "searches": searches,
}


def written(page):
    """The text of a page with the results of today."""
    text = page.read_text(encoding="utf-8")
    return MARKED.sub(lambda found: f"{found['name']}{found[2]}{RESULTS[found['name']]()}\n", text)


def main():
    for page in PAGES:
        page.write_text(written(page), encoding="utf-8")
    figure(models()).savefig(FIGURE, dpi=160)


if __name__ == "__main__":
    main()
