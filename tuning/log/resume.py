"""What a resume may change.

Nothing may change that affects what the trials of a search measure, including the data; where the
data are stored may change. Trials, hours and the sampler are others' business: a resumed search may
get more of them, or another one. Another space is another search, with this one as its warm start.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.errors import ConfigError
from tuning.config.recorded import FREE, check_followed, differences
from tuning.config.schema import SearchFile
from tuning.config.validation import load_recorded
from tuning.log.environment import check_same_inputs
from tuning.log.folder import runs_named
from tuning.log.paths import CONFIG_FILE

if TYPE_CHECKING:
    from tuning.run import Run

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


def check_changes(run: Run, file: SearchFile) -> None:
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
