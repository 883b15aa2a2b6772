"""Table and figure of what a user takes home, from `photographs.csv`.

Its rows have ID domain, search if it is of one, what was tested, seed if there are several, and
accuracies. The study that made them is that of commit 0a983327.
"""

import math
from statistics import fmean, stdev

from matplotlib.figure import Figure

from tuning.results.estimates import estimate

ZERO = "zero-shot"
ONE_END = "one plain fine-tuning, at its end"
ONE = "one plain fine-tuning, on its line"
"""Each stored row is of one training; tables have means over them, see `named`."""
AUTHORS = "Lipsum-FT at its authors' settings"
SETTINGS = "settings of the search, trained once more"
TRIAL = "weights of the best trial"
MODEL = "**the model that `confirm` builds**"
OTHER = "best of 30 plain fine-tunings and their soup"
ROWS = (ZERO, ONE_END, ONE, AUTHORS, SETTINGS, TRIAL, MODEL, OTHER)
BUILT = (SETTINGS, TRIAL, MODEL, OTHER)
TAKEN_HOME = (ZERO, ONE, AUTHORS, SETTINGS, MODEL, OTHER)
PAIRS = ((MODEL, OTHER), (SETTINGS, AUTHORS), (AUTHORS, ONE), (TRIAL, SETTINGS), (MODEL, TRIAL))
"""What the model is held against, and the steps from plain fine-tuning to the model."""
BOTH = {"id": 0.5, "ood": 0.5}
PARTS = ({"id": 1.0}, {"ood": 1.0}, BOTH)
"""What is averaged: accuracies with their weights."""
MARKS = {
    ZERO: ("zero-shot", "#5B616B"),
    ONE: ("plain fine-tuning: mean and each seed", "#D55E00"),
    OTHER: ("best of 30 plain fine-tunings", "#E69F00"),
    MODEL: ("the model of a search", "#0072B2"),
}
"""Rows in the figure, with label and colour."""


def table(results, names, *, of_seeds=True):
    """Means over ID domains.

    The interval of a difference counts ID domains, each of which is one draw. Rows that lack one of
    them, since the study still runs, are left out.

    Args:
        names: rows of the table.
        of_seeds: with what a row varies between seeds.
    """
    head = ("test accuracy, %", "ID", "OOD", "mean of both", f"less {named(ONE)}")
    if of_seeds:
        head += ("deviation between seeds, OOD", "worst of three seeds, OOD")
    lines = [head, ["---"] * len(head)]
    plain = by_domain(rows_of(results, ONE), BOTH)
    for name in names:
        rows = rows_of(results, name)
        if by_domain(rows, BOTH).keys() != plain.keys():
            continue
        gaps = list(gaps_of(results, name).values())
        levels = [f"{fmean(by_domain(rows, part).values()):.1f}" for part in PARTS]
        cells = [named(name), *levels, difference(gaps) if name != ONE else ""]
        if of_seeds:
            cells += between_seeds(rows)
        lines.append(cells)
    return markdown(lines)


def differences(results, names):
    """What `gaps_of` finds for each ID domain, then for the model of each search."""
    rows = {name: gaps_of(results, name) for name in names}
    searches = sorted({one["search"] for one in results} - {None})
    for number, search in enumerate(searches, 1):
        of_search = [one for one in results if one["search"] == search]
        rows[f"{MODEL}, search {number}"] = gaps_of(of_search, MODEL)
    domains = by_domain(rows_of(results, ONE), BOTH)
    lines = [[f"less {named(ONE)}", *domains, "mean"], ["---"] * (2 + len(domains))]
    for name, gaps in rows.items():
        values = list(gaps.values())
        lines.append([name, *(f"{gap:+.1f}" for gap in values), difference(values)])
    return markdown(lines)


def pairs(results):
    """The differences of `PAIRS` for each ID domain."""
    domains = by_domain(rows_of(results, ONE), BOTH)
    lines = [["difference", *domains, "mean"], ["---"] * (2 + len(domains))]
    for name, other in PAIRS:
        gaps = list(gaps_of(results, name, other).values())
        label = f"{named(name)}, less {named(other)}"
        lines.append([label, *(f"{gap:+.1f}" for gap in gaps), difference(gaps)])
    return markdown(lines)


def gaps_of(results, name, other=ONE):
    """By ID domain, the mean of ID and OOD accuracy less that of another row."""
    base = by_domain(rows_of(results, other), BOTH)
    own = by_domain(rows_of(results, name), BOTH)
    return {domain: own[domain] - base[domain] for domain in base}


def named(row):
    """A row in a table of means."""
    return row.replace("one plain fine-tuning", "plain fine-tuning on average")


def markdown(lines):
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def rows_of(results, name):
    return [one for one in results if one["row"] == name]


def by_domain(rows, weights):
    """The mean of a weighted accuracy over all rows of an ID domain."""
    of_domains = {}
    for one in rows:
        value = sum(one[part] * weight for part, weight in weights.items())
        of_domains.setdefault(one["domain"], []).append(value)
    return {domain: fmean(values) for domain, values in of_domains.items()}


def difference(gaps):
    """Mean ± half of the 95 % interval; the mean alone of one ID domain."""
    found = estimate(gaps)
    half = found.high - found.mean
    return f"{found.mean:+.1f}" if math.isnan(half) else f"{found.mean:+.1f} ± {half:.1f}"


def between_seeds(rows):
    """Pooled deviation of OOD accuracy, and the mean over searches of its lowest fresh seed."""
    groups = {}
    for one in rows:
        if one["seed"] is not None:
            groups.setdefault((one["domain"], one["search"]), []).append(one["ood"])
    several = [values for values in groups.values() if len(values) > 1]
    if not several:
        return "", ""
    freedom = sum(len(values) - 1 for values in several)
    squares = sum(stdev(values) ** 2 * (len(values) - 1) for values in several)
    return f"{(squares / freedom) ** 0.5:.1f}", f"{fmean(map(min, several)):.1f}"


def figure(results):
    """The mean of ID and OOD test accuracy, a line for each ID domain."""
    of_rows = {name: by_domain(rows_of(results, name), BOTH) for name in MARKS}
    domains = list(of_rows[ONE])
    drawn = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = drawn.add_subplot(xlabel="mean of ID and OOD test accuracy, %")
    labels = [f"{domain.replace('_', ' ')} is ID" for domain in domains]
    axes.set_yticks(range(len(domains)), labels)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#ECEEF1")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    for place, domain in enumerate(domains):
        found = [values[domain] for values in of_rows.values()]
        axes.plot([min(found), max(found)], [place, place], color="#C9CED6", lw=2, zorder=1)
    seeds = rows_of(results, ONE)
    values = [(one["id"] + one["ood"]) / 2 for one in seeds]
    places = [domains.index(one["domain"]) for one in seeds]
    axes.scatter(values, places, s=14, color=MARKS[ONE][1], alpha=0.6, zorder=3)
    for name, (label, colour) in MARKS.items():
        places = [domains.index(domain) for domain in of_rows[name]]
        axes.scatter(of_rows[name].values(), places, s=70, color=colour, label=label, zorder=2)
    drawn.legend(loc="outside upper center", ncols=2, frameon=False)
    return drawn
