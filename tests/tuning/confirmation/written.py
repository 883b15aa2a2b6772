"""Results of `confirm`, written by hand as its run would."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.tuning import fakes
from tuning.log.journal import Journal
from tuning.log.paths import predictions_path, results_path
from tuning.log.records import ZERO_SHOT, TrialRecord
from tuning.results.estimates import training_name

SEEDS = (1000, 1001)


def result(key, metrics, labels=("objective #1",), number=0, params=None):
    """A training that has ended with these metrics; an error in place of them is a failure."""
    trial_id, seed = key
    if seed is None:
        return TrialRecord(trial_id, -1, "reference", {}, "finished", curve=({**metrics},))
    params = {"optim.lr": 1e-5} if params is None else params
    record = TrialRecord(
        training_name(key), number, "trial", {**params, "seed": seed}, labels=labels, started_at=1.0
    )
    if isinstance(metrics, str):
        return record.with_end("failed", 2.0, metrics)
    return record.with_report({"step": fakes.TOTAL_STEPS, **metrics}).with_end("finished", 2.0)


def write_predictions(folder, key, right):
    """Store predictions of a training: column -> domain -> which images are right."""
    path = predictions_path(folder, training_name(key))
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = {domain: len(of) for domain, of in right["predicted"].items()}
    domains = [domain for domain, size in sizes.items() for _ in range(size)]
    columns = {name: np.concatenate([*of.values()]).astype(int) for name, of in right.items()}
    pq.write_table(pa.table({"domain": domains, "label": [1] * len(domains), **columns}), path)


def write_results(folder, found, labels=("objective #1",), seeds=0):
    """Add results to a confirmation, for which so many seeds were asked: trial and seed -> metrics,
    or -> error."""
    path = results_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(path.parent)
    chosen = dict.fromkeys(name for name, _ in found if name not in ("ft", ZERO_SHOT))
    journal.session_started({}, chosen=[*chosen], seeds=seeds)
    for number, (key, metrics) in enumerate(found.items()):
        if key[0] == ZERO_SHOT:
            journal.zero_shot(metrics)
            continue
        record = result(key, metrics, () if key[0] == "ft" else labels, number)
        journal.trial_started(record)
        journal.trial_reported(record) if record.curve else journal.trial_ended(record)
    journal.session_ended("finished")
    journal.close()


def confirmed(folder, seeds=SEEDS, off=0.0, wanted=0, **accs):
    """Write results of `confirm`: mean validation accuracy over two seeds, and on the test splits.

    The seeds are two points apart.

    Args:
        off: added to the ID accuracy on validation splits, which is 80.
    """
    results = {
        (name.replace("_", "-"), seed): {
            "val/mean_acc": validated + noise,
            "id_val/acc": 80.0 + off,
            "id_test/acc": tested + noise,
            "ood_test/mean_acc": tested + noise - 20,
        }
        for name, (validated, tested) in accs.items()
        for seed, noise in zip(seeds, (-1.0, 1.0), strict=False)
    }
    write_results(folder, results, seeds=wanted)
