"""The results of the benchmark of photographs, and the table of their test accuracies.

Results are a data frame: which test images of a domain a training classifies correctly. It has a
row for each kind of search, its seed, each row of the table, fresh seed and domain.
"""

import json
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from tuning.runs.confirmation import END, FT, SPLIT, estimate
from tuning.runs.records import ZERO_SHOT

BEST = "best "
ROWS = {
    "zero-shot": ("untuned", ZERO_SHOT),
    "FT, untuned, at its end": ("untuned", FT, END),
    "FT, untuned": ("untuned", FT),
    "Lipsum-FT, untuned": ("untuned", BEST + "lipsum_ft"),
    "FT, tuned": ("tuned", BEST + "ft"),
    "Lipsum-FT, tuned": ("tuned", BEST + "lipsum_ft"),
    "Lipsum-FT, random search": ("random", BEST + "lipsum_ft"),
}
"""Kind of search, what it has confirmed: a record by its name or the best trial of a method."""
PAIRS = (
    ("FT, untuned", "FT, untuned, at its end"),
    ("Lipsum-FT, untuned", "FT, untuned"),
    ("FT, tuned", "FT, untuned"),
    ("Lipsum-FT, tuned", "FT, untuned"),
    ("Lipsum-FT, tuned", "Lipsum-FT, untuned"),
    ("Lipsum-FT, tuned", "FT, tuned"),
    ("Lipsum-FT, tuned", "Lipsum-FT, random search"),
)
"""Rows whose difference is shown."""


def results_of(kind, seed, found):
    """The results of one search, from its confirmation."""
    ids = {BEST + str(found.search.method(c)): c for c in found.configurations[1:]}
    rows = []
    for name, (own, chosen, *prefix) in ROWS.items():
        if own == kind:
            trial = ids.get(chosen)
            metric = "".join(prefix) + f"id_{SPLIT}/acc"
            right = found.right(trial.trial_id if trial else chosen, metric)
            params = json.dumps(dict(trial.params) if trial else {})
            rows += [
                (kind, seed, name, params, fresh, domain, images.astype(bool).tolist())
                for fresh, of in right.items()
                for domain, images in of.items()
            ]
    columns = ("search", "seed", "row", "params", "fresh_seed", "domain", "right")
    return pd.DataFrame(rows, columns=columns)


@dataclass
class Row:
    """The trainings of a row by their seeds, of which no two searches share one.

    Of each domain: 1 for a test image that is classified correctly, 0 for another; in a difference,
    1, 0 or -1.
    """

    right: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    def __sub__(self, other):
        return Row(
            {
                seed: {domain: images - other.right[seed][domain] for domain, images in of.items()}
                for seed, of in self.right.items()
                if seed in other.right
            }
        )

    def estimate(self, weights):
        """Mean and interval over seeds and images, as `confirm` computes them for one search.

        Args:
            weights: the domains of a metric with their shares in percent.
        """
        values = [
            sum(share * of[domain].mean() for domain, share in weights.items())
            for of in self.right.values()
        ]
        images = [
            (share, np.stack([of[domain] for of in self.right.values()]))
            for domain, share in weights.items()
        ]
        return estimate(values, images)


def read_rows(results):
    """The rows of the table whose searches are there."""
    rows = {}
    for name, of_row in results.groupby("row"):
        right = rows.setdefault(name, Row()).right
        for fresh, domain, images in zip(
            of_row["fresh_seed"], of_row["domain"], of_row["right"], strict=True
        ):
            right.setdefault(fresh, {})[domain] = np.asarray(images, np.int8)
    return {name: rows[name] for name in ROWS if name in rows}


def columns(suite):
    """The weights of domains in a metric, by the heading of its column."""
    ood, alone = suite.ood_domains, [suite.id_domain, *suite.ood_domains]
    found = {f"{suite.id_domain} (ID)": {suite.id_domain: 100.0}}
    found["OOD mean"] = dict.fromkeys(ood, 100.0 / len(ood))
    return found | {domain: {domain: 100.0} for domain in alone[1:]}


def markdown(results, suite):
    """Means ± half-widths of 95 % intervals, then differences, of the searches so far."""
    rows, of_metrics = read_rows(results), columns(suite)
    differences = {
        f"{better} - {worse}": rows[better] - rows[worse]
        for better, worse in PAIRS
        if better in rows and worse in rows
    }
    lines = []
    for title, part, sign in (("test accuracy", rows, ""), ("difference", differences, "+")):
        lines += [f"| {' | '.join([title, *of_metrics])} |", "|---" * (1 + len(of_metrics)) + "|"]
        for name, row in part.items():
            texts = [text(row.estimate(weights), sign) for weights in of_metrics.values()]
            lines.append("| " + " | ".join([name, *texts]) + " |")
        lines.append("")
    seeds = results.groupby("search")["seed"].nunique().to_dict()
    fresh = results.groupby(["search", "seed"])["fresh_seed"].nunique().max()
    lines.append(
        f"± is half of the 95 % interval over seeds and test images; searches: {seeds}, each with "
        f"{fresh} fresh seeds, by which and by image differences are paired."
    )
    return "\n".join(lines) + "\n"


def text(found, sign):
    return f"{found.mean:{sign}.1f} ± {(found.high - found.low) / 2:.1f}"
