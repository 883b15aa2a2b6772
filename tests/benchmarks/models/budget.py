"""Table of models of several pools of trainings, from the test accuracies that `study` stores."""

import csv
from statistics import fmean

from tests.benchmarks.models.table import BOTH, PARTS, by_domain, difference, markdown

PLAIN, SEARCH, AUTHORS, MIXED, LABELLED = "plain", "search", "authors", "mixed", "labelled"
POOLS = {
    PLAIN: "30 plain fine-tunings",
    SEARCH: "a search and its confirmation",
    AUTHORS: "30 of Lipsum-FT at its authors' settings",
    MIXED: "15 of each",
    LABELLED: "plain fine-tuning, OOD validation images too",
}
ONE, SINGLE, TODAY, ENDS, MODEL = "one", "single", "greedy", "ends", "model"
ROWS = {
    ONE: "one training on average",
    SINGLE: "best single",
    TODAY: "best single or greedy soup",
    ENDS: "all ends",
    MODEL: "**the model**",
}
ALL, ID_VAL, WITHOUT = "all", "id_val", "without "
RULES = {ALL: "all validation data", ID_VAL: "ID alone", WITHOUT: "other OOD domains"}
"""By what a model is chosen; the name of an OOD domain follows `WITHOUT`."""


def read_rows(path):
    """Rows of a CSV file; a value that is not there is None."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: value_in(text) for name, text in row.items()} for row in csv.DictReader(file)
        ]


def value_in(text):
    """The number or the text in a cell."""
    try:
        return float(text)
    except ValueError:
        return text or None


def equal_budget(rows):
    """Means over ID domains, and paired differences to plain fine-tunings that are built alike.

    Rows that lack an ID domain, since the study still runs, are left out.
    """
    domains = {row["domain"] for row in rows}
    head = ("pool", "built", "chosen by", "ID", "OOD", "mean of both", f"less {POOLS[PLAIN]}")
    lines = [head, ["---"] * len(head)]
    for pool, pool_name in POOLS.items():
        for rule, rule_name in RULES.items():
            for row, row_name in ROWS.items():
                found = rows_of(rows, pool, rule, row)
                if {one["domain"] for one in found} != domains:
                    continue
                levels = [f"{fmean(by_domain(found, part).values()):.1f}" for part in PARTS]
                # Only one training has OOD labels: the models of others are what it stands beside.
                other = rows_of(rows, PLAIN, rule, MODEL if pool == LABELLED else row)
                own, plain = by_domain(found, BOTH), by_domain(other, BOTH)
                gaps = [own[domain] - plain[domain] for domain in own if domain in plain]
                gap = difference(gaps) if pool != PLAIN and len(gaps) == len(own) else ""
                lines.append([pool_name, row_name, rule_name, *levels, gap])
    return markdown(lines)


def rows_of(rows, pool, rule, row):
    """Those of a rule; of `WITHOUT`, those of all domains that are left out."""
    return [
        one
        for one in rows
        if (one["pool"], one["row"]) == (pool, row)
        and (one["rule"].startswith(WITHOUT) if rule == WITHOUT else one["rule"] == rule)
    ]
