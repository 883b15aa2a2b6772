"""Which model a search recommends, why, and the commands to go on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuning.confirmation.configurations import read_confirmation
from tuning.confirmation.results import Confirmation
from tuning.reporting.formatting import trial_label
from tuning.reporting.leaderboard import warning_of_reference
from tuning.runs.records import STEP, SearchRecord, TrialRecord
from tuning.selection.ranking import best_trial, choice_of, stronger_reference


@dataclass(frozen=True)
class Verdict:
    """The trial, reference or zero-shot model to use."""

    trial_id: str
    """`trial-007`, `ft` or `zero-shot`."""
    label: str
    """`trial-007`, `FT, not tuned (lr = 6e-04)` or `zero-shot`."""
    is_trial: bool
    why: str
    """How it was chosen."""
    confirmation: Confirmation | None
    """All that `confirm` has measured so far."""

    def commands(self, run: str) -> list[str]:
        """The commands to go on with, each with a comment.

        Args:
            run: what a user types for the run folder.
        """
        export = f"lipsum-tune export {run} --output model   # {self.label}, for open_clip"
        if not self.is_trial:
            return [f"lipsum-tune extend {run} --trials 8   # no trial is better yet", export]
        if self.confirmation:
            return [export]
        return [f"lipsum-tune confirm {run}   # fresh seeds, then the test splits, once", export]


def verdict(search: SearchRecord, records: Sequence[TrialRecord]) -> Verdict | None:
    """The model to use: the best trial, or the reference or zero-shot model that beats all trials.

    If `confirm` has trained the best trial again, the trials and references that it trained are
    compared by their means over fresh seeds, on the validation splits: test splits choose nothing.

    Returns:
        None if no trial has a value of the objective yet.

    Raises:
        ConfigError: the results of `confirm` are damaged.
    """
    confirmation, best = read_confirmation(search, records), best_trial(search, records)
    if best is None:
        return None
    won = stronger_reference(search, records) or best
    why = warning_of_reference(search, records) or choice_of(search, records, best)
    if confirmation is not None:
        means = {
            one.trial_id: confirmation.means(one.trial_id) for one in confirmation.configurations
        }
        again = [
            replace(record, curve=({STEP: record.step, **means[record.trial_id]},))
            for record in records
            if means.get(record.trial_id)
        ]
        best_again = best_trial(search, again) if means.get(best.trial_id) else None
        if best_again is not None:
            won = stronger_reference(search, again) or best_again
            seeds = f"as the mean over {len(confirmation.seeds)} fresh seeds"
            why = search.selection.replace("at the last step", seeds)
    label, is_trial = trial_label(search, won), won.kind == "trial"
    return Verdict(won.trial_id, label, is_trial, why, confirmation)
