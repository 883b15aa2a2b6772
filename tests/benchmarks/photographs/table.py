"""The table of the benchmark of photographs: test accuracies over all searches of each kind."""

from dataclasses import dataclass, field

import numpy as np

from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.confirmation.results import END, FT, SPLIT, estimate
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


@dataclass
class Row:
    """One metric of the trainings of a row by their seeds, of which no two searches share one."""

    values: dict[int, float] = field(default_factory=dict)
    right: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    """Of each domain, which of its test images are classified correctly."""

    def __sub__(self, other):
        return Row(
            {s: value - other.values[s] for s, value in self.values.items() if s in other.values},
            {
                seed: {domain: images - other.right[seed][domain] for domain, images in of.items()}
                for seed, of in self.right.items()
                if seed in other.right
            },
        )

    def estimate(self, weights):
        """Mean and interval over seeds and images, as `confirm` computes them for one search."""
        images = [
            (weight, np.stack([of[domain] for of in self.right.values()]))
            for domain, weight in weights.items()
            if self.right
        ]
        return estimate(list(self.values.values()), images)


def read_row(confirmations, chosen, metric, prefix=""):
    """A metric of what each confirmation has under this name."""
    found = Row()
    for one in confirmations:
        ids = {BEST + str(one.search.method(c)): c.trial_id for c in one.configurations[1:]}
        trial_id = ids.get(chosen, chosen)
        # Without values at the end, the chosen point was the end.
        found.values |= one.values(trial_id, metric) | one.values(trial_id, prefix + metric)
        found.right |= one.right(trial_id, prefix + metric)
    return found


def columns(one):
    """Metrics of a confirmation by the headings of their columns."""
    domains = {f"{one.search.id_domain} (ID)": ID, "OOD mean": MEAN_OOD}
    domains |= {domain: domain for domain in one.search.ood_domains}
    return {title: str(MetricKey(SPLIT, domain, "acc")) for title, domain in domains.items()}


def read_rows(found):
    """Cells of the rows whose searches are there, one for each of `columns`."""
    (one, *_), *_ = found.values()
    return {
        name: [read_row(found[kind], chosen, key, *prefix) for key in columns(one).values()]
        for name, (kind, chosen, *prefix) in ROWS.items()
        if kind in found
    }


def markdown(found):
    """Means ± half-widths of 95 % intervals, then differences, of the searches so far.

    Args:
        found: by kind of search, the confirmation for each seed.
    """
    (one, *_), *_ = found.values()
    domains, rows = columns(one), read_rows(found)
    differences = {
        f"{better} - {worse}": [a - b for a, b in zip(rows[better], rows[worse], strict=True)]
        for better, worse in PAIRS
        if better in rows and worse in rows
    }
    weights = [one.weights(key) for key in domains.values()]
    lines = []
    for title, part, sign in (("test accuracy", rows, ""), ("difference", differences, "+")):
        lines += ["| " + " | ".join([title, *domains]) + " |", "|---" * (1 + len(domains)) + "|"]
        for name, cells in part.items():
            texts = [text(cell.estimate(of), sign) for cell, of in zip(cells, weights, strict=True)]
            lines.append("| " + " | ".join([name, *texts]) + " |")
        lines.append("")
    number = {kind: len(of) for kind, of in found.items()}
    lines.append(
        f"± is half of the 95 % interval over seeds and test images; searches: {number}, each with "
        f"{len(one.seeds)} fresh seeds, by which and by image differences are paired."
    )
    return "\n".join(lines) + "\n"


def text(found, sign):
    return f"{found.mean:{sign}.1f} ± {(found.high - found.low) / 2:.1f}"
