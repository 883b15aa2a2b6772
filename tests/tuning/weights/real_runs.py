"""Run folders of searches that never ran, with real trials in them."""

from tests.tuning.run_folders import search_file, write_run
from trainers.fine_tune import fine_tune
from trainers.loop.evaluate_run import evaluate_run
from trainers.loop.state import load_split, start
from tuning.checkpoints.files import kept_checkpoint
from tuning.runs.records import TrialRecord, trial_name
from tuning.runs.run_folder import TRAIN_FOLDER, load_run, trial_path

DOMAINS = ("sketch", "clipart")


def real_file(root, **changes):
    """A search over methods, learning rates and seeds with trials of two steps on tiny-clip."""
    space = {
        "parameters": {
            "optim.lr": {"type": "float", "low": 1e-6, "high": 1e-1, "log": True},
            "seed": {"type": "int", "low": 0, "high": 99},
        }
    }
    settings = {
        "trial__steps": 2,
        "trial__eval__every": 2,
        "trial__data__ood_domains": DOMAINS,
        "trial__method": {"name": "ft"},
        "trial__optim__lr": 5e-4,
        "trial__precision": "fp32",
        "search__space": space,
    }
    return search_file(root, **{**settings, **changes})


def real_run(folder, file, trials):
    """Train each proposal in this process, and leave what a search would leave."""
    records = []
    for number, params in enumerate(trials):
        config = file.trial_config(params)
        *_, last = fine_tune(config)
        name = trial_name(number)
        kept = folder / TRAIN_FOLDER / trial_path(name)
        last.save(kept / "checkpoint_2030-01-01_10-00-00.000000")
        report = {"step": float(last.step), **last.metrics}
        records.append(
            TrialRecord(name, number, "trial", dict(params), "finished", curve=(report,))
        )
    run = start(file.trial)
    zero_shot = evaluate_run(run, "val", load_split(file.trial, "val"))
    write_run(folder, file, records, zero_shot=zero_shot)
    return folder, records


def kept_weights(run_folder, trial_id):
    """The folder of a trial's weights, which are on this disk."""
    found = kept_checkpoint(load_run(run_folder).checkpoints, trial_id)
    return None if found is None else found.local_path()
