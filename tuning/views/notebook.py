"""A run in a notebook: its leaderboard and figures, also of a running search."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.figure import Figure

from tuning.runs.records import SearchRecord, TrialRecord
from tuning.views.figures import details, id_vs_ood
from tuning.views.figures.frame import png_of
from tuning.views.leaderboard import leaderboard, warning_of_reference
from tuning.views.result_table import html_table


@dataclass(frozen=True, repr=False)
class Plots:
    """The figures of a run. Notebooks show them; `savefig` writes them."""

    search: SearchRecord
    records: Sequence[TrialRecord]

    def id_vs_ood(self) -> Figure:
        """Accuracy in distribution against mean accuracy out of distribution, a mark a trial."""
        drawn, _ = id_vs_ood.draw(self.search, self.records)
        return drawn

    def importance(self) -> Figure:
        """Importance of each hyperparameter for ID and OOD accuracy, by Optuna's fANOVA.

        A sentence in place of bars if too few trials have finished, or fewer than two parameters
        vary.
        """
        drawn = details.importance_figure(self.records)
        lacks = details.importance_lacks(self.records) or ""
        return drawn or details.sentence_figure(lacks)

    def _repr_html_(self) -> str:
        """The main figure and the leaderboard."""
        # Otherwise a name with two `$` is read as a formula.
        with matplotlib.rc_context({"text.parse_math": False}):
            image = base64.b64encode(png_of(self.id_vs_ood())).decode()
        figure = f'<img alt="ID against OOD accuracy" src="data:image/png;base64,{image}">'
        table = leaderboard(self.search, self.records)
        warning = warning_of_reference(self.search, self.records)
        first = f"<p><strong>{escape(warning)}</strong></p>" if warning else ""
        notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
        return f"{first}{figure}{html_table(table)}{notes}"
