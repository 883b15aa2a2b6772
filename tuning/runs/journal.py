"""The journal of a run folder: every event of a search as one line of JSON, appended and synced.

It is the one place that says what happened, from which tables, MLflow and a resume are made. A line
is written before anybody else hears of the event, and never changed, so whatever kills the driver
leaves a journal that is right up to its last whole line. A line torn by the crash is cut off when
the journal is opened again. One that cannot be written, for the disk is full, ends the session's
journal: what happened later would rest on an event that is not there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from trainers.errors import ConfigError, StorageFailed, storage_failures
from tuning.runs.append_log import append_synced, is_open, open_alone
from tuning.runs.records import Outcome, SearchOutcome, TrialRecord

JOURNAL_FILE = "journal.jsonl"
FORMAT = 1
HEARTBEAT_SECONDS = 30.0
"""How much of the time of a session that was killed can be missing from the budgets."""

Event: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class History:
    """What a journal says."""

    records: tuple[TrialRecord, ...] = ()
    """References first, then trials in the order of their proposal; a trial that was running when
    the driver was killed is `stopped`, at the last time that the journal knows of."""
    zero_shot: dict[str, float] | None = None
    """The metrics of the model before any step, once they were measured."""
    seconds: float = 0.0
    """Wall clock of all sessions."""
    outcome: SearchOutcome | None = None
    """Of the last session; None where it was killed, or still runs."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Of the configuration that the last session ran with."""
    run_id: str = ""
    """Given to the run folder when it was made, and its own wherever it is moved."""

    @property
    def unfinished(self) -> tuple[TrialRecord, ...]:
        """The trials that a resume takes up again."""
        return tuple(record for record in self.records if record.outcome == "stopped")


class Journal:
    """The journal of one run folder, open for the one driver that may run it.

    Raises:
        ConfigError: another process has it open, it is of another version, or no locks are kept
            where it lies.
        StorageFailed: here and in all that writes: the disk is full, or fails.
    """

    def __init__(self, run_folder: Path) -> None:
        path = self._path = run_folder / JOURNAL_FILE
        self._failure: StorageFailed | None = None
        self._file = open_alone(path, f"{run_folder}: another process is running this search")
        self._last = 0.0
        if path.stat().st_size == 0:
            self._append({"event": "created", "format": FORMAT, "id": secrets.token_hex(4)})
        self.run_id = read_history(run_folder).run_id
        """As of `History`."""

    @property
    def failure(self) -> StorageFailed | None:
        """Why nothing is written any more; None where all was."""
        return self._failure

    def session_started(self, fingerprints: Mapping[str, str]) -> None:
        """A driver begins, or goes on, with a configuration of these hashes."""
        self._append({"event": "session", "fingerprints": dict(fingerprints)})

    def zero_shot(self, metrics: Mapping[str, float]) -> None:
        """The model before any step."""
        self._append({"event": "zero_shot", "metrics": dict(metrics)})

    def trial_started(self, record: TrialRecord) -> None:
        """An attempt at a trial begins."""
        start = {
            "kind": record.kind,
            "number": record.number,
            "params": dict(record.params),
            "gpus": record.gpus,
        }
        self._append({"event": "started", "trial": record.trial_id, **start}, at=record.started_at)

    def trial_reported(self, record: TrialRecord) -> None:
        """The last report of the record's curve, and the trial's end where it ended with it."""
        report = {"event": "report", "trial": record.trial_id, "report": dict(record.metrics)}
        # In one piece: a kill must not leave the report at which a trial was stopped without the
        # stop, for a resume would let it go on.
        ended = record.outcome != "running"
        self._append(report, *([(_end_of(record), record.ended_at)] if ended else ()))

    def trial_ended(self, record: TrialRecord) -> None:
        """An attempt at a trial ended."""
        self._append(_end_of(record), at=record.ended_at)

    def alive(self) -> None:
        """Nothing happened, but time went by; writes at most every HEARTBEAT_SECONDS."""
        if time.time() - self._last > HEARTBEAT_SECONDS:
            self._append({"event": "alive"})

    def session_ended(self, outcome: SearchOutcome) -> None:
        """The driver ends in order."""
        self._append({"event": "session_ended", "outcome": outcome})

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()

    def _append(
        self, event: Event, *more: tuple[Event, float | None], at: float | None = None
    ) -> None:
        self._last = time.time()
        lines = [
            json.dumps({"time": self._last if when is None else when, **what}) + "\n"
            for what, when in ((event, at), *more)
        ]
        if self._failure is not None:
            # Not the same one: raised where itself is being handled, it would be cut out of there.
            raise StorageFailed(str(self._failure))
        try:
            with storage_failures(self._path, "cannot be written"):
                append_synced(self._file, "".join(lines).encode())
        except StorageFailed as error:
            self._failure = error
            raise


