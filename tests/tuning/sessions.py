"""A session of a search without Ray: its proposer, recorder and studies, driven by hand."""

from ray.tune.search import Searcher

from tests.tuning import fakes
from trainers.config import TrialConfig
from tuning.algorithms.budget import Budget
from tuning.algorithms.searcher import TrialProposer
from tuning.algorithms.seeds import SeedRace
from tuning.algorithms.studies import create_studies
from tuning.config.schema import BudgetConfig, SamplerConfig, SeedsConfig
from tuning.runs.journal import Journal, read_history, trial_events
from tuning.runs.messages import Ended, Failed, Reported
from tuning.runs.recorder import Recorder
from tuning.runs.records import TrialRecord


class Session:
    """What one driver does with a run folder, until it is killed or ends."""

    def __init__(
        self,
        search,
        space,
        *,
        trials=100,
        references=(),
        callbacks=(),
        config_of=lambda record: TrialConfig(),
        pruner=lambda: None,
        sampler=None,
        seeds=None,
        **settings,
    ):
        self.search = search
        self.journal = Journal(search.run_folder)
        self.journal.session_started({})
        history = read_history(search.run_folder)
        sampler = sampler or SamplerConfig.model_validate(settings)
        self.studies = create_studies(search, space, sampler, pruner)
        self.studies.enqueue_first_points()
        self.studies.replay(trial_events(search.run_folder))
        limit = BudgetConfig(trials=trials)
        budget = Budget(limit, search, history, self.journal.now)
        deciders = (self.studies, budget)
        self.recorder = Recorder(
            search, self.journal, callbacks, history.records, deciders=deciders
        )
        self.race = SeedRace(SeedsConfig(**seeds), search, 0, budget) if seeds is not None else None
        self.proposer = TrialProposer(
            self.recorder,
            config_of,
            fixed=[TrialRecord(name, -1, "reference", {}) for name in references],
            studies=self.studies,
            may_propose=budget.allows,
            seeds=self.race,
            earlier=history.records,
        )

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
        """The Tune configuration of the next trial; None at the end."""
        spec = self.proposer.suggest("")
        return None if spec == Searcher.FINISHED else spec

    def start(self):
        """Propose a trial and start it; None at the end."""
        spec = self.propose()
        if spec is None:
            return None
        self.recorder.started(spec["trial_id"])
        return self.recorder.records[spec["trial_id"]]

    def report(self, trial_id, step, value, goes_on=True, **metrics):
        """Let a trial report an objective."""
        report = {"step": step, "val/mean_acc": value, **metrics}
        is_last = step >= self.search.total_steps
        self.recorder.answered(trial_id, Reported(report, is_last=is_last), goes_on)

    def end(self, trial_id, error=False):
        """Let the process of a trial end."""
        self.recorder.answered(trial_id, Failed("RuntimeError: of a trial") if error else Ended())
        return self.recorder.records[trial_id]

    def run(self, value, step=fakes.TOTAL_STEPS, **metrics):
        """Run one trial with a single report; it is pruned if that is before the last step."""
        record = self.start()
        if record is not None:
            self.report(record.trial_id, step, value, goes_on=False, **metrics)
            record = self.recorder.records[record.trial_id]
        return record
