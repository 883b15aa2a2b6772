"""Short runs of every method, and when the curves of two are the same."""

import pytest

from trainers.config import with_overrides
from trainers.fine_tune import fine_tune, training_batches
from trainers.loop.images import open_images

FIELDS = {
    "ema": {"ema_decay": 0.5},
    "l2_sp": {"reg_weight": 0.5},
    "lipsum_ft": {"text_count": 16},
    "lp_ft": {"probe_fraction": 0.34, "probe_lr": 1e-2},
    "tpgm": {"projection_steps": 2, "projection_lr": 0.1},
    "r_adapter": {"ema_decay": 0.5},
}
"""Where the defaults are for longer runs."""

LR = {"lora": 1e-2, "r_adapter": 3e-3}
CLOCKS = ("cost/", "train/images_per_s")
PARTS = "train/micro_batch_size"


def changed(config, **values):
    """Other values of dotted keys, with `__` for dots."""
    return with_overrides(config, {k.replace("__", "."): v for k, v in values.items()}, "test")


def configured(trial, name, **fields):
    """The trial with a method of that name, its `FIELDS` and others."""
    method = {"name": name, **FIELDS.get(name, {}), **fields}
    lr = LR.get(name, trial.optim.lr)
    return with_overrides(trial, {"method": method, "optim.lr": lr}, "test")


def short(trial, method, **overrides):
    """Three steps of a method, one report at their end, one shifted domain."""
    named = {"name": method} if isinstance(method, str) else method
    base = {"method": named, "steps": 3, "eval__every": 3, "data__ood_domains": ["sketch"]}
    return changed(trial, **base | overrides)


def first_batch(training):
    """Views and labels of the run's next step."""
    data = training.setup.config.data
    train = open_images(data, data.id_domain, "train")
    return next(training_batches(training, train))


def untimed(report):
    """The report's metrics but those that a clock made."""
    return {k: v for k, v in report.metrics.items() if not k.startswith(CLOCKS)}


def curve(config, resume_from=None, device=None):
    """The metrics of a run's reports from beginning to end, but those that a clock made."""
    reports = fine_tune(config, resume_from=resume_from, device=device)
    return [untimed(report) for report in reports]


def assert_near(found, wanted, close=1e-4):
    """Both have figures that are so close, of whatever parts a step was made."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {PARTS}:
            assert one[name] == pytest.approx(other[name], rel=close, abs=close), name
