"""Writes tables of README and docs from stored results: `-m tests.benchmarks.tables`

Each stands on its page between `<!-- result: NAME -->` and `<!-- end -->`. `test_tables.py` fails
where a page differs from what this command writes.
"""

import re
from pathlib import Path

import pandas as pd

from tests.benchmarks.phenomenon import SUITE
from tests.benchmarks.photographs.table import accuracies, columns, differences
from trainers.data.suite import load_suite

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
MARKED = re.compile(
    r"(?<=<!-- result: )(?P<name>[^>]+)( -->\n\n)(?P<text>.*?)(?=\n<!-- end -->)", re.DOTALL
)


def photographs():
    return pd.read_parquet(HERE / "photographs" / "results.parquet"), columns(load_suite("pacs"))


def drawings():
    return pd.read_parquet(HERE / "phenomenon.parquet"), columns(SUITE)


def of_means(results, of_metrics):
    """Without the columns of single OOD domains."""
    return results, dict(list(of_metrics.items())[:2])


RESULTS = {
    "photographs, means": lambda: accuracies(*of_means(*photographs())),
    "photographs": lambda: accuracies(*photographs()),
    "photographs, differences": lambda: differences(*of_means(*photographs())),
    "drawings": lambda: accuracies(*of_means(*drawings())),
    "drawings, differences": lambda: differences(*of_means(*drawings())),
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
