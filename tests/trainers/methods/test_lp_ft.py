"""LP-FT's two stages in a run: who trains when, at which rate, and what the second begins with."""

import copy
from math import cos, pi
from types import SimpleNamespace

import pytest
import torch

from tests.trainers.curves import changed, short
from trainers.fine_tune import fine_tune
from trainers.loop.training import start
from trainers.methods.lp_ft import LinearProbeFineTuning

PROBE = {"name": "lp_ft", "probe_fraction": 0.5, "probe_lr": 1e-2}
LR = 1e-4


def at(report):
    """A run at one of its steps; AdamW has moments of the weights that it has moved."""
    trained, state = report.training.student.trained, report.training.optimizer.state
    return SimpleNamespace(
        step=report.step,
        lr=report.metrics["train/lr"],
        weights={name: p.detach().clone() for name, p in trained.items()},
        moments=copy.deepcopy({n: state[p] for n, p in trained.items() if p in state}),
    )


@pytest.fixture
def config(trial):
    """Four steps of the head and four of everything, with a report after each."""
    changes = {"steps": 8, "eval__every": 1, "optim__lr": LR}
    return short(trial, PROBE, **changes, optim__warmup_fraction=0.5, optim__weight_decay=0.1)


@pytest.mark.parametrize(
    ("fraction", "steps", "probing"), [(0, 7, 0), (0.34, 8, 3), (0.2, 5000, 1000), (0.999, 10, 10)]
)
def test_the_head_alone_trains_for_that_share_of_the_steps(fraction, steps, probing):
    method = LinearProbeFineTuning(probe_fraction=fraction, probe_lr=0.3)
    stages = [method.stage(step, steps) for step in range(steps)]
    assert [stage.head_alone for stage in stages] == [step < probing for step in range(steps)]
    for step, stage in enumerate(stages):
        first, length = (0, probing) if step < probing else (probing, steps - probing)
        assert (stage.first, stage.steps) == (first, length)
        assert stage.lr == (0.3 if step < probing else None)


def test_the_probe_has_no_factor_of_the_heads_rate(config):
    """The second stage has: in its first step, Adam moves each weight by its learning rate."""
    plain = [at(report) for report, _ in zip(fine_tune(config), range(4), strict=False)]
    quarter = changed(config, optim__head_lr_factor=0.25)
    *probe, first = (at(report) for report, _ in zip(fine_tune(quarter), range(5), strict=False))
    for one, other in zip(plain, probe, strict=True):
        assert one.lr == other.lr
        assert torch.equal(one.weights["head"], other.weights["head"])
    decayed = (1 - 0.1 * first.lr) * probe[-1].weights["head"]
    moved = (first.weights["head"] - decayed).abs().max().item()
    assert moved == pytest.approx(0.25 * first.lr, rel=0.01)


def test_each_stage_has_its_own_optimiser_even_after_a_resume(config, tmp_path):
    """That of the second stage has two groups of parameters, that of the probe has one."""
    config, run = changed(config, optim__head_lr_factor=0.25), []
    before = {n: p.detach().clone() for n, p in start(config).student.trained.items()}
    for report in fine_tune(config):
        run.append(at(report))
        if report.step in (4, 6):
            report.save(tmp_path / str(report.step))

    # Half of a stage is warm-up, from half of the peak; then a cosine, of which the last step is
    # half-way down.
    rates = [peak * share for peak in (1e-2, LR) for share in (0.5, 1, 1, 0.5 * (1 + cos(pi / 2)))]
    assert [moment.lr for moment in run] == pytest.approx(rates, rel=1e-12)

    *probe, first, second, third, _ = run
    for moment in probe:
        moved = {name for name, v in moment.weights.items() if not torch.equal(v, before[name])}
        assert moved == moment.moments.keys() == {"head"}
    assert all(not torch.equal(value, before[name]) for name, value in third.weights.items())

    assert [probe[-1].moments["head"]["step"], first.moments["head"]["step"]] == [4, 1]
    assert first.moments.keys() == before.keys()
    assert all(state["step"] == 2 for state in second.moments.values())
    # After its first step, AdamW's moments are 0.1 g and 0.001 g^2 of one gradient g.
    for state in first.moments.values():
        gradient = state["exp_avg"].double() / 0.1
        torch.testing.assert_close(state["exp_avg_sq"].double() / 0.001, gradient**2)

    saved, resumed, *_ = map(at, fine_tune(config, resume_from=tmp_path / "4"))
    assert (saved.step, resumed.step) == (4, 5)
    for name, value in first.weights.items():
        assert torch.equal(resumed.weights[name], value)
        for key, moment_value in first.moments[name].items():
            assert torch.equal(resumed.moments[name][key], moment_value)
    *_, last = map(at, fine_tune(config, resume_from=tmp_path / "6"))
    assert all(torch.equal(last.weights[name], value) for name, value in run[-1].weights.items())
