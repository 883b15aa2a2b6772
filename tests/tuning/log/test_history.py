import dataclasses
import random
import re

import pytest

from tests.tuning import fakes
from tests.tuning.log.test_journal import ENDED, STARTED, edit_times, write_trial
from tests.tuning.run_folders import edit_journal
from trainers.errors import ConfigError
from tuning.log.history import JournalReader, line_of, read_history
from tuning.log.journal import Journal
from tuning.log.paths import JOURNAL_FILE


def test_events_and_keys_of_later_versions_are_skipped(tmp_path):
    journal = Journal(tmp_path)
    journal.session_started({})
    write_trial(journal, ENDED)
    journal.session_ended("finished")
    journal.close()
    expected = read_history(tmp_path)

    def later(events):
        for event in events:
            yield event | {"later": {"a": [1]}}
            yield {"time": event["time"], "event": "news", "trial": "trial-000"}

    edit_journal(tmp_path, later)
    assert read_history(tmp_path) == expected
    Journal(tmp_path).close()


def test_a_view_reads_on_where_it_stopped(tmp_path):
    seen, reader = [], JournalReader(tmp_path)
    for metrics in ({"a": 1.0}, {"b": 2.0}):
        journal = Journal(tmp_path)
        journal.zero_shot(metrics)
        journal.close()
        with (tmp_path / JOURNAL_FILE).open("ab") as file:
            file.write(b'{"torn')
        seen += [event.get("metrics") for event in reader.events()]
    assert seen == [None, {"a": 1.0}, {"b": 2.0}]
    assert not reader.damage


def test_a_journal_of_another_version_or_none_is_refused(tmp_path):
    path, later = tmp_path / JOURNAL_FILE, {"event": "created", "format": 99, "time": 1}
    for number, line in ((2, b'{"event": "created", "format": 2}\n'), (99, line_of(later, 1))):
        path.write_bytes(line)
        with pytest.raises(ConfigError, match=f"format {number}"):
            read_history(tmp_path)
    path.unlink()
    with pytest.raises(ConfigError, match="not a run folder"):
        read_history(tmp_path)


@pytest.mark.parametrize(
    "event",
    [
        {"event": "started", "trial": "a", "number": "x"},
        {"event": "started", "trial": "a", "params": 7},
        {"event": "report", "trial": "trial-000", "report": {"step": 1, "id_val/acc": "abc"}},
        {"event": "ended", "trial": "trial-000", "outcome": "weird", "error": None},
        {"event": "zero_shot", "metrics": {"id_val/acc": None}},
    ],
)
def test_a_whole_line_with_a_value_of_another_type_is_refused(event, tmp_path):
    journal = Journal(tmp_path)
    journal.session_started({})
    journal.trial_started(STARTED)
    journal.close()
    started = {"number": 0, "kind": "trial", "params": {}, "gpus": 0}
    with (tmp_path / JOURNAL_FILE).open("ab") as file:
        file.write(line_of({"time": 1, **started, **event}, 4))
    with pytest.raises(ConfigError, match="line 4 is damaged"):
        read_history(tmp_path)


@pytest.fixture
def recorded(tmp_path):
    """The folder of a journal with each kind of event, and what it contains."""
    journal = Journal(tmp_path)
    journal.session_started({"trial": "abc"})
    journal.zero_shot({"id_val/acc": 53.0})
    curve = {"step": [1, 2], "train/loss": [2.0, 1.5]}
    journal.trial_started(ENDED)
    journal.trial_reported(dataclasses.replace(ENDED, curve=ENDED.curve[:1]), curve)
    for record in (fakes.reference(), fakes.trial(1, outcome="pruned")):
        write_trial(journal, record)
    journal.controlled({"stop": "trial-001"}, "1.json")
    journal.used_ood()
    journal.session_ended("finished")
    journal.close()
    return tmp_path, read_history(tmp_path)


