"""Recovery of reports that a killed driver did not write to the journal."""

from __future__ import annotations

import time
from dataclasses import replace

from trainers.checkpoints.format import read_header
from trainers.data.storage import Store
from trainers.errors import storage_failures
from tuning.checkpoints.files import kept_checkpoint
from tuning.runs.journal import History, Journal, read_history
from tuning.runs.records import STEP, SearchRecord, outcome_of


def recover(search: SearchRecord, journal: Journal, checkpoints: Store) -> History:
    """Complete the journal from the checkpoints of unfinished trials, and read it.

    Workers train on for a while after their driver was killed. The checkpoint from which a trial
    will continue contains all reports before it. A trial whose last report is found there is
    finished and does not run again.

    Args:
        checkpoints: the folder of all trials' checkpoints.

    Raises:
        StorageFailed: the checkpoints cannot be read.
    """
    for record in read_history(search.run_folder).unfinished:
        with storage_failures(checkpoints.url, "cannot be read"):
            kept = kept_checkpoint(checkpoints, record.trial_id)
            header = None if kept is None else read_header(kept)
            reports = [] if header is None else header.reports
        for report in reports:
            if report[STEP] > record.step:
                values = {name: float(value) for name, value in report.items()}
                record = replace(record.with_report(values), outcome="running")
                journal.trial_reported(record)
        if record.step >= search.total_steps:
            outcome, _ = outcome_of(record, search.total_steps)
            # At the time of the last event: its GPUs were not reserved since.
            journal.trial_ended(record.with_end(outcome, record.ended_at or time.time()))
    return read_history(search.run_folder)
