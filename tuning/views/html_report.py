"""The report of a search: one HTML file with its figures, tables and the commands to go on.

It loads nothing from elsewhere, so it can be sent by mail and printed. It is written for a running
search, too, with the trials so far.
"""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING
from xml.etree.ElementTree import ParseError

from trainers.errors import ConfigError, storage_failures
from tuning.runs.ranking import best_trial, misses
from tuning.runs.records import AVERAGED, SearchRecord, TrialRecord
from tuning.selection.beliefs import MAX_TRIALS, beliefs
from tuning.views.changed_images import changed_images
from tuning.views.cost import cost_sentences
from tuning.views.formatting import format_metric, format_seconds
from tuning.views.leaderboard import leaderboard, sampled_images
from tuning.views.linked_figures import (
    MAX_LINKED,
    SCRIPT,
    STYLE,
    inline_svg,
    trial_title,
)
from tuning.views.methods_report import methods_table
from tuning.views.predictions_report import (
    changes_table,
    confusions_table,
    kept_predictions,
)
from tuning.views.result_table import ResultTable, html_table
from tuning.views.selection_report import selection_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_FOLDER = "report"
"""In the run folder."""
REPORT_FILE = "index.html"
MAIN_FIGURE = "id_vs_ood.png"
_PIXELS_PER_INCH = 200
"""Resolution of what is drawn as pixels within a figure."""

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #22262b; --soft: #5b616b; --line: #d9dde2; --ground: #fff;
        --mark: #fdebdc }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #a3abb6; --line: #3a4049; --ground: #16191d;
          --mark: #40301f }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
       max-width: 1100px; margin: 0 auto; padding: 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem } p, li, caption { color: var(--soft) }
figure { margin: 1rem 0; background: #fff; border: 1px solid var(--line); border-radius: 6px;
         padding: .5rem }
img, svg { max-width: 100%; height: auto; display: block; margin: auto }
.table { overflow-x: auto }
.panels { display: flex; flex-wrap: wrap; gap: 0 1.5rem }
.panels img { margin: 0 }
.changed { display: grid; gap: 0 1.5rem; margin-bottom: 1.5rem;
           grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)) }
.changed h4 { grid-column: 1 / -1; margin: 0 } .changed p { margin: 0 }
.thumbnail { display: inline-block; width: 4.9rem; margin: .25rem .4rem .25rem 0; font-size: .75rem;
             line-height: 1.3; vertical-align: top; overflow-wrap: anywhere }
.thumbnail img { width: 100%; height: 4.5rem; object-fit: contain; object-position: left }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .4rem; text-align: right; white-space: pre;
         border-bottom: 1px solid var(--line) }
