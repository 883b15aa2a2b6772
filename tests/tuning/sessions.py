"""A session of a search without Ray: its driver, with trials by hand."""

from dataclasses import replace
from unittest.mock import patch

from tests.tuning import fakes
from trainers.config import TrialConfig
from tuning.algorithms.studies import create_studies
from tuning.config.schema import BudgetConfig, ResourcesConfig, SamplerConfig
from tuning.driver import Driver
from tuning.log.journal import Journal
from tuning.log.messages import Ended, Failed, Reported
from tuning.log.records import TrialRecord


class Session:
    """What one driver does with a run folder, until it is killed or ends.

    Args:
        spaces: of each method, or the one space of a search.
    """

    def __init__(
        self,
        search,
        spaces,
        *,
        trials=100,
        references=(),
        config_of=lambda record: TrialConfig(),
        pruner=lambda: None,
        sampler=None,
        check_ray=lambda: None,
        max_failures=3,
        **settings,
    ):
        self.search = search
        self.journal = Journal(search.folder)
        self.journal.session_started({})
        sampler = sampler or SamplerConfig.model_validate(settings)
        spaces = spaces if isinstance(spaces, dict) else {None: spaces}
        run_id = search.history.run_id or search.folder.name
        self.studies = create_studies(search.goal, spaces, sampler, trials, run_id, pruner)
        self.studies.enqueue_first_points()
        self.studies.replay(self.journal.trial_events)
        changes = {
            "references": references,
            "budget": BudgetConfig(trials=trials, failures=None),
            "resources": ResourcesConfig(max_failures=max_failures),
        }
        file = search.file
        file = file.model_copy(update={"search": file.search.model_copy(update=changes)})
        fixed = [TrialRecord(name, -1, "reference", {}) for name in references]
        run = replace(search.run(), file=file, history=self.journal.history())
        vars(run)["goal"] = search.goal
        self.driver = Driver(
            run, self.journal, studies=self.studies, fixed=fixed, check_ray=check_ray
        )
        self.recorder = self.driver.recorder
        self._config_of = config_of

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        """End the session as a kill does."""
        self.journal.close()

    @property
    def study(self):
        (only,) = self.studies.studies
        return only.study

    def propose(self):
        """The record of the next trial; None if there is none."""
        with patch("tuning.driver.config_of", lambda _, record: self._config_of(record)):
            found = self.driver.next()
        return self.recorder.records[found["trial_id"]] if isinstance(found, dict) else None

    def start(self):
        """Propose a trial and start it; None at the end."""
        record = self.propose()
        if record is None:
            return None
        self.driver.started(record.trial_id)
        return self.recorder.records[record.trial_id]

    def report(self, trial_id, step, value, goes_on=True, **metrics):
        """Let a trial report an objective, and stop it if it should not go on.

        Returns:
            Whether it goes on.
        """
        report = {"step": step, "val/mean_acc": value, **metrics}
        if not goes_on:
            self.driver.orders.stopped.add(trial_id)
        is_last = step >= fakes.TOTAL_STEPS
        return self.driver.answered(trial_id, Reported(report, is_last=is_last))

    def end(self, trial_id, error=False):
        """Let the process of a trial end."""
        self.driver.answered(trial_id, Failed("RuntimeError: of a trial") if error else Ended())
        return self.recorder.records[trial_id]

    def run(self, value, step=fakes.TOTAL_STEPS, **metrics):
        """Run one trial with a single report; it is pruned if that is before the last step."""
        record = self.start()
        if record is not None:
            self.report(record.trial_id, step, value, goes_on=False, **metrics)
            record = self.recorder.records[record.trial_id]
        return record
