"""Short runs, and when the curves of two are the same."""

import pytest

from tests.trainers.methods.contract import untimed
from trainers.config import with_overrides
from trainers.fine_tune import fine_tune, training_batches
from trainers.loop.state import open_images

PARTS = "train/micro_batch_size"


def changed(config, **values):
    """Other values of dotted keys, with `__` for dots."""
    return with_overrides(config, {k.replace("__", "."): v for k, v in values.items()}, "test")


def short(trial, method, **overrides):
    """Three steps of a method, one report at their end, one shifted domain."""
    named = {"name": method} if isinstance(method, str) else method
    base = {"method": named, "steps": 3, "eval__every": 3, "data__ood_domains": ["sketch"]}
    return changed(trial, **base | overrides)


def first_batch(run):
    """Views and labels of the run's next step."""
    train = open_images(run.config.data, run.config.data.id_domain, "train")
    return next(training_batches(run, train))


def curve(config, resume_from=None):
    """The metrics of a run's reports from beginning to end, but those that a clock made."""
    return [untimed(report) for report in fine_tune(config, resume_from=resume_from)]


def saved_between(config, folder, save_now, step):
    """The curve of a run that was also saved at a step without a report."""
    found = []
    for report in fine_tune(config, save_now=iter(save_now).__next__):
        if report.metrics:
            found.append(untimed(report))
        else:
            assert report.step == step
            report.save(folder)
    return found


def assert_near(found, wanted):
    """Both have the same figures to 1e-4, of whatever parts a step was made."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {PARTS}:
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-4), name
