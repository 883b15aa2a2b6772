"""The figure of `README.md`: what became of the zero-shot model's accuracies, in three marks."""

from matplotlib.figure import Figure

from tests.benchmarks.photographs.table import columns, read_rows

MARKS = {
    "zero-shot": ("zero-shot", "#5B616B", 7),
    "FT, untuned, at its end": ("plain fine-tuning,\nuntuned", "#D55E00", -27),
    "FT, untuned": ("the best point\nof its line", "#0072B2", 7),
}
"""Rows of the table, with label, colour, and height of the label over the mark in points. An arrow
leads from the second to the third."""


def draw(results, suite):
    """Test accuracies, ID to the right and OOD upwards, with intervals over seeds and images."""
    rows, metrics = read_rows(results), list(columns(suite).values())[:2]
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
