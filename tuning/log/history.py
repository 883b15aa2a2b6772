"""What a journal tells: its events, and the history of a search that follows from them.

Each line has its number and a check sum. Lines that were damaged later are skipped, and named with
those that are missing. Events and keys that are not known are skipped, so that later versions can
add some.
"""

from __future__ import annotations

import copy
import json
import logging
import operator
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args
from zlib import crc32

from trainers.errors import ConfigError, listed
from tuning.log.paths import JOURNAL_FILE
from tuning.log.records import (
    CHOSEN,
    TESTED,
    TRAIN_CURVE,
    ByRule,
    Chosen,
    Model,
    Outcome,
    Reading,
    SearchOutcome,
    TrialRecord,
)

_CONTROL: Final = re.compile(rb"\\u00(?:0[0-8bcef]|1[0-9a-f]|7f|[89][0-9a-f])", re.IGNORECASE)
"""Control characters in JSON but tabs and ends of lines."""
FORMAT = 3
_MOST_MISSING: Final = 10_000
"""Most lines that are counted between two."""
_warn_once = cache(logging.getLogger(__name__).warning)
Event: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class History:
    """The contents of a journal."""

    records: tuple[TrialRecord, ...] = ()
    """References, then trials in the order of their proposal. A trial that was running when the
    driver was killed is `stopped` at the time of the last event."""
    zero_shot: dict[str, float] | None = None
    """Metrics of the model before any step; None until they are measured."""
    seconds: float = 0.0
    """Wall time of all sessions, each from its start to its last event."""
    outcome: SearchOutcome | None = None
    """How the last session ended; None if it was killed or is running."""
    ended_by: str = ""
    """The budget or order that ended it; empty if nothing did before all trials were done."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the configuration of the last session."""
    objects: dict[str, str] = field(default_factory=dict)
    """Class of the `sampler` and of the `pruner` that the last session got as objects."""
    run_id: str = ""
    """Identifier of the run. It stays the same when the run folder is moved."""
    used_ood: bool = False
    """Whether a session or a run of `search.warm_start` used OOD validation data."""
    controls: tuple[Event, ...] = ()
    """The events of `Journal.controlled`."""
    readings: tuple[Reading, ...] = ()
    """Of a confirmation: for which choices it has read the test splits. A call shows test
    accuracies once a training has finished, or the model was tested. One that goes on after an
    interruption has the choice of the call before it."""
    models: tuple[Model, ...] = ()
    """Of a confirmation: all models in the order of their choice. The last one may still be tested.
    An earlier one was, unless its weights went before its test."""
    wanted: int = 0
    """Of a confirmation: the number of seeds that the last call was asked for."""
    began_at: float = field(default=0.0, compare=False)
    """Unix time of the first event."""
    last_at: float = 0.0
    """Unix time of the last event but heartbeats."""
    zero_shot_at: float = 0.0
    """Unix time at which the zero-shot model was evaluated."""
    damage: str = ""
    """See `JournalReader.damage`."""


def line_of(event: Event, number: int) -> bytes:
    """The line of a journal with its number, counted from 1, and the check sum of all before it."""
    text = json.dumps({"line": number, **event}).encode()
    return text[:-1] + _seal(text)


def _seal(text: bytes) -> bytes:
    """What stands in a line in place of the last brace of an event."""
    return b', "crc": "%08x"}\n' % crc32(text)


def _event_of(line: bytes) -> Event | None:
    """The event of a line; None if the line is damaged."""
    length = len(_seal(b""))
    text = line[:-length] + b"}"
    if line[-length:] != _seal(text):
        return None
    with suppress(ValueError, RecursionError):
        # Somebody else's journal may have escapes, which a terminal would obey.
        event = json.loads(_CONTROL.sub(rb"\\ufffd", text))
        if isinstance(event, dict) and isinstance(event.get("line"), int):
            return event
    return None


def read_history(run_folder: Path, live: bool = False, whole: bool = False) -> History:
    """The contents of a journal, without an incomplete last line and without damaged ones.

    Args:
        live: see `JournalReader.history`.
        whole: see `JournalReader`.
    """
    return JournalReader(run_folder, whole).read(live)


