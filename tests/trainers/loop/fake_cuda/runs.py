"""Whole runs on the fake GPU, each for a process of its own."""

import gc
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import numpy as np
import pandas as pd  # noqa: F401  # PyArrow would import it in each forked process
import pytest
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_leaves

from tests.trainers.curves import FIELDS
from tests.trainers.loop.fake_cuda.device import (
    GPU,
    PHASES,
    FakeGpu,
    materialised,
    real,
    without_gpu,
)
from trainers import fine_tune as loop
from trainers.checkpoints.format import save_checkpoint
from trainers.config import TrialConfig, with_overrides
from trainers.loop import evaluate_run
from trainers.loop.fake_step import fake_run
from trainers.loop.snapshot import snapshot
from trainers.loop.step import Stepper
from trainers.methods.base import Loss, Method, cross_entropy
from tuning.config.validation import load_config

BATCH, CLASSES, IMAGES = 6, 4, 4


def trial(model, method, **values):
    """Two steps in uneven parts, with all that an evaluation has."""
    base = {
        "model": {"name": model},
        "data": {
            "root": "none",
            "suite": {
                "id_domain": "real",
                "ood_domains": ["sketch"],
                "templates": ["a {}.", "one {}."],
                "domains": {"sketch": {"unknown_classes": "skip"}},
            },
        },
        "method": {"name": method, **FIELDS.get(method, {})},
        "optim": {"batch_size": BATCH, "micro_batch_size": 4, "clip_grad_norm": 1.0},
        "eval": {"every": 1, "batch_size": 4, "line": [0.5], "rung_weights": "averaged"},
        "steps": 2,
    }
    return with_overrides(TrialConfig.model_validate(base), values, "test")


class Images:
    """A domain with fake views and real labels."""

    metadata, version, crop_pct = {}, "0", 1.0

    def __init__(self, name, classes):
        self.name, self.class_names = name, classes
        self.labels = np.arange(IMAGES) % len(classes)
        self.eval_rows = range(IMAGES)

    def __len__(self):
        return IMAGES

    def sampled(self, size):
        return self

    def eval_batches(self, image_input, batch_size, *_, pin_memory):
        for first in range(0, IMAGES, batch_size):
            labels = real(torch.from_numpy)(self.labels[first : first + batch_size])
            yield views(len(labels), image_input.size), labels


def views(number, size):
    return torch.empty(number, 3, size, size, dtype=torch.uint8)


def labels(number, classes=CLASSES):
    return real(torch.arange)(number) % classes


@contextmanager
def reading_no_images(run):
    """Within the block, `fine_tune` takes the steps of this run with fake views."""
    size = run.zero_shot.image_input.size
    domains = {
        "real": Images("real", run.class_names),
        "sketch": Images("sketch", (*run.class_names[:2], "other")),
    }

    def batches(state, images):
        for _ in range(state.progress.step, state.config.steps):
            yield views(BATCH, size), labels(BATCH)

    def samples(images, indices, *_):
        for batch in indices:
            yield views(len(batch), size), labels(len(batch))

    replaced = [
        (loop, "start", lambda *_, **__: run),
        (loop, "open_images", lambda *_: domains["real"]),
        (loop, "load_split", lambda *_: domains),
        (loop, "training_batches", batches),
        (evaluate_run, "eval_samples", samples),
        (evaluate_run, "LOSS_BATCH_SIZE", BATCH),
    ]
    with ExitStack() as stack:
        for owner, name, new in replaced:
            stack.enter_context(patch.object(owner, name, new))
        yield domains


@contextmanager
def on_gpu(config, classes=CLASSES):
    with fake_run(config, classes, as_on_gpu=False, device=GPU) as (run, _):
        yield run


def held(run):
    """All tensors that a run keeps from one step to the next."""
    parts = (run.weights, run.initial, run.average, run.ema, run.eval_weights, run.eval_head)
    state = run.student.parameters(), run.student.buffers(), run.zero_shot.clip.parameters()
    gradients = [p.grad for p in run.student.trained.values()]
    of_scaler = run.scaler._scale if run.scaler.is_enabled() else None
    found = [parts, *map(list, state), gradients, run.optimizer.state_dict(), run.since.sums]
    return [t for t in tree_leaves([*found, of_scaler]) if isinstance(t, torch.Tensor)]


