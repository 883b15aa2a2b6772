"""The plain script beside which the product is measured takes the same steps."""

import numpy as np
import pytest
import torch

from tests.benchmarks.peers import fine_tune as plain
from trainers.fine_tune import fine_tune, training_batches
from trainers.loop.state import open_images, start
from trainers.texts import random_texts

SHARED = ("train/task_loss", "train/reg", "id_val/acc", "ood_val/mean_acc", "val/mean_acc")


def test_the_plain_script_has_the_figures_of_the_product(trial, monkeypatch):
    run = start(trial)
    vocabulary = run.zero_shot.vocabulary
    batches = list(training_batches(run, open_images(trial.data, "real", "train")))
    steps = iter(range(trial.steps))

    def tokens_of_the_product(_, size):
        drawn = random_texts(vocabulary, *size, seed=trial.seed, step=next(steps))[:, 1:9]
        return torch.from_numpy(np.searchsorted(vocabulary.ids, drawn.numpy()))

    with monkeypatch.context() as patched:
        patched.setattr(plain, "DATA", trial.data)
        patched.setattr(plain, "TEXTS", 16)
        patched.setattr(plain, "DataLoader", lambda *_, **__: batches)
        patched.setattr(torch, "randint", tokens_of_the_product)
        found = [metrics for metrics, _ in plain.train(3e-4, 1.0, 8, steps=6, every=3)]
    for own, report in zip(found, (report.metrics for report in fine_tune(trial)), strict=True):
        assert own["real/nll"] == pytest.approx(report["id_val/nll"], rel=1e-5)
        assert [own[n] for n in SHARED] == pytest.approx([report[n] for n in SHARED], rel=1e-5)
