import gc
import os
import random
import warnings
import weakref

import numpy as np
import torch

from tests.trainers.curves import changed
from trainers.fine_tune import fine_tune
from trainers.process_state import restored_state


def state():
    """What a trial may find changed by the one before it."""
    return {
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "draws": (random.random(), np.random.rand(), float(torch.rand(()))),
        "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
    }


def test_a_trial_finds_the_process_as_the_one_before(monkeypatch):
    with restored_state():
        before = state()
    monkeypatch.setenv("LIPSUM_TUNE_REMOVED", "1")
    with restored_state():
        del os.environ["LIPSUM_TUNE_REMOVED"]
        os.environ["LIPSUM_TUNE_ADDED"] = "1"
        warnings.simplefilter("error")
        torch.manual_seed(9)
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True)
        torch.set_grad_enabled(False)
        inside = state()
        assert all(inside[name] != before[name] for name in before)
    assert os.environ.pop("LIPSUM_TUNE_REMOVED") == "1"
    with restored_state():
        assert state() == before


def test_a_trial_that_has_ended_leaves_no_tensor_behind(trial):
    def tensors():
        return sum(isinstance(found, torch.Tensor) for found in gc.get_objects())

    trial = changed(trial, data__ood_domains=["sketch"])
    counts, models = [], []
    for seed in range(3):
        with restored_state():
            reports = fine_tune(trial.model_copy(update={"seed": seed}))
            models.append(weakref.ref(next(reports).training.setup.zero_shot))
            if seed == 1:  # early stopping ends a trial in the middle
                reports.close()
            else:
                next(reports)
            del reports
        counts.append(tensors())
    assert counts[0] >= counts[1] == counts[2]
    assert [model() for model in models] == [None] * 3


def test_cuda_is_not_initialised(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # as with a driver that is too old
    with restored_state():
        pass
    assert not torch.cuda.is_initialized()