def test_no_flipped_bit_changes_what_is_shown_without_a_word(recorded):
    folder, expected = recorded
    path, flip = folder / JOURNAL_FILE, random.Random(0)
    whole = path.read_bytes()
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    for at in [*ends, *flip.choices(range(len(whole)), k=600)]:
        content, line = bytearray(whole), whole[:at].count(b"\n") + 1
        content[at] ^= 1 << flip.randrange(8)
        path.write_bytes(content)
        found = read_history(folder)
        assert re.match(rf"journal\.jsonl: lines? {line}\b", found.damage)
        rest = {record.trial_id: record.curve for record in found.records}
        for record in expected.records:
            assert all(report in record.curve for report in rest.get(record.trial_id, ()))
        with pytest.raises(ConfigError, match=rf"lines? {line}\b"):
            Journal(folder)
        assert path.read_bytes() == content


def test_lines_that_are_missing_are_named(recorded):
    folder, expected = recorded
    path = folder / JOURNAL_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    for number in range(1, len(lines)):
        path.write_bytes(b"".join(lines[: number - 1] + lines[number:]))
        assert f"line {number} is missing" in read_history(folder).damage
    path.write_bytes(b"".join([lines[0], *lines[3:7], *lines[5:8], *lines[9:]]))
    damage = "lines 2, 3, 6, 7, 9 are missing or repeated"
    assert damage in read_history(folder).damage
    with pytest.raises(ConfigError, match=f"{damage}.*not continued"):
        Journal(folder)
    path.write_bytes(b"".join(lines))
    assert read_history(folder) == expected
    Journal(folder).close()


def test_damaged_lines_are_named_once(recorded, caplog):
    folder, _ = recorded
    path = folder / JOURNAL_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    for at in range(len(lines)):
        path.write_bytes(b"".join([*lines[:at], b"?" + lines[at][1:], *lines[at + 1 :]]))
        caplog.clear()
        for _ in range(2):
            damage = read_history(folder).damage
        assert damage == f"journal.jsonl: line {at + 1} is damaged"
        assert caplog.messages == [f"{folder}: {damage}"]


@pytest.mark.parametrize("change", [b"\xef\xbb\xbf{}", b"", b"?{}"], ids=["BOM", "lost", "damaged"])
def test_a_damaged_first_line_hides_no_other(recorded, change):
    folder, expected = recorded
    first, *others = (folder / JOURNAL_FILE).read_bytes().splitlines(keepends=True)
    changed = change.replace(b"{}", first)
    (folder / JOURNAL_FILE).write_bytes(b"".join([changed, *others]))
    found = read_history(folder)
    assert found.damage.startswith("journal.jsonl: line 1 is ")
    assert found == dataclasses.replace(expected, damage=found.damage)


def test_a_journal_without_a_sound_line_is_refused(recorded):
    folder, _ = recorded
    (folder / JOURNAL_FILE).write_text("{}\n{}\n")
    with pytest.raises(ConfigError, match="lines 1, 2 are damaged"):
        read_history(folder)


def test_an_attempt_that_a_clock_puts_before_its_start_takes_no_time(tmp_path):
    journal = Journal(tmp_path)
    journal.session_started({})
    started = dataclasses.replace(STARTED, gpus=2.0)
    journal.trial_started(started)
    journal.trial_started(started)  # its driver was lost
    journal.trial_ended(ENDED)
    edit_times(tmp_path, [1000, 1000, 1000, 400, 430])
    (record,) = read_history(tmp_path).records
    assert (record.seconds, record.gpu_seconds(430)) == (30, 60)


def test_escapes_of_a_foreign_journal_reach_no_terminal(tmp_path):
    journal = Journal(tmp_path)
    journal.session_started({})
    journal.trial_started(fakes.trial(0, outcome="running", params={"optim.lr": "\x1b[31m\x9b1m"}))
    journal.trial_ended(fakes.trial(0, outcome="failed", error="\x1b]0;title\x07\nat\tline 7"))
    journal.close()
    (record,) = read_history(tmp_path).records
    assert record.params == {"optim.lr": "\ufffd[31m\ufffd1m"}
    assert record.error == "\ufffd]0;title\ufffd\nat\tline 7"
