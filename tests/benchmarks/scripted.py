"""A searcher and a scheduler that write down every call that a tuner makes."""

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher


class Script(Searcher):
    """Proposes these configurations; None stands for no proposal at that time."""

    def __init__(self, configs, metric="value"):
        super().__init__(metric=metric, mode="max")
        self.waiting, self.names, self.calls = list(configs), {}, []

    def suggest(self, trial_id):
        if not self.waiting:
            return Searcher.FINISHED
        config = self.waiting.pop(0)
        if config is not None:
            self.names[trial_id] = len(self.names)
            self.note("suggest", trial_id)
        return config

    def on_trial_result(self, trial_id, result):
        self.note("searcher result", trial_id, result)

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.note("searcher complete", trial_id, result, error)

    def note(self, what, trial_id, result=None, *more):
        """Write down a call about a trial, if any, with the numbers of its result."""
        names = ("step", self.metric, "training_iteration", "done")
        seen = tuple((result or {}).get(name) for name in names)
        self.calls.append((what, self.names.get(trial_id), *seen, *more))


class StopsBelow(FIFOScheduler):
    def __init__(self, script, step, bound):
        super().__init__()
        self.script, self.step, self.bound = script, step, bound

    def on_trial_add(self, tune_controller, trial):
        self.script.note("scheduler add", trial.trial_id)

    def on_trial_result(self, tune_controller, trial, result):
        self.script.note("scheduler result", trial.trial_id, result)
        is_low = result["step"] == self.step and result[self.script.metric] < self.bound
        return TrialScheduler.STOP if is_low else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller, trial, result):
        self.script.note("scheduler complete", trial.trial_id, result)

    def on_trial_error(self, tune_controller, trial):
        self.script.note("scheduler error", trial.trial_id)
