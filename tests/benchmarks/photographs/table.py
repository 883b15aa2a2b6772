"""The results of the benchmark of photographs: tables and the figure of their test accuracies.

Results are a data frame: which test images of a domain a training classifies correctly. It has a
row for each kind of search, its seed, each row of the table, fresh seed and domain.
"""

import json
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tuning.runs.confirmation import END, FT, SPLIT, estimate
from tuning.runs.records import ZERO_SHOT

UNTUNED = "untuned"
BEST = "best "
ROWS = {
    "zero-shot": (UNTUNED, ZERO_SHOT),
    "FT, untuned, at its end": (UNTUNED, FT, END),
    "FT, untuned": (UNTUNED, FT),
    "Lipsum-FT, untuned": (UNTUNED, BEST + "lipsum_ft"),
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
MARKS = {
    "zero-shot": ("zero-shot", "#5B616B", 7),
    "FT, untuned, at its end": ("plain fine-tuning,\nuntuned", "#D55E00", -27),
    "FT, untuned": ("the best point\nof its line", "#0072B2", 7),
}
"""Rows in the figure, with label, colour, and height of the label over the mark in points. An arrow
leads from the second to the third."""


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


@dataclass(frozen=True)
class Row:
    """The trainings of a row of the table, or their differences from those of another one.

    Trainings are independent of each other, except for those of a search that chose what was
    trained: there, the search is what was drawn, and its trainings count as one, their mean.
    """

    right: dict[tuple[int, int], dict[str, np.ndarray]]
    """By seed of the search and fresh seed, for each domain: 1 for a test image that is classified
    correctly, 0 for another; in a difference, 1, 0 or -1."""
    is_chosen: bool
    """Whether a search chose the hyperparameters among its trials."""

    def __sub__(self, other):
        """Paired by seeds and images."""
        differences = {
            seeds: {domain: images - other.right[seeds][domain] for domain, images in of.items()}
            for seeds, of in self.right.items()
            if seeds in other.right
        }
        return Row(differences, self.is_chosen or other.is_chosen)

    def estimate(self, weights):
        """Mean and interval over what was drawn and over the images.

        Args:
            weights: the domains of a metric with their shares in percent.
        """
        units = {}
        for (search, fresh), of in self.right.items():
            units.setdefault(search if self.is_chosen else (search, fresh), []).append(of)
        images = {
            domain: np.stack(
                [np.mean([of[domain] for of in unit], axis=0) for unit in units.values()]
            )
            for domain in weights
        }
        of_units = [images[domain].mean(axis=1) * share for domain, share in weights.items()]
        pairs = [(share, images[domain]) for domain, share in weights.items()]
        return estimate(np.sum(of_units, axis=0).tolist(), pairs)


def read_rows(results):
    """The rows of the table whose searches are there."""
    rows = {}
    for name, of_row in results.groupby("row"):
        right = {}
        keys = (of_row[column] for column in ("seed", "fresh_seed", "domain", "right"))
        for seed, fresh, domain, images in zip(*keys, strict=True):
            right.setdefault((seed, fresh), {})[domain] = np.asarray(images, np.int8)
        rows[name] = Row(right, is_chosen=ROWS[name][0] != UNTUNED)
    return {name: rows[name] for name in ROWS if name in rows}


def means(suite):
    """ID accuracy and mean OOD accuracy, by the heading of their columns: the shares of domains."""
    ood = suite.ood_domains
    of_ood = dict.fromkeys(ood, 100.0 / len(ood))
    return {f"{suite.id_domain} (ID)": {suite.id_domain: 100.0}, "mean OOD": of_ood}


def accuracies(results, of_metrics):
    """The table of test accuracies: means ± half-widths of 95 % intervals."""
    return table("test accuracy, %", read_rows(results), of_metrics)


def differences(results, of_metrics):
    """The table of differences between rows."""
    rows = read_rows(results)
    found = {
        f"{better} - {worse}": rows[better] - rows[worse]
        for better, worse in PAIRS
        if better in rows and worse in rows
    }
    return table("difference, points", found, of_metrics, sign="+")


def table(title, rows, of_metrics, sign=""):
    lines = [[title, *of_metrics], ["---"] * (1 + len(of_metrics))]
    for name, row in rows.items():
        cells = [text(row.estimate(weights), sign) for weights in of_metrics.values()]
        lines.append([name, *cells])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def text(found, sign):
    """Mean and half-width; without the latter where one search is all there is."""
    mean = f"{round(found.mean, 1) + 0.0:{sign}.1f}"  # without -0.0
    half = (found.high - found.low) / 2
    return mean if math.isnan(half) else f"{mean} ± {half:.1f}"


def markdown(results, suite):
    """Both tables of the searches so far, for all domains."""
    searches = results.groupby("search")["seed"].nunique().to_dict()
    fresh = results.groupby(["search", "seed"])["fresh_seed"].nunique().max()
    note = (
        "± is half of the 95 % interval over test images and fresh seeds; where a search chose the "
        "hyperparameters, over images and searches. "
        f"Searches: {searches}, each with {fresh} fresh seeds."
    )
    of_metrics = means(suite) | {domain: {domain: 100.0} for domain in suite.ood_domains}
    return "\n".join([accuracies(results, of_metrics), differences(results, of_metrics), note, ""])


def figure(results, suite):
    """Test accuracies, ID to the right and OOD upwards, with their intervals."""
    rows, metrics = read_rows(results), means(suite).values()
    drawn = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = drawn.add_subplot(
        xlabel="accuracy on new images of the training domain (photo), %",
        ylabel="on other domains (art, cartoon, sketch), %",
    )
    axes.grid(color="#ECEEF1")
    axes.set_axisbelow(True)
    places = []
    for name, (label, colour, height) in MARKS.items():
        x, y = (rows[name].estimate(weights) for weights in metrics)
        places.append((x.mean, y.mean))
        errors = (y.high - y.low) / 2, (x.high - x.low) / 2
        axes.errorbar(*places[-1], *errors, fmt="o", ms=9, color=colour)
        axes.annotate(label, places[-1], (9, height), textcoords="offset points", color=colour)
    arrow = {"arrowstyle": "-|>", "shrinkA": 9, "shrinkB": 9, "color": "#0072B2"}
    axes.annotate("", places[2], places[1], arrowprops=arrow)
    axes.margins(0.25)
    return drawn
