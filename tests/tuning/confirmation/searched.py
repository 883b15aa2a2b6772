"""Searches whose weights have a known worth, to be confirmed without training."""

from functools import cache
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import torch
from ray import tune
from rich.console import Console

from tests.tuning import fakes
from tests.tuning.execution.inline_tuner import without_ray
from tests.tuning.execution.instant import instant_file, runner_of
from tests.tuning.execution.slot import METRICS, InstantSlot
from tests.tuning.run_folders import trial as searched
from tests.tuning.run_folders import write_run
from trainers.checkpoints.format import PREDICTIONS, Header, Progress
from trainers.checkpoints.storage import CHECKPOINT, write_weights
from trainers.config import TrialConfig
from trainers.data.store import open_store
from trainers.loop.training import start
from tuning.confirmation.confirm import confirm
from tuning.execution.cluster_resources import SLOT
from tuning.log.messages import MESSAGE, Failed
from tuning.run import load_run
from tuning.session import SearchOptions

QUIET = Console(quiet=True)
GOOD, SPOILT = 0.0, 1.0
"""Of the noise in a set of weights: with the latter, they guess."""


@cache
def plain(root):
    """The zero-shot weights, and the classes of their head."""
    data = {"root": str(root), "ood_domains": ["sketch", "clipart"]}
    training = start(TrialConfig.model_validate({"data": data, "method": {"name": "ft"}}))
    return training.student.plain_state(), training.setup.class_names


def noisy(root, noise, seed=0):
    """Zero-shot weights with noise: opposite for two seeds in a row, so that it is lost in a mean
    of these. Spoilt ones stay so in any mean."""
    weights, names = plain(root)
    of_pair = noise < SPOILT
    generator = torch.Generator().manual_seed(seed // 2 if of_pair else seed)
    sign = 1 - 2 * (seed % 2) if of_pair else 1
    found = {}
    for name, value in weights.items():
        drawn = torch.randn(value.shape, generator=generator) * sign * noise
        found[name] = value + drawn if value.is_floating_point() else value
    return found, names


class Slot(InstantSlot):
    """Leaves the weights of a training of `confirm`.

    `trained` has by trial, or by training, the mean accuracy that is reported, and the noise in the
    weights.
    """

    trained: ClassVar = {}
    fails: ClassVar = set()
    root = None

    def step(self):
        folder = self.progress.parent
        name = folder.name.removeprefix("train-")
        if name in self.fails:
            return {"done": True, MESSAGE: Failed("OutOfMemoryError: full")}
        message = super().step()
        if message["done"] and self.final_split:
            of_trial = self.trained.get(name.partition("-seed-")[0], (0.0, None))
            acc, noise = self.trained.get(name, of_trial)
            message[MESSAGE].metrics.update(dict.fromkeys((*METRICS[:3], "test/mean_acc"), acc))
            if noise is not None:
                weights, names = noisy(self.root, noise, self.trial["seed"])
                write_weights(open_store(folder), weights, Header(Progress(6), names))
                (checkpoint,) = folder.glob(f"{CHECKPOINT}*")
                (checkpoint / PREDICTIONS).write_bytes(b"not read here")
        return message


class Searched:
    """A search with two trials, and functions that keep weights of them and confirm it."""

    def __init__(self, root, tmp_path, **changes):
        domains = {"trial__data__ood_domains": ("sketch", "clipart"), "trial__steps": 6}
        self.file = instant_file(
            root, tmp_path, trial__data__root=str(root),
            search__references=["ft"], **domains, **changes,
        )  # fmt: skip
        self.root, self.folder = root, tmp_path / "small"
        self.trained, self.fails = {}, set()

    def write(self, *accs, **more):
        """Trials by their mean accuracy on the validation splits, in percent."""
        zero_shot = {"id_val/acc": 1.0, "ood_val/mean_acc": 1.0, "val/mean_acc": 1.0}
        records = [searched(number, acc, acc, **more) for number, acc in enumerate(accs)]
        write_run(self.folder, self.file, records, zero_shot=zero_shot)

    def keep(self, trial_id, noise, seed=0):
        weights, names = noisy(self.root, noise, seed)
        folder = open_store(self.folder / "train" / f"train-{trial_id}")
        write_weights(folder, weights, Header(Progress(fakes.TOTAL_STEPS), names))

    def confirm(self, **arguments):
        def trainable(checkpoints, resources, final_split, plugins):
            common = {"folder": Path(checkpoints), "runs": Path(self.file.search.storage)}
            common |= {"final_split": final_split, "root": self.root}
            common |= {"trained": self.trained, "fails": self.fails}
            return tune.with_resources(type("Slot", (Slot,), common), SLOT)

        def options(**given):
            return SearchOptions(runner=runner_of(trainable), **{"console": QUIET, **given})

        with (
            without_ray(mlflow=False, models=True),
            patch("tuning.confirmation.confirm.SearchOptions", options),
            patch("tuning.confirmation.confirm.complete_mlflow", return_value="is left out"),
        ):
            given = {"rules": ["objective"], "console": QUIET, **arguments}
            return confirm(self.folder, **given)

    def confirm_a_mean(self):
        """The model becomes the mean of two trainings of plain fine-tuning."""
        self.write(2.0, 3.0)
        self.trained = {"ft": (4.0, 0.1), "trial-001": (1.0, SPOILT)}
        return self.confirm(seeds=2)

    @property
    def models(self):
        return load_run(self.folder).confirmed.models

    @property
    def chosen(self):
        (model,) = self.models
        assert model.test
        return model.chosen