def _end_of(record: TrialRecord) -> Event:
    end = {"outcome": record.outcome, "error": record.error}
    return {"event": "ended", "trial": record.trial_id, **end}


def is_running(run_folder: Path) -> bool:
    """Whether a driver on a machine that shares locks with this one has the journal open.

    Raises:
        ConfigError: no locks are kept where it lies, so nobody can tell.
    """
    return is_open(run_folder / JOURNAL_FILE)


def read_history(run_folder: Path, live: bool = False) -> History:
    """What the journal of a run folder says; a torn last line is left out.

    Args:
        run_folder: whose journal is read.
        live: the driver is alive, so what it has not ended is running, and not cut off.

    Raises:
        ConfigError: there is none, it is of another version, or damaged in its midst.
    """
    path = run_folder / JOURNAL_FILE
    reader = _Reader()
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    event = json.loads(line)
                    reader.take(event)
                except (ValueError, KeyError, TypeError):
                    raise ConfigError(f"{path}: line {number} cannot be read") from None
    except FileNotFoundError:
        raise ConfigError(f"{run_folder}: no run folder, for it has no {JOURNAL_FILE}") from None
    except _OtherFormat as other:
        raise ConfigError(
            f"{path}: format {other} of another version of lipsum-tune; this one reads {FORMAT}"
        ) from None
    return reader.history(live)


class _OtherFormat(Exception):
    pass


@dataclass
class _Reader:
    """Folds events into a history."""

    records: dict[str, TrialRecord] = field(default_factory=dict)
    reports: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    zero_shot: dict[str, float] | None = None
    seconds: float = 0.0
    outcome: SearchOutcome | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    run_id: str = ""
    began: float | None = None
    last: float = 0.0
    known: bool = False

    def take(self, event: Event) -> None:
        kind, at = event["event"], float(event["time"])
        if not self.known:
            if kind != "created" or event.get("format") != FORMAT:
                raise _OtherFormat(event.get("format"))
            self.known = True
            # Journals of earlier versions have no name but the time at which they were begun.
            self.run_id = event.get("id") or hashlib.sha256(str(at).encode()).hexdigest()[:8]
        if kind == "session":
            self._close_session()
            self.began, self.outcome, self.fingerprints = at, None, event["fingerprints"]
        self.last = max(self.last, at)
        if kind == "zero_shot":
            self.zero_shot = event["metrics"]
        elif kind == "started":
            self._start(event, at)
        elif kind == "report":
            self._report(event["trial"], event["report"])
        elif kind == "ended":
            self._end(event["trial"], event["outcome"], event["error"], at)
        elif kind == "session_ended":
            self.outcome = event["outcome"]
            self._close_session()

    def history(self, live: bool) -> History:
        """All of it; unless the driver lives, what seems to run was cut off by a kill."""
        if not live:
            self._close_session()
        records = [
            dataclasses.replace(record, curve=tuple(self.reports.get(trial_id, ())))
            for trial_id, record in self.records.items()
        ]
        records.sort(key=lambda record: record.number)
        return History(
            tuple(records),
            self.zero_shot,
            self.seconds,
            self.outcome,
            self.fingerprints,
            self.run_id,
        )

    def _close_session(self) -> None:
        if self.began is not None:
            self.seconds += self.last - self.began
        self.began = None
        for record in self.records.values():
            if record.outcome == "running":
                self._end(record.trial_id, "stopped", None, self.last)

    def _start(self, event: Event, at: float) -> None:
        earlier = self.records.get(event["trial"])
        self.records[event["trial"]] = TrialRecord(
            trial_id=event["trial"],
            number=event["number"],
            kind=event["kind"],
            params=event["params"],
            started_at=at,
            gpus=event["gpus"],
            earlier_seconds=(earlier.seconds or 0.0) if earlier else 0.0,
            earlier_gpu_seconds=earlier.gpu_seconds(at) if earlier else 0.0,
        )

    def _report(self, trial_id: str, report: dict[str, float]) -> None:
        # After a resume a report may come again; the later one is what training went on from.
        curve = self.reports.setdefault(trial_id, [])
        while curve and curve[-1]["step"] >= report["step"]:
            curve.pop()
        curve.append(report)

    def _end(self, trial_id: str, outcome: Outcome, error: str | None, at: float) -> None:
        record = self.records[trial_id]
        self.records[trial_id] = dataclasses.replace(
            record, outcome=outcome, error=error, ended_at=max(at, record.started_at or at)
        )