class JournalReader:
    """Reads a journal, and knows the state of the search after the last event that it has read.

    A follower of a running search goes on where it stopped before.

    Args:
        whole: refuse a journal of which lines are damaged or missing. Otherwise the log names them,
            once, and the others are read.
    """

    def __init__(self, run_folder: Path, whole: bool = False) -> None:
        self._folder, self._whole = run_folder, whole
        self.replay = Replay()
        """The state of the search."""
        self._offset = 0
        self._last = self._last_sound = 0  # numbers of the last line, and of the last undamaged one
        self._damaged: dict[int, str] = {}  # what is wrong with a line, by its number

    def events(self, until: int | None = None) -> Iterator[Event]:
        """The events since the last call, without an incomplete last line, each once it counts.

        Where lines are damaged, events that need one of them are left out.

        Args:
            until: bytes of the file; lines that end after them are left for a later call.
        """
        path = self._folder / JOURNAL_FILE
        if not path.is_file():
            raise ConfigError(f"not a run folder: {JOURNAL_FILE} not found", source=self._folder)
        with path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                # With another byte in place of its end, a line is no incomplete one.
                if not line.endswith(b"\n") and _event_of(line[:-1] + b"\n") is None:
                    break
                if until is not None and self._offset + len(line) > until:
                    break
                event = _event_of(line)
                if self._offset == 0:
                    self._check_format(line, event)
                self._offset += len(line)
                if event is None:
                    self._last += 1
                    self._damaged[self._last] = "damaged"
                elif self._is_next(event["line"]) and self._is_used(event):
                    yield event
        if self._damaged and (self._whole or self._last_sound == 0):
            problem = f"{self.damage}; such a run can be read and exported, but not continued"
            raise ConfigError(problem if self._last_sound else self.damage, source=self._folder)
        if self._damaged:
            _warn_once(f"{self._folder.resolve()}: {self.damage}")

    @property
    def damage(self) -> str:
        """Which lines so far are damaged, missing or repeated, in one line; empty if none is."""
        if not self._damaged:
            return ""
        what = " or ".join(sorted({*self._damaged.values()}))
        numbers = listed(sorted(self._damaged))
        lines = f"line {numbers} is" if len(self._damaged) == 1 else f"lines {numbers} are"
        return f"{JOURNAL_FILE}: {lines} {what}"

    def read(self, live: bool = False) -> History:
        """The contents, see `history`, after what is new was read."""
        for _ in self.events():
            pass
        return self.history(live)

    def copy(self) -> JournalReader:
        """Another reader that goes on from here."""
        other = copy.copy(self)
        other.replay = self.replay.copy()
        other._damaged = dict(self._damaged)
        return other

    def history(self, live: bool = False) -> History:
        """The contents that have been read.

        Args:
            live: the driver is running. Otherwise, trials without an end were cut off by a kill.
        """
        return replace(self.replay.history(live), damage=self.damage)

    def _check_format(self, line: bytes, event: Event | None) -> None:
        """Refuse a journal of another format by its first line. The earliest had no check sums."""
        if b'"crc"' in line and event is None:
            return  # damaged
        found: object = FORMAT
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            found = (event or json.loads(line))["format"]
        if found != FORMAT:
            raise ConfigError(
                f"format {found!r:.20} is of another version of lipsum-tune, not {FORMAT}",
                source=self._folder / JOURNAL_FILE,
                hint="finish and export the run with that version",
            )

    def _is_next(self, number: int) -> bool:
        """Count an undamaged line. False if it has been read before."""
        if number <= self._last_sound:
            self._damaged[number] = "repeated"
            return False
        missing = range(self._last + 1, min(number, self._last + _MOST_MISSING))
        self._damaged |= dict.fromkeys(missing, "missing")
        self._damaged.pop(number, None)  # one damaged line may have become two
        self._last = self._last_sound = number
        return True

    def _is_used(self, event: Event) -> bool:
        """Add an event to the state. False if it needs another one that is damaged."""
        try:
            self.replay.add(event)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            if not self._damaged:
                problem = f"{JOURNAL_FILE}: line {event['line']} is damaged"
                raise ConfigError(problem, source=self._folder) from None
            return False
        return True