.left { text-align: left } .best { font-weight: bold }
pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; padding: .75rem }
@media screen and (prefers-color-scheme: dark) {
  figure { filter: invert(.9) hue-rotate(180deg); border-color: #c8c3bc }
}
@media screen {
  .table { overflow-y: auto; max-height: 85vh } thead { position: sticky; top: 0 }
  thead th { background: var(--ground) }
}
$style
@media print {
  body { max-width: none; font-size: 11px } figure, table { break-inside: avoid }
  table { font-size: 8px } th, td { padding: .1rem .3rem }
}
</style></head><body>
$body
</body></html>
""")


def write_report(
    search: SearchRecord,
    records: Sequence[TrialRecord],
    folder: Path,
    checkpoints: str | None = None,
) -> None:
    """Write the page of the trials so far into a folder, and its main figure as PNG.

    Args:
        checkpoints: folder or URL of the checkpoints of all trials, with predictions.

    Raises:
        StorageFailed: the disk is full or fails.
    """
    # Matplotlib takes a second to import.
    import matplotlib

    from tuning.views.figures import id_vs_ood
    from tuning.views.figures.frame import save_figure

    # Otherwise a name with two `$` is read as a formula.
    with (
        matplotlib.rc_context({"text.parse_math": False}),
        storage_failures(folder, "cannot be written"),
    ):
        main = id_vs_ood.draw(search, records)
        body = "\n".join(_sections(search, records, checkpoints, main))
        save_figure(*main, folder / MAIN_FIGURE)
        page = _PAGE.substitute(title=escape(search.name), style=STYLE, body=body)
        (folder / REPORT_FILE).write_text(page, "utf-8")


def _sections(
    search: SearchRecord,
    records: Sequence[TrialRecord],
    checkpoints: str | None,
    main: tuple[Figure, str],
) -> Iterator[str]:
    """Parts of the body; `main` is the figure that is also written as PNG."""
    from tuning.confirmation.verdict import verdict
    from tuning.views.figures import details

    trials = [record for record in records if record.kind == "trial"]
    outcomes = [record.outcome for record in trials]
    counted = ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes))
    seconds = format_seconds(sum(record.seconds or 0.0 for record in records))
    yield f"<h1>{escape(search.name)}</h1>"
    yield _paragraph(
        f"Fine-tuned on {search.id_domain} for up to {search.total_steps} steps, also evaluated on "
        f"{', '.join(search.ood_domains) or 'no other domain'}. {len(trials)} trials: "
        f"{counted}. Time of all trials: {seconds}. {search.selection} "
        "The search does not read the test splits."
    )
    confirmed, best = list(_confirmation(search, records)), best_trial(search, records)
    with suppress(ConfigError):  # the damaged results of `confirm`, which `_confirmation` reports
        if found := verdict(search, records):
            if found.seeds or found.record.kind == "reference":
                yield f"<p><strong>{escape(f'{found.label}. {found.why}')}</strong></p>"
            commands = "\n".join(found.commands(shlex.quote(str(search.run_folder))))
            yield f"<pre>{escape(commands)}</pre>"
    if confirmed:
        yield '<p>Test accuracy over fresh seeds: <a href="#confirmed">results of confirm</a>.</p>'
        yield from ('<section id="confirmed">', *confirmed, "</section>")
    titles = {record.trial_id: trial_title(search, record) for record in records}
    linked = titles if len(records) <= MAX_LINKED else None
    figure, note = main
    description = "ID accuracy against mean OOD accuracy of each trial"
    if not confirmed:
        note += " Each trial is one training; lipsum-tune confirm measures the noise between seeds."
    if linked is not None:
        note += " Point at a trial to find it in table and curves; a click keeps it highlighted."
    if search.ood_domains:
        yield "<h2>In distribution, and under shift</h2>"
        yield _image(figure, description, note, linked)
    yield "<h2>Trials</h2>"
    yield _table(leaderboard(search, records))
    if search.ood_domains:
        yield "<h2>Domains</h2>"
        yield _image(details.domains_figure(search, records), "validation accuracy by domain")
    if best is not None:
        yield from _predictions(search, best, checkpoints)
    for title, table in (
        ("Methods", methods_table(search, records)),
        ("Selection rules", selection_table(search, records)),
    ):
        if table is not None:
            yield f"<h2>{title}</h2>"
            yield _table(table)
    yield "<h2>Curves</h2>"
    note = "Dotted: pruned, stopped or failed before the last step."
    points = [point for record in records for point in record.curve]
    if any(point.get(AVERAGED) for point in points):
        note += " Before the last step, the average of the weights was evaluated."
    if sample := sampled_images(search, points):
        note += f" Before the last step, {sample} were evaluated, so that a curve may jump there."
    curves = details.curves_figure(search, records)
    yield _image(curves, "objective of each trial by step", note, linked)
    yield from _hyperparameters(search, records)
    if (drift := details.drift_figure(search, records)) is not None:
        yield "<h2>Distance from the zero-shot model</h2>"
        note = (
            "Finished trials at their last step, means over the OOD domains. Dashed: zero-shot, at "
            "distance 0."
        )
        yield _image(drift, "OOD accuracy over the distance from the zero-shot model", note)
    if (sentence := belief_sentence(search, records, bool(confirmed))) is not None:
        yield "<h2>How sure the best trial is</h2>"
        yield _paragraph(sentence)
    if sentences := cost_sentences(search, records):
        yield "<h2>Cost</h2>"
        yield _paragraph(" ".join(sentences))
    if linked is not None:
        yield SCRIPT


def _hyperparameters(search: SearchRecord, records: Sequence[TrialRecord]) -> Iterator[str]:
    from tuning.views.figures import details

    slices, importance = details.slices_figure(records), details.importance_figure(records)
    yield "<h2>Hyperparameters</h2>"
    if slices is not None:
        note = "Finished trials, at their last step."
        yield _image(slices, "accuracy of finished trials over each hyperparameter", note)
    if (contours := details.contours_figure(search, records)) is not None:
        note = "The objective between the finished trials, interpolated; noise is not smoothed."
        yield _image(contours, "objective over pairs of hyperparameters", note)
    if importance is not None:
        note = (
            "Main effects of the hyperparameters, as ranks, in a forest fitted to the accuracies "
            "of these trials. They are relative: they add up to 1 even if none matters."
        )
        yield _image(importance, "importance of each hyperparameter", note)
    elif lacks := details.importance_lacks(records):
        yield _paragraph(lacks)


def belief_sentence(
    search: SearchRecord, records: Sequence[TrialRecord], confirmed: bool = False
) -> str | None:
    """Which trial is expected to be the best, and how sure that is; None if `beliefs` is empty.

    The probabilities are still too high with few trials and much noise, see `beliefs`.
    """
    found, chosen = beliefs(search, records), best_trial(search, records)
    if chosen is None or not found:
        return None
    expected = found[0]
    best = next(b for b in found if b.trial.trial_id == chosen.trial_id)
    metric = search.objectives[0].metric
    compared = "the finished trials" if len(found) < MAX_TRIALS else f"the {MAX_TRIALS} best trials"
    if search.constraints:
        missed = misses(search, records)[chosen.trial_id]
        compared += " that come closest to the" if missed else " that meet the"
        compared += " constraints"
    text = (
        f"By Gaussian processes through {compared}, which take the noise of single trainings out, "
        f"the hyperparameters of {expected.trial.trial_id} have the best expected {metric}, "
        f"{format_metric(metric)(expected.mean)}. They are the best of these with a probability "
        f"of {expected.chance:.0%}"
    )
    if best is expected:
        text += ", and the trial was measured as the best"
    else:
        text += f", those of {chosen.trial_id}, which was measured as the best, "
        text += f"with one of {best.chance:.0%}"
    if confirmed:
        text += ". The results of `lipsum-tune confirm` above are from fresh seeds"
    elif expected.chance < 0.9:
        text += ". `lipsum-tune confirm --top 3` compares the choices of the selection rules, this "
        text += "one included, and the three best measured trials, on fresh seeds"
    return text + ". With few trials and much noise, the probabilities are too high."


def _confirmation(search: SearchRecord, records: Sequence[TrialRecord]) -> Iterator[str]:
    """Test accuracy over fresh seeds, if `confirm` has results in the run folder."""
    from tuning.confirmation import report
    from tuning.confirmation.configurations import read_confirmation
    from tuning.views.figures.confirmed import confirmed_figure

    try:
        confirmation = read_confirmation(search, records)
    except ConfigError as error:
        yield _paragraph(f"The results of lipsum-tune confirm are left out: {error}.")
        return
    if confirmation is None or not confirmation.seeds:
        return
    yield "<h2>Confirmed on fresh seeds</h2>"
    yield _paragraph(
        "After the choice on validation splits, lipsum-tune confirm trained the chosen trials and "
        "plain fine-tuning with seeds that the search did not use, and read the test splits."
    )
    if (drawn := confirmed_figure(confirmation)) is not None:
        yield _image(drawn[0], "ID against OOD test accuracy of each seed", drawn[1])
    yield _table(report.confirmation_table(confirmation))


def _predictions(search: SearchRecord, best: TrialRecord, checkpoints: str | None) -> Iterator[str]:
    """Calibration, changes and confusions of the best trial, if its predictions are kept."""
    from tuning.views.figures.reliability import reliability_figure

    name = best.trial_id
    yield f"<h2>Predictions of {escape(name)}</h2>"
    found = kept_predictions(checkpoints, name) if checkpoints is not None else None
    if found is None:
        yield _paragraph(
            "Reliability diagrams and confusions are left out: the predictions, which are kept "
            "beside the weights of the trial after its last step, are not there."
        )
        return
    yield _table(changes_table(found, name))
    yield "<h3>Images that became right or wrong</h3>"
    images = changed_images(search, found)
    if images is None:
        yield _paragraph(
            "Left out: the images cannot be read here, or have changed since the search."
        )
    else:
        yield images
        yield _paragraph(
            f"The images of which {name} is most confident. True class, then the prediction of the "
            f"zero-shot model → that of {name}."
        )
    yield "<h3>Calibration</h3>"
    figures = [
        _img(reliability_figure(domain, name), f"reliability diagram of {domain.domain}")
        for domain in found
    ]
    yield f'<figure class="panels">{"".join(figures)}</figure>'
    yield _paragraph(
        "Accuracy of the images in each of 15 bins of confidence. Below the dashed line, the model "
        "is more confident than accurate. The area of a mark is the share of images in its bin."
    )
    yield f"<h3>Most frequent confusions of {escape(name)}</h3>"
    tables = [confusions_table(domain, name) for domain in found]
    blocks = "".join(
        f'<div class="table"><h4>{escape(table.title)}</h4>{html_table(table)}</div>'
        for table in tables
    )
    yield f'<div class="panels">{blocks}</div>'
    yield _paragraph(
        f"Number of validation images that {name} and the zero-shot model confuse in this way, and "
        "of all images of the class."
    )


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _image(
    figure: Figure, description: str, note: str = "", titles: Mapping[str, str] | None = None
) -> str:
    """A figure in a frame, with a note below it; `titles` of trials to highlight them in it."""
    shown = _img(figure, description)
    if titles is not None:
        with suppress(ParseError):  # a name has a character that XML does not allow
            shown = inline_svg(_svg(figure), description, titles)
    return f"<figure>{shown}</figure>{_paragraph(note)}"


def _img(figure: Figure, description: str) -> str:
    """A figure as an SVG of its own document, so that names in it cannot collide."""
    data = base64.b64encode(_svg(figure)).decode()
    return f'<img alt="{escape(description)}" src="data:image/svg+xml;base64,{data}">'


def _svg(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(
        drawn, format="svg", metadata={"Date": None}, dpi=_PIXELS_PER_INCH, bbox_inches="tight"
    )
    return drawn.getvalue()


def _table(table: ResultTable) -> str:
    notes = "".join(_paragraph(note) for note in table.notes)
    return f'<div class="table">{html_table(table)}</div>{notes}'