def whole_run(config, *, save_to=None, resume_from=None):
    """Train and evaluate; a run that is saved is so at its first report, and evaluates the end of
    the line, too."""
    with on_gpu(config) as run, reading_no_images(run) as domains:
        for report in loop.fine_tune(config, device=GPU, resume_from=resume_from):
            assert {tensor.device for tensor in held(run)} == {GPU}
            if save_to is not None and not report.is_last:
                state = materialised(snapshot(run))
                with unset_fake_temporarily():
                    save_checkpoint(save_to, *state)
        assert report.is_last
        assert ("line/a" in report.metrics) == config.method.has_line
        if save_to is not None:
            evaluate_run.measure_end(run, "val", domains, point=0.5)
        assert all(p.grad is not None for p in run.student.trained.values())


def run_method(model, method, folder):
    """Take trials of a method one after the other: with float16, the same one resumed, and with
    bfloat16. None leaves more bytes behind than the first."""
    half, brain = trial(model, method, precision="fp16"), trial(model, method, precision="bf16")
    with without_gpu(), FakeGpu() as gpu:
        living = []
        for take in (
            partial(whole_run, half, save_to=folder),
            partial(whole_run, half, resume_from=folder),
            partial(whole_run, brain.model_copy(update={"steps": 1})),
        ):
            take()
            gc.collect()
            living.append(gpu.live)
        assert max(living) == living[0], f"bytes after each trial: {living}"


def run_faulty(fault, *arguments):
    """`run_method` with a faulty loss."""
    with patch.object(Method, "loss", FAULTS[fault]):
        run_method(*arguments)


def indexes_by_the_cpu(self, batch, step):
    chosen = real(torch.arange)(len(batch.labels))
    return Loss(batch.student.features[chosen].sum())


def needs_a_value(self, batch, step):
    task = cross_entropy(batch)
    return Loss(task * task.item())


def has_a_buffer_on_the_cpu(self, batch, step):
    buffer = torch.ones(batch.student.features.shape[1], 1)
    return Loss((batch.student.features @ buffer).sum())


def keeps_an_average(self, batch, step):
    KEPT.append([weight.detach().clone() for weight in step.weights.values()])
    return Loss(cross_entropy(batch))


KEPT = []
FAULTS = {
    loss.__name__: loss
    for loss in (indexes_by_the_cpu, needs_a_value, has_a_buffer_on_the_cpu, keeps_an_average)
}


def run_short_of_memory(model, method):
    """One allocation fails in each phase: steps and evaluation go on with half of the images, and
    the update of the weights raises the error."""
    config = trial(model, method, **{"optim.micro_batch_size": None})
    with without_gpu(), FakeGpu() as gpu, on_gpu(config) as run, reading_no_images(run) as domains:
        stepper, size = Stepper(run), run.zero_shot.image_input.size

        def counted(task):
            gpu.allocations = dict.fromkeys(PHASES, 0)
            task()
            gc.collect()
            return gpu.allocations

        def step():
            stepper.step(0, views(BATCH, size), labels(BATCH), lr=1e-4)

        def evaluate():
            evaluate_run.measure(run, "val", domains)

        usual = counted(step)
        living = gpu.live
        for phase, part in (("forward", 3), ("loss", 2), ("backward", 1)):
            gpu.fails = phase, usual[phase] // 2
            counted(step)
            assert (gpu.fails, run.micro_batch_size, gpu.live) == (None, part, living), phase
            assert {tensor.device for tensor in held(run)} == {GPU}

        run.optimizer.state.clear()
        gpu.fails = "optimizer", usual["optimizer"] // 2
        with pytest.raises(torch.OutOfMemoryError, match="no memory in optimizer"):
            counted(step)

        usual = counted(evaluate)["evaluation"]
        gpu.fails = "evaluation", usual // 2
        assert counted(evaluate)["evaluation"] > usual
        assert gpu.fails is None


def run_configuration(name):
    """Take one step of a ready configuration at its own batch size."""
    file = load_config(name, check=False)
    config, classes = file.trial, 1000 if "imagenet" in name else 345
    batch = config.optim.batch_size // file.search.resources.workers
    optim = config.optim.model_copy(update={"batch_size": batch})
    config = config.model_copy(update={"optim": optim})
    with without_gpu(), FakeGpu(), on_gpu(config, classes) as run:
        size = run.zero_shot.image_input.size
        Stepper(run).step(0, views(batch, size), labels(batch, classes), lr=config.optim.lr)
        assert {tensor.device for tensor in held(run)} == {GPU}
