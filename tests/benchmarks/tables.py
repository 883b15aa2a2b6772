"""Writes tables and transcript of README and docs from stored results: `-m tests.benchmarks.tables`

Each stands on its page between `<!-- result: NAME -->` and `<!-- end -->`. `test_tables.py` fails
where a page differs from what this command writes.
"""

import re
from io import StringIO
from pathlib import Path

import pandas as pd
from rich.console import Console

from tests.benchmarks.phenomenon import SUITE
from tests.benchmarks.photographs.table import accuracies, differences, means
from tests.benchmarks.simulate.__main__ import mean_and_interval
from trainers.data.suite import load_suite
from tuning import load_run
from tuning.views.leaderboard import SHOWN, report

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DOMAINS = ("real", "clipart", "sketch", "infograph", "photographs")
SEARCHES = (
    ("0.2", "auto", "Lipsum-Tune"),
    ("0.2", "tpe", "TPE"),
    ("0.4", "auto", "Lipsum-Tune"),
    ("0.4", "tpe", "TPE"),
    ("", "random", "random search"),
)
REGRETS, TRIALS = HERE / "simulate" / "regrets.csv", ["5", "10", "20"]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
MARKED = re.compile(
    r"(?<=<!-- result: )(?P<name>[^>]+)( -->\n\n)(?P<text>.*?)(?=\n<!-- end -->)", re.DOTALL
)


def photographs(table):
    results = pd.read_parquet(HERE / "photographs" / "results.parquet")
    return table(results, means(load_suite("pacs")))


def drawings(table):
    return table(pd.read_parquet(HERE / "phenomenon.parquet"), means(SUITE))


def searches():
    """Mean regrets after 5 / 10 / 20 trials of simulated searches."""
    regrets = pd.read_csv(REGRETS, dtype={"distance": str}, keep_default_na=False)
    found = regrets.groupby(["distance", "sampler", "table"])[TRIALS].mean()
    lines = [["prior off by", "search", *DOMAINS], ["---"] * (2 + len(DOMAINS))]
    for distance, sampler, name in SEARCHES:
        of_domains = [found.loc[(distance, sampler, domain)] for domain in DOMAINS]
        cells = [" / ".join(f"{regret:.2f}" for regret in of) for of in of_domains]
        lines.append([distance, name, *cells])
    return markdown(lines)


def intervals():
    """The intervals of the project's own search on two tables."""
    regrets = pd.read_csv(REGRETS)
    own = regrets[(regrets["sampler"] == "auto") & regrets["table"].isin(["clipart", "sketch"])]
    lines = [["table, prior off by", *(f"{number} trials" for number in TRIALS)], ["---"] * 4]
    for (table, distance), of in own.groupby(["table", "distance"]):
        cells = [mean_and_interval(of[number].to_numpy()) for number in TRIALS]
        lines.append([f"{table}, {distance}", *cells])
    return markdown(lines)


def markdown(lines):
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def transcript():
    """What a search of the quickstart prints at its end on 80 columns, without the time it took.

    `quickstart/` has its configuration and its journal.
    """
    run, out = load_run(HERE / "quickstart"), StringIO()
    Console(file=out, width=80).print(
        report(run.search, run.history.records, 80, SHOWN), highlight=False
    )
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(["```text", *lines, "```", ""])


RESULTS = {
    "quickstart": transcript,
    "photographs": lambda: photographs(accuracies),
    "photographs, differences": lambda: photographs(differences),
    "drawings": lambda: drawings(accuracies),
    "drawings, differences": lambda: drawings(differences),
    "searches": searches,
    "searches, intervals": intervals,
}


def written(page):
    """The text of a page with the results of today."""
    text = page.read_text(encoding="utf-8")
    return MARKED.sub(lambda found: f"{found['name']}{found[2]}{RESULTS[found['name']]()}", text)


def main():
    for page in PAGES:
        page.write_text(written(page), encoding="utf-8")


if __name__ == "__main__":
    main()
