"""A run: what a run folder contained at one moment, and what follows from it.

`tuning.load_run("runs/mine")` has its tables, studies and figures in Python.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.data.store import Store, open_store, url_of
from trainers.errors import ConfigError, listed, suggestion
from tuning.config.schema import SearchFile
from tuning.config.validation import load_recorded
from tuning.log.folder import RUNS, find_run, method_of, places_of_runs, runs_in
from tuning.log.history import History, JournalReader, read_history
from tuning.log.journal import Journal, is_running
from tuning.log.paths import (
    CONFIG_FILE,
    CONFIRM_FOLDER,
    TRAIN_FOLDER,
    checkpoint_root_of,
    results_path,
)
from tuning.log.records import Model, TrialRecord
from tuning.results.conclusion import Conclusion, conclusion
from tuning.results.estimates import Confirmation, settings_of
from tuning.results.goal import Goal, goal_of

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from tuning.views.figures import Plots

_warn_once = cache(logging.getLogger(__name__).warning)


@dataclass(frozen=True, repr=False, eq=False)
class Run:
    """A snapshot of a run folder, with tables, studies and figures of it.

    It never changes. What follows from it is computed once, where it is asked.
    """

    folder: Path
    file: SearchFile
    history: History
    confirmation: History | ConfigError = field(default_factory=History)
    """The contents of the journal of `confirm`; the error if it cannot be read."""
    is_live: bool = False
    """Whether a driver runs the search."""
    unknown: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """Keys of `search.yaml` that this version does not know, with their values."""

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """References, then trials in the order of their proposal."""
        return self.history.records

    @cached_property
    def goal(self) -> Goal:
        """What the search is to find.

        Raises:
            ConfigError: the zero-shot model has not been evaluated yet.
        """
        found = self.history
        if found.zero_shot is None:
            hint = found.damage or ("wait" if is_running(self.folder) else "resume it")
            problem = "the zero-shot model has not been evaluated yet"
            raise ConfigError(problem, source=self.folder, hint=hint)
        return goal_of(self.file, found.zero_shot, found.used_ood)

    @cached_property
    def conclusion(self) -> Conclusion:
        """What the search has found so far."""
        return conclusion(self)

    @property
    def best(self) -> TrialRecord | None:
        """What the conclusion names as the best; None before a trial has finished."""
        return self.conclusion.best

    @cached_property
    def settings(self) -> Confirmation | None:
        """What `confirm` has measured of settings, with all seeds; None before the first result.

        Raises:
            ConfigError: its journal cannot be read.
        """
        return settings_of(self)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that were tested, in the order of their choice."""
        return tuple(model for model in self.confirmed.models if model.test)

    @property
    def model(self) -> Model | None:
        """The model of the search, which was tested last."""
        return self.models[-1] if self.models else None

    @property
    def confirmed(self) -> History:
        """The contents of the journal of `confirm`.

        Raises:
            ConfigError: it cannot be read.
        """
        if isinstance(self.confirmation, ConfigError):
            raise self.confirmation
        return self.confirmation

    def method(self, record: TrialRecord) -> str:
        """The fine-tuning method of a trial, a reference or the zero-shot model."""
        return method_of(self.file, record)

    @property
    def checkpoint_root(self) -> str:
        """The folder or URL that contains all checkpoints of the run."""
        storage = self.file.search.checkpoints.storage
        return checkpoint_root_of(self.folder, storage, self.file.search.name, self.history.run_id)

    @property
    def checkpoints(self) -> Store:
        """The folder of all trials' checkpoints.

        Raises:
            StorageFailed: it cannot be reached.
        """
        return open_store(url_of(self.checkpoint_root, TRAIN_FOLDER))

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row for each trial, with the columns of `trials.parquet`."""
        from tuning.views.tables import trials_table

        # Without the first row, the zero-shot model's.
        return trials_table(self).slice(1).to_pandas()

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row for each report of each trial, with the columns of `curves.parquet`."""
        from tuning.views.tables import curves_table

        return curves_table(self).slice(1).to_pandas()

    @cached_property
    def study(self) -> optuna.Study:
        """The Optuna study of the trials that have ended, with the objectives as its values.

        It is in memory: changes to it do not affect the run. `optuna.visualization` draws it.
        """
        from tuning.views.dashboard import study_of

        return study_of(self, self.records)

    @property
    def plot(self) -> Plots:
        """The figure of the run, `.id_vs_ood()`; others are of `optuna.visualization`."""
        from tuning.views.figures import Plots

        return Plots(self)

    def __repr__(self) -> str:
        trials = sum(record.kind == "trial" for record in self.records)
        return f"<Run {self.name}: {trials} trials>"

    def _repr_html_(self) -> str | None:
        # None is shown as text: the search has only begun.
        return None if self.history.zero_shot is None else self.plot._repr_html_()

    def load_model(self, trial: str | None = None) -> Any:
        """The open_clip model that `export` writes, float32 on the CPU, in evaluation mode.

        Args:
            trial: ID of a trial, `ft` or `zero-shot`. By default the model that `confirm` has
                tested; before that, the training that won the search.

        Raises:
            ConfigError: its weights are not kept.
        """
        from tuning.weights.export import load_classifier
        from tuning.weights.sources import find_source

        return load_classifier(find_source(self.folder, trial))[0]


