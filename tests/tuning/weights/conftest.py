"""One real run for the tests of this folder, which only read it."""

import pytest

from tests.tuning.run_folders import search_file, write_run
from trainers.fine_tune import fine_tune
from trainers.loop.images import load_split
from trainers.loop.measure import measure_zero_shot
from trainers.loop.setup import set_up
from tuning.checkpoints import kept_checkpoint
from tuning.log.paths import TRAIN_FOLDER, trial_path
from tuning.log.records import TrialRecord, trial_name
from tuning.run import load_run


@pytest.fixture(scope="session")
def real(images_root, tmp_path_factory):
    """Three trials of plain fine-tuning, one of FLYP, and one whose weights are not kept.

    They have two steps on tiny-clip, are trained in this process, and leave what a search would.
    """
    parameters = {
        "optim.lr": {"type": "float", "low": 1e-6, "high": 1e-1, "log": True},
        "seed": {"type": "int", "low": 0, "high": 99},
    }
    file = search_file(
        images_root,
        trial__steps=2,
        trial__eval__every=2,
        trial__data__ood_domains=("sketch", "clipart"),
        trial__method={"name": "ft"},
        trial__optim__lr=5e-4,
        trial__precision="fp32",
        search__space={"parameters": parameters},
    )
    trials = [{"seed": seed, "optim.lr": 5e-4} for seed in range(5)]
    trials[3] |= {"method.name": "flyp", "optim.lr": 1e-4}
    folder, records = tmp_path_factory.mktemp("runs") / "mine", []
    for number, params in enumerate(trials):
        *_, last = fine_tune(file.trial_config(params))
        name = trial_name(number)
        kept = folder / TRAIN_FOLDER / trial_path(name) / "checkpoint_2030-01-01_10-00-00.000000"
        last.save(kept)
        report = {"step": float(last.step), **last.metrics}
        records.append(TrialRecord(name, number, "trial", params, "finished", curve=(report,)))
    (kept / "student.safetensors").unlink()
    zero_shot = measure_zero_shot(set_up(file.trial), load_split(file.trial, "val"))
    write_run(folder, file, records, zero_shot=zero_shot)
    return folder, records


def kept_weights(run_folder, trial_id):
    """The folder of a trial's weights, which are on this disk."""
    return kept_checkpoint(load_run(run_folder).checkpoints, trial_id).local_path()