class Replay:
    """Builds a history from the events of a journal, in their order.

    Args:
        records: the state of trials before the first event.
    """

    def __init__(self, records: Iterable[TrialRecord] = ()) -> None:
        self.records = {record.trial_id: record for record in records}
        self.last = 0.0
        """Largest time of the last session, in Unix seconds."""
        self._found = History()  # without the records and the last session's time
        self._session_start: float | None = None
        self._choice = Reading((), 0, 0)  # of the last call of `confirm`

    def copy(self) -> Replay:
        """Another replay that goes on from here."""
        other = copy.copy(self)
        other.records = dict(self.records)
        return other

    def add(self, *events: Event) -> None:
        """Take the next events. One that is not known is skipped."""
        for event in events:
            self._add(event)

    def _add(self, event: Event) -> None:
        kind, at = event["event"], float(event["time"])
        if kind != "alive":
            self._found = replace(
                self._found,
                began_at=self._found.began_at or at,
                last_at=max(self._found.last_at, at),
            )
        if kind == "created":
            self._found = replace(self._found, run_id=event["id"])
        if kind == "session":
            self._close_session()
            self._session_start = self.last = at
            objects = dict(event.get("objects", {}))
            found: dict[str, Any] = {"fingerprints": event["fingerprints"], "objects": objects}
            # The first line, which has it as well, may be damaged.
            found["run_id"] = self._found.run_id or event.get("id", "")
            found["wanted"] = event.get("seeds", 0)
            trials = tuple(event.get("chosen", ()))
            self._choice = Reading(trials, found["wanted"], event.get("model", 0))
            self._found = replace(self._found, outcome=None, ended_by="", **found)
        self.last = max(self.last, at)
        if kind == "used_ood":
            self._found = replace(self._found, used_ood=True)
        elif kind == "control":
            self._found = replace(self._found, controls=(*self._found.controls, event))
        elif kind == "zero_shot":
            metrics = _numbers(event["metrics"])
            self._found = replace(self._found, zero_shot=metrics, zero_shot_at=at)
        elif kind == "session_ended":
            if event["outcome"] not in get_args(SearchOutcome):
                raise ValueError
            ended_by = str(event.get("reason", ""))
            self._found = replace(self._found, outcome=event["outcome"], ended_by=ended_by)
            self._close_session()
        elif kind in ("started", "report", "ended"):
            trial_id = event["trial"]
            self.records[trial_id] = self._changed(trial_id, kind, event, at)
        elif kind == CHOSEN:
            by_rule = tuple(
                ByRule(one["rule"], _chosen(one), one["left_out"])
                for one in event.get("by_rule", ())
            )
            notes = tuple(event["notes"])
            model = Model(
                event["number"], _chosen(event), event["finished"], notes, by_rule=by_rule
            )
            self._found = replace(self._found, models=(*self._found.models, model))
        elif kind == TESTED:
            models = tuple(
                _tested(model, event) if model.number == event["number"] else model
                for model in self._found.models
            )
            self._found = replace(self._found, models=models)
        is_result = kind == "ended" and event["outcome"] == "finished"
        choice = self._choice
        readings = self._found.readings
        if (is_result or kind == TESTED) and choice.trials and readings[-1:] != (choice,):
            self._found = replace(self._found, readings=(*readings, choice))

    def _changed(self, trial_id: str, kind: str, event: Event, at: float) -> TrialRecord:
        """The record of a trial after an event. Events after a final outcome change nothing."""
        if kind == "started":
            new = TrialRecord(
                trial_id,
                operator.index(event["number"]),
                event["kind"],
                dict(event["params"]),
                is_first_point=event.get("first_point", False),
                labels=tuple(event.get("labels", ())),
            )
            return self.records.get(trial_id, new).with_attempt(at, event["gpus"])
        record = self.records[trial_id]
        if kind == "report":
            return record.with_report(_numbers(event["report"]), at, event.get(TRAIN_CURVE))
        if event["outcome"] not in get_args(Outcome):
            raise ValueError
        return record.with_end(event["outcome"], at, event["error"], event.get("reason", ""))

    @property
    def _seconds(self) -> float:
        start = self.last if self._session_start is None else self._session_start
        return self._found.seconds + self.last - start

    def _close_session(self) -> None:
        self._found, self._session_start = replace(self._found, seconds=self._seconds), None
        for trial_id, record in self.records.items():
            if record.outcome == "running":
                self.records[trial_id] = record.with_end("stopped", self.last)

    def history(self, live: bool) -> History:
        """The history so far, see `read_history`."""
        now = self.copy()
        if not live:
            now._close_session()
        records = sorted(now.records.values(), key=lambda record: record.number)
        return replace(now._found, records=tuple(records), seconds=now._seconds)


def _numbers(metrics: dict[str, float]) -> dict[str, float]:
    if not all(isinstance(value, int | float) for value in metrics.values()):
        raise TypeError
    return metrics


def _chosen(event: Event) -> Chosen:
    """What was chosen as a model."""
    of_ends, line = event.get("of_ends", False), event.get("on_line", 1.0)
    return Chosen(event["kind"], event["metrics"], tuple(event["trainings"]), of_ends, line)


def _tested(model: Model, event: Event) -> Model:
    """A model with what was measured of it, and of those that rules have chosen beside it."""
    found = zip(model.by_rule, event.get("by_rule", ()), strict=True)
    by_rule = tuple(replace(one, test=_numbers(metrics)) for one, metrics in found)
    return replace(model, test=_numbers(event["metrics"]), by_rule=by_rule)
