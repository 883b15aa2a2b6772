"""Run folders as a search leaves them, written by hand."""

import dataclasses
import json

import pyarrow.parquet as pq

from tests.tuning import fakes
from trainers.data.roots import data_fingerprint
from trainers.data.schema import part_path
from trainers.overrides import nest
from tuning.config.schema import SearchFile
from tuning.log.folder import write_config
from tuning.log.history import line_of
from tuning.log.journal import Journal
from tuning.log.paths import JOURNAL_FILE

LR, WEIGHT = "optim.lr", "method.reg_weight"
ZERO_SHOT = fakes.report(0, 82.4, 61.0)


def search_file(root, **changes):
    """A search over two parameters, as long as the trials of `fakes`; dotted keys, `__` for dots.

    The data are those of `root`, the domains those of `fakes`.
    """
    space = {
        "name": None,
        "parameters": {
            LR: {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
            WEIGHT: {"type": "float", "low": 0.01, "high": 100.0, "log": True},
        },
        "initial_points": [{LR: 1e-5, WEIGHT: 1.0}],
    }
    values = {
        "trial": {
            "data": {"root": str(root)},
            "optim": {"batch_size": 8},
            "eval": {"every": 40, "line": "off"},
            "steps": fakes.TOTAL_STEPS,
        },
        "search": {"space": space},
    }
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return SearchFile.model_validate(nest(dotted, values))


def trial(number, id_acc, ood_acc, lr=1e-4, weight=1.0, **more):
    params = {LR: lr, WEIGHT: weight}
    return fakes.trial(number, id_acc, ood_acc, **{"params": params, **more})


def swap_classes(root, domain, split):
    """Give each image of the first class the second's name, and the reverse."""
    path = part_path(root, domain, split)
    table = pq.read_table(path)
    metadata = table.schema.metadata
    described = json.loads(metadata[b"huggingface"])
    label = described["info"]["features"]["label"]
    first, second, *others = label["names"]
    label["names"] = [second, first, *others]
    metadata[b"huggingface"] = json.dumps(described).encode()
    pq.write_table(table.replace_schema_metadata(metadata), path)


def edit_journal(folder, change):
    """Rewrite a journal, with the events that a function makes of the list of its events."""
    path = folder / JOURNAL_FILE
    events = [json.loads(line) for line in path.read_text().splitlines()]
    events = [{k: v for k, v in event.items() if k not in ("line", "crc")} for event in events]
    lines = [line_of(event, number) for number, event in enumerate(change(events), 1)]
    path.write_bytes(b"".join(lines))


def write_run(
    folder, file, records=(), *, zero_shot=ZERO_SHOT, outcome="finished", train_curve=None
):
    """All that a search leaves but its tables; an outcome of None is a driver that was killed."""
    (folder / "report").mkdir(parents=True)
    write_config(folder, file)
    environment = {"data": data_fingerprint(file.trial.data)}
    (folder / "environment.json").write_text(json.dumps(environment))
    journal = Journal(folder)
    journal.session_started(file.fingerprints())
    if zero_shot is not None:
        journal.zero_shot(zero_shot)
    for record in records:
        journal.trial_started(record)
        for number in range(len(record.curve)):
            curve = record.curve[: number + 1]
            so_far = dataclasses.replace(record, outcome="running", curve=curve)
            journal.trial_reported(so_far, train_curve if number == 0 else None)
        journal.trial_ended(record)
    if outcome is not None:
        journal.session_ended(outcome)
    journal.close()
    return folder
