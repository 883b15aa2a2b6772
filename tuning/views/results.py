"""The files of a run that people read: tables and the page, written while a search runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuning.log.records import ZERO_SHOT
from tuning.run import Run
from tuning.views.follower import View, in_one_line
from tuning.views.tables import write_tables

if TYPE_CHECKING:
    from tuning.views.changed_images import Changed

PAUSE_SECONDS = 30.0
"""Time between two writes while the search runs."""
PAUSE_PER_WRITE = 50
"""The pause after a write is at least this many times its duration, so it takes at most 2 %."""


class ResultsView(View):
    """Tables and page, written every 30 s while the search runs.

    Args:
        checkpoints: folder or URL of the checkpoints of all trials, with predictions.
    """

    name = "the page"

    def __init__(self, checkpoints: str) -> None:
        self._checkpoints = checkpoints
        self.seconds = PAUSE_SECONDS

    def write(self, run: Run) -> None:
        """Write everything; images that became right or wrong at the end.

        Raises:
            StorageFailed: the disk is full or fails.
        """
        # Plotly takes a second to import.
        from tuning.views.changed_images import changed_images
        from tuning.views.page import write_page

        began = time.monotonic()
        write_tables(run.folder, run)
        best = run.conclusion.best
        changed: Sequence[Changed] | str = ()
        if best is not None and best.trial_id != ZERO_SHOT and not run.is_live:
            try:
                changed = changed_images(run, self._checkpoints, best.trial_id)
            except Exception as error:  # the page names it
                changed = in_one_line(error)
        write_page(run, changed=changed)
        self.seconds = max(PAUSE_SECONDS, PAUSE_PER_WRITE * (time.monotonic() - began))
