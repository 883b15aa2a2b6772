"""A run folder in Python: `tuning.load_run("runs/mine")` has its tables, studies and figures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.runs import run_folder
from tuning.runs.conclusion import conclusion
from tuning.runs.records import TrialRecord
from tuning.runs.run_folder import RunFolder

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from tuning.views.figures import Plots


@dataclass(frozen=True)
class BestTrial:
    """The trial, reference or zero-shot model that all screens and pages name as the best."""

    record: TrialRecord
    run_folder: Path

    @property
    def trial_id(self) -> str:
        """Its name, such as `trial-007`, `ft` or `zero-shot`."""
        return self.record.trial_id

    @property
    def params(self) -> dict[str, Any]:
        """Its parameters, by dotted key; none of a reference."""
        return dict(self.record.params)

    @property
    def metrics(self) -> dict[str, float]:
        """Its last report."""
        return dict(self.record.metrics)

    def load_model(self) -> Any:
        """The fine-tuned open_clip model, float32 on the CPU, in evaluation mode.

        Raises:
            ConfigError: its weights are not kept.
        """
        from tuning.weights.export import load_classifier
        from tuning.weights.sources import find_source

        return load_classifier(find_source(self.run_folder, self.trial_id))[0]


@dataclass(frozen=True, repr=False)
class Run(RunFolder):
    """The contents of a run folder, with tables, studies and figures of them."""

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row for each trial, with the columns of `trials.parquet`."""
        from tuning.views.tables import trials_table

        # Without the first row, the zero-shot model's.
        return trials_table(self.search, self.history.records).slice(1).to_pandas()

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row for each report of each trial, with the columns of `curves.parquet`."""
        from tuning.views.tables import curves_table

        return curves_table(self.search, self.history.records).slice(1).to_pandas()

    @cached_property
    def study(self) -> optuna.Study:
        """The Optuna study of the trials that have ended, with the objectives as its values.

        It is in memory: changes to it do not affect the run. `optuna.visualization` draws it.
        """
        from tuning.views.dashboard import study_of

        return study_of(self.search, self.history.records)

    @property
    def plot(self) -> Plots:
        """The figure of the run, `.id_vs_ood()`; others are of `optuna.visualization`."""
        from tuning.views.figures import Plots

        return Plots(self.search, self.history.records)

    def __repr__(self) -> str:
        trials = sum(record.kind == "trial" for record in self.history.records)
        return f"<Run {self.folder.name}: {trials} trials>"

    def _repr_html_(self) -> str | None:
        # None is shown as text: the search has only begun.
        return None if self.history.zero_shot is None else self.plot._repr_html_()

    def load_model(self) -> Any:
        """The open_clip model that `export` writes, float32 on the CPU, in evaluation mode.

        It is the one that `confirm` has tested; before that, the training that won the search.

        Raises:
            ConfigError: its weights are not kept.
        """
        from tuning.weights.export import load_classifier
        from tuning.weights.sources import find_source

        return load_classifier(find_source(self.folder))[0]

    @property
    def best(self) -> BestTrial | None:
        """What the conclusion names as the best; None before a trial has finished."""
        record = conclusion(self.search, self.history.records).best
        return None if record is None else BestTrial(record, self.folder)


def load_run(folder: str | Path) -> Run:
    """Read a run folder, or the run of that name in `runs/`. It may be in progress.

    Its data need not be reachable.

    Raises:
        ConfigError: it is not a run folder, or one of another version.
    """
    loaded = run_folder.load_run(folder)
    return Run(loaded.folder, loaded.file, loaded.history, unknown=loaded.unknown)
