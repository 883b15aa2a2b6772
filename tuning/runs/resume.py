"""What a resume may change, and what it may still do.

Nothing may change that affects what the trials of a search measure, including the data; where the
data are stored may change. Trials, hours and the sampler are others' business: a resumed search may
get more of them, or another one. Another space is another search, with this one as its warm start.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from trainers.errors import ConfigError
from tuning.config.recorded import FREE, check_followed, differences
from tuning.config.schema import SearchFile
from tuning.config.validation import load_recorded
from tuning.runs.environment import check_same_inputs
from tuning.runs.history import History
from tuning.runs.orders import recorded_orders
from tuning.runs.run_folder import CONFIG_FILE, RunFolder, runs_named

logger = logging.getLogger(__name__)


def earlier_run(file: SearchFile, storage: Path) -> Path | None:
    """The last run of this name and configuration in a folder, apart from keys of FREE."""
    for folder in reversed(runs_named(storage, file.search.name)):
        try:
            earlier, unknown = load_recorded(folder / CONFIG_FILE)
        except ConfigError as error:  # of another version, or its plug-in is gone: not this search
            logger.warning("%s is not continued: %s", folder, error)
            continue
        keys = differences(earlier, file, unknown, FREE)
        if not keys:
            return folder
        logger.warning("%s is not continued, since it differs in %s", folder, ", ".join(keys))
    return None


def check_changes(run: RunFolder, file: SearchFile) -> None:
    """Check that a configuration measures what the earlier trials of a run measured."""
    check_followed(run.unknown, run.folder / CONFIG_FILE)
    for key, (was, now) in differences(run.file, file).items():
        problem = f"it was {was!r} in this search and must not change"
        raise ConfigError(problem, key=f"--set {key}", value=now, hint=_hint(key))
    known = run.history.fingerprints
    for key, fingerprint in file.fingerprints().items():
        if known.get(key, fingerprint) != fingerprint:  # search.yaml was edited
            problem = f"{key} differs from what this search was run with"
            raise ConfigError(problem, source=CONFIG_FILE, hint=_hint(key))
    check_same_inputs(run.folder, file.trial)


def _hint(key: str) -> str:
    if key == "search.checkpoints.storage":
        return "its checkpoints would not be found"
    return "start a new search, with this one in search.warm_start.runs"


def larger_budget(run: RunFolder, **wanted: float | str | None) -> list[str]:
    """The overrides of a run for budgets by name, such as `30`, or `+8` for eight more.

    They are added to the budget, but to the trials that there are if a user has ended the search.
    """
    given = {name: str(value) for name, value in wanted.items() if value is not None}
    return [f"search.budget.{name}={_total(run, name, value)}" for name, value in given.items()]


def _total(run: RunFolder, name: str, given: str) -> float:
    number = r"\+?[0-9]{1,9}" if name == "trials" else r"\+?[0-9]{1,9}(\.[0-9]{1,9})?"
    if not re.fullmatch(number, given):
        option = f"--{name.replace('_', '-')}"
        raise ConfigError("write a number, or +8 for eight more", key=option, value=given)
    amount = int(given) if name == "trials" else float(given)
    if not given.startswith("+"):
        return amount
    limit = getattr(run.file.search.budget, name)
    if name != "trials":
        return float(f"{(limit or used_hours(run.history)[name]) + amount:.6g}")
    begun = num_begun(run.history)
    was_ended = any("end" in order for order in recorded_orders(run.history))
    return amount + (begun if was_ended else max(begun, limit))


def num_begun(history: History) -> int:
    """Number of trials that have begun, references not included."""
    return sum(record.kind != "reference" for record in history.records)


def used_hours(history: History) -> dict[str, float]:
    """Hours of wall clock of all sessions and GPU-hours, under the names of their limits."""
    gpu_seconds = sum(record.gpu_seconds(0.0) for record in history.records)
    return {"hours": history.seconds / 3600, "gpu_hours": gpu_seconds / 3600}


def nothing_left(history: History, file: SearchFile) -> ConfigError | None:
    """Why a session with this budget would end before it began; None if there is work."""
    budget = file.search.budget
    for name, used in used_hours(history).items():
        limit = getattr(budget, name)
        if limit is not None and used >= limit:
            hint = f"--{name.replace('_', '-')} +{limit:g} gives as many again"
            return ConfigError("used up", key=f"search.budget.{name}", value=limit, hint=hint)
    begun = num_begun(history)
    is_unfinished = any(record.outcome == "stopped" for record in history.records)
    if history.outcome != "finished" or is_unfinished or begun < budget.trials:
        return None
    problem, hint = f"all {begun} trials have ended", "--trials +8 adds eight"
    return ConfigError(problem, key="search.budget.trials", value=budget.trials, hint=hint)
