import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainers.curves import PARTS, assert_near, curve, first_batch, short
from tests.trainers.loop.short_memory import EXHAUSTED, NO_HANDLE, limit_images
from trainers import fine_tune as loop
from trainers.data.transforms import normalise
from trainers.fine_tune import fine_tune
from trainers.loop.images import open_images
from trainers.loop.training import Training, optimizer_of, start


@pytest.mark.parametrize(
    "method",
    [
        {"name": "lipsum_ft", "text_count": 16},
        {"name": "l2_sp", "reg_weight": 3},
        {"name": "flyp"},
        {"name": "star_ft"},
        {"name": "r_adapter", "ema_decay": 0.5},
    ],
    ids=lambda method: method["name"],
)
def test_a_step_is_the_same_in_parts_of_any_size(trial, method):
    """Adam's eps is above rounding, or the sign of gradients that are 0 would be of no account:
    in the first step of StarFT those of words that only its spurious texts have."""
    whole, *parts = (
        curve(short(trial, method, steps=2, optim__micro_batch_size=size, optim__eps=1e-3))
        for size in (8, 1, 3)
    )
    for size, found in zip((1, 3), parts, strict=True):
        assert_near(found, whole)
        assert {report[PARTS] for report in found} == {size}


def test_a_factor_of_a_hundredth_trains_a_head_that_contains_the_scale(trial):
    """The gradient with respect to such a head is a hundredth, and so is its eps here. Each eps is
    above rounding, for gradients that are 0."""
    rates = {"lr": 1e-3, "head_lr_factor": 0.01, "warmup_fraction": 0.0}
    optim = {f"optim__{k}": v for k, v in {**rates, "weight_decay": 10.0, "eps": 1e-3}.items()}
    config = short(trial, "ft", steps=2, eval__every=2, **optim)
    (report,) = fine_tune(config)

    training = start(config)
    encoder = {name: p for name, p in training.student.trained.items() if name != "head"}
    scaled_head = torch.nn.Parameter(100 * training.initial["head"])
    groups = [{"params": encoder.values(), "eps": 1e-3}, {"params": [scaled_head], "eps": 1e-5}]
    optimizer = torch.optim.AdamW(groups, weight_decay=10.0)
    images = open_images(config.data, config.data.id_domain, "train")
    for lr, (views, labels) in zip(
        (1e-3, 5e-4), loop.training_batches(training, images), strict=True
    ):
        features = training.student(normalise(views, training.setup.zero_shot.image_input)).features
        logits = training.student.logit_scale / 100 * features @ scaled_head.T
        optimizer.zero_grad()
        functional.cross_entropy(logits, labels).backward()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()

    found = report.training.student.weights
    torch.testing.assert_close(found.pop("head"), scaled_head / 100, rtol=0, atol=1e-6)
    for name, value in found.items():
        torch.testing.assert_close(value, encoder[name], rtol=0, atol=1e-5)


def test_clipping_is_pytorchs_and_reports_the_unclipped_norm(trial):
    """With so large an eps, Adam's step is in proportion to the gradient."""
    limit, settings = 0.5, {"optim__eps": 1.0, "optim__lr": 1.0, "optim__warmup_fraction": 0.0}
    one_step = short(trial, "ft", steps=1, optim__clip_grad_norm=limit, **settings)
    (report,) = fine_tune(one_step)

    training = start(one_step)
    training.student.requires_grad_(True)
    views, labels = first_batch(training)
    images = normalise(views, training.setup.zero_shot.image_input)
    functional.cross_entropy(training.student(images).logits, labels).backward()
    parameters = list(training.student.parameters())
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    torch.optim.AdamW(parameters, lr=1.0, eps=1.0, weight_decay=0.0).step()

    assert norm > 2 * limit
    assert report.metrics["train/grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    stepped = dict(report.training.student.named_parameters())
    for name, parameter in training.student.named_parameters():
        assert torch.allclose(stepped[name], parameter, atol=1e-6), name


@pytest.fixture
def limited(monkeypatch):
    """Makes models of runs that begin from now on run out of memory above so many images."""

    def limit(most, where="student", **options):
        monkeypatch.setattr(loop, "start", limit_images(most, where, **options))

    return limit


@pytest.mark.parametrize(
    ("method", "where"),
    [("ft", "student"), ("ft", "backward"), ("flyp", "backward"), ("star_ft", "teacher")],
)
def test_a_step_that_does_not_fit_is_retried_in_halves(trial, method, where, limited):
    from_the_start = curve(short(trial, method, steps=2, optim__micro_batch_size=2))
    limited(3, where)
    halved = curve(short(trial, method, steps=2))
    assert halved == from_the_start  # 8, 4, 2
    assert {report[PARTS] for report in halved} == {2}


class Exhausted(TorchDispatchMode):
    """Counts the operations in the block, of which one may run out of memory."""

    def __init__(self, at):
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.at:
            raise EXHAUSTED.with_traceback(None)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["lipsum_ft", "flyp"])
def test_a_step_that_runs_out_of_memory_anywhere_is_that_of_the_whole(trial, method):
    """At twenty random operations of its forward and backward passes."""
    training = start(short(trial, method, optim__eps=1e-3))
    config, batch = training.setup.config, first_batch(training)
    passes = "_per_image" if config.method.per_image else "_across_images"

    def stepped(at=None):
        for name, weight in training.student.trained.items():
            weight.data.copy_(training.initial[name])
        stage = config.method.stage(0, config.steps)
        training.optimizer = optimizer_of(training.student, config, stage)
        training.micro_batch_size = 8
        training.progress.step = 0
        operations = Exhausted(at)
        take = getattr(Training, passes)

        def counted(*arguments):
            with operations:
                return take(training, *arguments)

        setattr(training, passes, counted)
        values = training.step(*batch)
        weights = torch.cat([weight.flatten() for weight in training.student.weights.values()])
        return operations.count, values, weights

    stepped()  # what the first step computes once
    operations, *whole = stepped()
    for at in 1 + np.random.default_rng(0).choice(operations, 20, replace=False):
        _, *found = stepped(at)
        assert training.micro_batch_size == 4
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)


def test_another_failure_is_no_want_of_memory(trial, limited):
    limited(4, error=RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))
    with pytest.raises(RuntimeError, match="EXECUTION_FAILED"):
        curve(short(trial, "ft", steps=1))


def test_an_evaluation_that_does_not_fit_goes_on_in_halves(trial, limited):
    config = short(trial, "ft", steps=2)
    whole = curve(config)
    limited(3, "evaluation", error=NO_HANDLE)
    (halved,) = curve(config)
    assert halved == pytest.approx(whole[0], rel=1e-4)


def test_a_resumed_run_takes_its_steps_in_the_parts_that_fitted(
    trial, tmp_path, monkeypatch, limited
):
    limited(3)
    config = short(trial, "ft", steps=4, eval__every=2)
    interrupted = fine_tune(config)
    next(interrupted).save(tmp_path)
    rest = [report.metrics["train/loss"] for report in interrupted]
    monkeypatch.undo()  # a machine with more memory
    *_, last = curve(config, resume_from=tmp_path)
    assert last[PARTS] == 2
    assert [last["train/loss"]] == rest


def test_a_single_image_that_does_not_fit_ends_the_run(trial, limited):
    limited(0)
    with pytest.raises(torch.OutOfMemoryError) as said:
        curve(short(trial, "ft"))
    assert "single images do not fit" in str(said.value)