class RunReader:
    """Reads a run folder again and again. The next `Run` costs what was added to its journals.

    Args:
        journal: of the driver, whose reading goes on here; None to begin with the first line.
    """

    def __init__(self, folder: Path, file: SearchFile, journal: Journal | None = None) -> None:
        self._folder = folder
        self._file = file
        self._journal = journal
        self._reader = JournalReader(folder) if journal is None else journal.reader()
        self._confirmation = JournalReader(folder / CONFIRM_FOLDER)

    def is_new(self) -> bool:
        """Read on, and return whether anything but heartbeats has come.

        Of a journal that is being written, lines are read once they are synced: a view that saw a
        line which is cut off again could remove what a resume needs.
        """
        until = None if self._journal is None else self._journal.synced
        return bool([e for e in self._reader.events(until) if e["event"] != "alive"])

    def run(self, is_live: bool) -> Run:
        """What has been read."""
        history = self._reader.history(is_live)
        confirmed = read_confirmed(self._folder, self._confirmation)
        return Run(self._folder, self._file, history, confirmed, is_live)


def read_confirmed(folder: Path, reader: JournalReader | None = None) -> History | ConfigError:
    """The contents of the journal of `confirm`, empty before the first call; or its error.

    Args:
        reader: which goes on reading; by default a new one.
    """
    path = results_path(folder)
    if not path.is_file():
        return History()
    try:
        return (reader or JournalReader(path.parent)).read()
    except ConfigError as error:
        return error


def load_run(folder: str | Path, *, whole: bool = False) -> Run:
    """Read a run folder, or the run of that name in `runs/`. It may be in progress.

    Its data need not be reachable.

    Args:
        whole: refuse a damaged journal, as a resume does. Otherwise the log names what is missing.

    Raises:
        ConfigError: it is not a run folder, or one of another version.
    """
    folder = find_run(folder)
    file, unknown = load_file(folder)
    is_live = is_running(folder)
    history = read_history(folder, is_live, whole)
    if is_live and history.outcome is None:  # a resumed session continues stopped trials first
        records = [
            replace(record, outcome="running") if record.outcome == "stopped" else record
            for record in history.records
        ]
        history = replace(history, records=tuple(records))
    confirmed = read_confirmed(folder)
    return Run(folder.resolve(), file, history, confirmed, is_live, unknown=unknown)


def load_file(
    folder: Path, overrides: Sequence[str] = (), *, check: bool = False
) -> tuple[SearchFile, dict[str, Any]]:
    """The configuration of a run folder, and the keys that this version does not know.

    The arguments are those of `load_recorded`.

    Raises:
        ConfigError: it is not a run folder, or one of another version.
    """
    config = folder / CONFIG_FILE
    if not config.is_file():
        problem = f"not a run folder: {CONFIG_FILE} not found"
        known = [run.name for place in places_of_runs() for run in runs_in(place)]
        hint = suggestion(folder.name, known) or f"there are no runs in {RUNS.absolute()}"
        raise ConfigError(problem, source=folder, hint=hint)
    file, unknown = load_recorded(config, overrides, check=check)
    if unknown:
        keys = listed(sorted(unknown))
        _warn_once(f"{config.resolve()}: keys that this version does not know are skipped: {keys}")
    return file, unknown
