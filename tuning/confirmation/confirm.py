"""Confirm the choices of a search: train them again with fresh seeds, then read the test splits.

The validation accuracy that chose a trial is optimistic: it is the best of many, on the images and
with the seed that chose it. A confirmation is not: rules that use validation data alone decide
before what is trained, the seeds are new and the same for all configurations and plain fine-tuning
(so that differences are paired by seed), and each training reads the test splits once, after its
last step. Apart from `zero-shot`, which selects nothing, no other command reads the test splits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from itertools import count, islice
from pathlib import Path

from rich.console import Console

from trainers.checks import check_data
from trainers.config import DataConfig
from trainers.data.data_root import resolve_root
from trainers.data.fingerprint import split_fingerprint
from trainers.data.storage import open_store, url_of
from trainers.errors import ConfigError, quoted
from tuning.checkpoints.files import TRAIN_FOLDER, remove_folder
from tuning.checkpoints.storage_check import check_nodes
from tuning.confirmation.configurations import chosen
from tuning.confirmation.jobs import jobs, run_jobs
from tuning.confirmation.results import (
    CONFIRM_FOLDER,
    FT,
    Configuration,
    Confirmation,
    Key,
    ResultsFile,
    read_results,
    write_results_table,
)
from tuning.confirmation.tracking import log_confirmation
from tuning.execution.ray_errors import resumable
from tuning.execution.ray_session import ray_session
from tuning.execution.ray_watch import watched_ray
from tuning.runs.environment import check_same_inputs
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.runs.run_folder import check_is_no_copy, load_run
from tuning.views.formatting import show_phase, untuned_label
from tuning.views.html_report import REPORT_FOLDER, write_report
from tuning.views.mlflow.client import tracking_uri

TEST_SPLITS_FILE = "test_splits.json"
"""Fingerprints of the test splits, by domain."""
FIRST_FRESH_SEED = 1000
"""Added to the seed of the search's trials."""
MAX_SEEDS = 1000


def confirm(
    folder: Path,
    *,
    top: int = 1,
    seeds: int = 5,
    rules: Sequence[str] = (),
    address: str | None = None,
    console: Console | None = None,
) -> Confirmation:
    """Train the chosen configurations of a search with fresh seeds, then read the test splits.

    Results of earlier calls are read from the run folder instead of being measured again. At the
    end the report of the run is written again, with the results of all calls.

    Args:
        top: number of trials to confirm, best first by the search's objective.
        rules: names of `tuning.selection.rules` whose choices are confirmed; by default all but the
            Pareto front.
        address: of a Ray cluster; by default the one in `RAY_ADDRESS`, or a new local one.
        console: gets a line per result; by default the standard error.

    Raises:
        ConfigError: no trial has finished, no such rule, fewer than two seeds, a domain without a
            test split, or data that changed since the search.
        StorageFailed: results or checkpoints cannot be written.
    """
    console = console or Console(stderr=True)
    if not 2 <= seeds <= MAX_SEEDS:
        problem = f"must be at least 2, for an interval, and at most {MAX_SEEDS}"
        raise ConfigError(problem, key="--seeds", value=seeds)
    run = load_run(folder)
    check_is_no_copy(run)
    search, file, records = run.search, run.file, run.history.records
    configurations = (Configuration(FT, {}, method=FT), *chosen(search, records, top, rules))
    if run.history.outcome is None:
        console.print(
            f"note: the search {search.name} is still running or was killed; trials that finish "
            "later are not among the choices"
        )
    fresh = fresh_seeds(file.trial.seed, records, seeds)
    wanted = jobs(file, configurations, fresh)
    failed: dict[Key, str] = {}
    checkpoints = url_of(run.home, CONFIRM_FOLDER, TRAIN_FOLDER)
    if any(job.result.key not in read_results(run.folder) for job in wanted):
        data = file.trial.data
        check_data(data, [*data.trial_parts, *((domain, "test") for domain in data.domains)])
        resolve_root(data.root, progress=True)
        check_same_inputs(run.folder, file.trial)
        go_on = "put that right, and the same command goes on from the results so far"
        with (
            resumable(go_on),
            closing(ResultsFile(run.folder)) as results,
            ray_session(address),
            watched_ray(go_on),
        ):
            stored = read_results(run.folder)
            _check_test_splits(run.folder, data, has_results=bool(stored))
            missing = [job for job in wanted if job.result.key not in stored]
            check_nodes(file, run.home)
            done = f"{len(wanted)} evaluations, {len(wanted) - len(missing)} of them done"
            trained = f"all but zero-shot are trained on {seeds} seeds: {done}"
            show_phase(console, "Confirm", f"{_models(search, configurations)}; {trained}")
            chosen_by = [objective.metric for objective in search.objectives]
            chosen_by += [constraint.metric for constraint in search.constraints]
            failed = run_jobs(
                missing, file.search.resources, results, checkpoints, console, chosen_by
            )
    stored = read_results(run.folder)
    with suppress(OSError, ConfigError):  # left by a kill just after the result was stored
        left = {info.base_name for info in open_store(checkpoints).list()}
        for job in wanted:
            if job.result.key in stored and job.name in left:
                remove_folder(url_of(checkpoints, job.name))
    write_results_table(run.folder, list(stored.values()))
    confirmation = Confirmation(search, fresh, configurations, stored, failed)
    uri = tracking_uri(file.search.tracking.uri, run.folder.parent)
    run = load_run(folder)  # the search may have gone on
    report, train = run.folder / REPORT_FOLDER, url_of(run.home, TRAIN_FOLDER)
    try:
        write_report(run.search, run.history.records, report, train)
    except Exception as error:  # the results are stored, and the command prints them
        console.print(f"note: the report cannot be written: {error}", soft_wrap=True)
    log_confirmation(uri, file.search.tracking.experiment, confirmation)  # uploads the report
    return confirmation


def _models(search: SearchRecord, configurations: Iterable[Configuration]) -> str:
    """What is evaluated, each trial with the rules that chose it."""
    names = [
        f"{one.trial_id} ({', '.join(one.labels)})" if one.labels else untuned_label(search)
        for one in configurations
    ]
    return ", ".join(["zero-shot", *names])


def _check_test_splits(folder: Path, data: DataConfig, *, has_results: bool) -> None:
    """Check that the test splits are those of the results so far; record them before the first.

    Raises:
        ConfigError: a test split has changed.
    """
    store, path = resolve_root(data.root), folder / CONFIRM_FOLDER / TEST_SPLITS_FILE
    now = {domain: split_fingerprint(store, domain, "test") for domain in data.domains}
    if has_results and path.is_file():
        seen = json.loads(path.read_text(encoding="utf-8"))
        if changed := [domain for domain in data.domains if seen.get(domain) != now[domain]]:
            raise ConfigError(
                f"the test split of {quoted(changed)} changed since results were measured on it",
                source=path,
                hint=f"restore the old data, or move {path.parent} away to begin again",
            )
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def fresh_seeds(base: int, records: Iterable[TrialRecord], number: int) -> tuple[int, ...]:
    """Seeds from base + FIRST_FRESH_SEED on that no trial of the search has used."""
    used = {record.params.get("seed") for record in records}
    fresh = (seed for seed in count(base + FIRST_FRESH_SEED) if seed not in used)
    return tuple(islice(fresh, number))
