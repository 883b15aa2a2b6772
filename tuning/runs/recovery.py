"""What a session takes over from earlier ones of its run folder: studies, journal, lost reports."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from trainers.checkpoints.format import read_header
from trainers.config import TrialConfig
from trainers.data.storage import Store
from trainers.errors import storage_failures
from tuning.algorithms.method_studies import (
    Branch,
    ended_branches,
    open_branches,
    synchronise_branches,
)
from tuning.algorithms.warm_start import warm_start
from tuning.checkpoints.files import kept_checkpoint
from tuning.config.schema import SearchFile
from tuning.runs.journal import History, Journal, read_history
from tuning.runs.records import STEP, SearchRecord, TrialRecord


def take_up(
    search: SearchRecord, file: SearchFile, journal: Journal, checkpoints: Store, console: Console
) -> tuple[tuple[Branch, ...], History]:
    """Branches and journal, told what a kill kept them from; new studies also of earlier searches.

    A trial that had ended for Optuna, or reported its last step, has ended: it is not run again.

    Args:
        search: what it is after.
        file: its configuration.
        journal: of the run folder, with a session that has started.
        checkpoints: the folder of all trials' checkpoints.
        console: is told of what earlier searches found.

    Returns:
        The branches, and what the journal says now.

    Raises:
        ConfigError: earlier searches or the study cannot be used.
        StorageFailed: the checkpoints cannot be read, or made ready.
    """
    storage = file.search.study_storage
    branches = open_branches(search, file.search.sampler, file.search_space(), storage)
    unfinished = read_history(search.run_folder).unfinished
    ended = ended_branches(branches, search, unfinished)
    for record in unfinished:
        if record.trial_id not in ended:
            record = _with_lost_reports(record, file.trial, journal, checkpoints)
        outcome = "finished" if record.step >= search.total_steps else ended.get(record.trial_id)
        if outcome is not None:
            error = "the driver was killed before it wrote why" if outcome == "failed" else None
            journal.trial_ended(replace(record, outcome=outcome, error=error))
    history = read_history(search.run_folder)
    synchronise_branches(branches, search, history.records)
    for line in warm_start(branches, file, search, strict=not history.records):
        console.print(f"Warm start  {line}", soft_wrap=True, highlight=False)
    return branches, history


def _with_lost_reports(
    record: TrialRecord, trial: TrialConfig, journal: Journal, checkpoints: Store
) -> TrialRecord:
    """An unfinished trial with what its workers said when the driver no longer was there to hear.

    They train on until Ray ends them. The checkpoint from which training will go on knows of all
    reports before it. One that waits for OOD domains is told to the next driver where it waits;
    what follows it must not be written before, for a curve is cut off where a report comes late.
    """
    with storage_failures(checkpoints.url, "cannot be read"):
        kept = kept_checkpoint(checkpoints, record.trial_id)
        header = None if kept is None else read_header(kept)
        reports = [] if header is None else header.reports
    for report in reports:
        if report[STEP] <= record.step:
            continue
        said = {name: float(value) for name, value in report.items()}
        record = replace(record, outcome="running", curve=(*record.curve, said))
        journal.trial_reported(record)
    return record
