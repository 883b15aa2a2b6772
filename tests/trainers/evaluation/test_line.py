"""The choice of a point of the line, by hand and in real runs of every method."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.curves import changed, configured, curve
from tests.trainers.methods import by_open_clip
from tests.trainers.methods.by_hand import cross_entropy
from trainers.checkpoints.format import WEIGHTS
from trainers.config import with_overrides
from trainers.data import loaders
from trainers.data.dataset import ImageDataset
from trainers.evaluation.line import GRID, LineGoal, choose_point
from trainers.fine_tune import fine_tune
from trainers.loop.images import load_split
from trainers.loop.measure import measure, measure_zero_shot
from trainers.loop.setup import set_up
from trainers.methods.registry import METHODS

POINTS = ("id_val/acc", "ood_val/mean_acc", "val/mean_acc")
FIVE = (0.0, 0.25, 0.5, 0.75, 1.0)


def parabola(top, height=60.0, depth=20.0):
    """Values at `FIVE` of a curve with its top at a point."""
    return {a: height - depth * (a - top) ** 2 for a in FIVE}


def measured(**curves):
    return {a: {name: curve[a] for name, curve in curves.items()} for a in FIVE}


def goal(*objectives, bounds=()):
    return LineGoal(objectives=objectives, bounds=bounds)


@pytest.mark.parametrize("top", GRID)
def test_the_top_of_a_curve_is_chosen(top):
    at = measured(acc=parabola(top))
    assert choose_point(at, goal(("acc", "max"))) == top
    downwards = measured(nll={a: -value for a, value in parabola(top).items()})
    assert choose_point(downwards, goal(("nll", "min"))) == top


@pytest.mark.parametrize(
    ("curve", "chosen"),
    [
        ({a: -abs(a - 0.97) for a in (0.0, 0.96, 0.97, 0.98, 1.0)}, 0.97),
        (parabola(-1.0), GRID[0]),
        (dict.fromkeys(FIVE, 50.0), 1.0),
        (parabola(0.3) | {1.0: float("nan")}, 1.0),
    ],
    ids=["closer than the grid", "best at zero-shot", "equal points", "not measured"],
)
def test_some_trained_point_is_chosen_of_every_curve(curve, chosen):
    at = {a: {"acc": value} for a, value in curve.items()}
    assert choose_point(at, goal(("acc", "max"))) == chosen


def test_no_curve_is_followed_away_from_the_best_measured_point():
    """Measured values of real lines: a parabola has its least value at 0.05 and at 0.35."""
    for values in ([0.41, 3.87, 2.28, 2.12, 2.14], [2.0, 1.7, 1.5, 1.4, 9.0]):
        at = measured(nll=dict(zip(FIVE, values, strict=True)))
        assert 0.5 <= choose_point(at, goal(("nll", "min"))) <= 1.0
    for values in ([0, 10, 9, 9.5, 9.9], [9.9, 9.5, 9, 10, 0]):  # parabolas with a top at 0.7, 0.3
        at = measured(acc=dict(zip(FIVE, values, strict=True)))
        assert choose_point(at, goal(("acc", "max"))) == 0.5  # the neighbour of the best


@pytest.mark.parametrize(
    ("bounds", "chosen"),
    [
        ([("id", "max", None, 56.0)], 0.6),  # of 50 + 10 a
        ([("id", "max", "zero_shot.id", 4.0)], 0.4),
        ([("id", "max", "best", -3.0)], 0.7),
        ([("id", "max", None, 99.0)], 1.0),  # cannot be met: as near as possible
        ([("ood", "min", None, 52.0)], 0.9),  # of 60 - 10 a squared, so at least 0.8944
        ([("id", "max", None, 58.0), ("ood", "max", None, 0.0)], 0.8),
        ([("ood", "max", None, 0.0), ("id", "max", None, 58.0)], 0.8),
    ],
)
def test_the_best_point_within_the_constraints_is_chosen(bounds, chosen):
    at = measured(id={a: 50.0 + 10.0 * a for a in FIVE}, ood=parabola(0.0, 60.0, 10.0))
    assert choose_point(at, goal(("ood", "max"), bounds=bounds)) == chosen


def test_several_objectives_are_weighed_by_their_ranges():
    at = measured(id={a: 10.0 * a for a in FIVE}, ood={a: 1000.0 * (1 - a) for a in FIVE})
    assert choose_point(at, goal(("id", "max"), ("ood", "max"))) == 0.55  # of 0.05 to 1
    at = measured(id={a: 10.0 * a for a in FIVE}, ood=parabola(0.5))
    assert choose_point(at, goal(("id", "max"), ("ood", "max"))) == 0.7  # squared distances


def trained(config, **changes):
    *_, last = fine_tune(changed(config, **changes))
    return last


@pytest.fixture
def short(trial):
    """Four steps that go far, in one precision."""
    changes = {"optim.lr": 3e-3, "precision": "fp32", "data.ood_domains": ["sketch"], "steps": 4,
               "eval.every": 2}  # fmt: skip
    return with_overrides(trial, changes, "test")


def test_the_measured_line_goes_from_zero_shot_to_the_end(short):
    config = with_overrides(short, {"method.name": "ft", "eval.line": "auto"}, "test")
    first, last = (report.metrics for report in fine_tune(config))
    assert not [name for name in first if name.startswith("line/")]
    on_line = {name for name in last if name.startswith("line/")}
    wanted = {f"line/{a:g}/{name}" for a in FIVE for name in POINTS}
    assert on_line == {"line/a", *wanted}
    end = trained(config, eval__line="off").metrics
    assert not [name for name in end if name.startswith("line/")]
    before = measure_zero_shot(set_up(config), load_split(config, "val"))
    for name in POINTS:
        assert last[f"line/0/{name}"] == pytest.approx(before[name])
        assert last[f"line/1/{name}"] == pytest.approx(end[name])
    at = {a: {name: last[f"line/{a:g}/{name}"] for name in POINTS} for a in FIVE}
    assert last["line/a"] == choose_point(at, goal(("val/mean_acc", "max")))


def test_a_fixed_point_is_that_of_wise_ft(short, tmp_path):
    ft = trained(short, method={"name": "ft"}, eval__line=0.3)
    wise = trained(short, method={"name": "wise_ft", "alpha": 0.3}, eval__line="auto")
    assert ft.metrics["line/a"] == 0.3
    assert not [name for name in wise.metrics if name.startswith("line/")]
    assert [ft.metrics[name] for name in POINTS] == [wise.metrics[name] for name in POINTS]
    for name, report in (("ft", ft), ("wise", wise)):
        report.save(tmp_path / name)
    kept, same = (load_file(tmp_path / name / WEIGHTS) for name in ("ft", "wise"))
    assert all((kept[name] == value).all() for name, value in same.items())


def test_the_line_is_measured_on_images_of_its_own_number(short):
    config = with_overrides(short, {"method.name": "ft", "eval.line": [0.5]}, "test")
    last = trained(config, eval__line_images=10, eval__rung_images=3).metrics
    end = trained(config, eval__line="off").training
    measured = measure(end.setup, end.student, load_split(config, "val").sampled(10))
    assert [last[f"line/1/{name}"] for name in POINTS] == [measured[name] for name in POINTS]


def test_the_points_of_the_line_share_one_decoding(short, monkeypatch):
    """Of ten images of each domain, with views that are too large to be kept. The zero-shot model's
    features of them are among those of the whole split, which predictions need as well."""
    decoded, decode = [], ImageDataset.decode
    monkeypatch.setattr(loaders, "KEEP_BYTES", 0)
    monkeypatch.setattr(ImageDataset, "decode", lambda *of: decoded.append(of) or decode(*of))
    apart = with_overrides(short, {"data.decoded_gb": 0}, "test")
    counts = []
    for line in ("off", "auto"):
        decoded.clear()
        trained(apart, eval__line=line, eval__line_images=10, eval__rung_images=10)
        counts.append(len(decoded))
    assert counts[1] - counts[0] == 2 * 10


def test_a_method_with_its_own_alpha_has_no_line(short):
    report = trained(configured(short, "r_adapter"), eval__line="auto")
    assert not [metric for metric in report.metrics if metric.startswith("line/")]


@pytest.mark.parametrize("name", sorted(n for n, method in METHODS.items() if method.has_line))
def test_what_a_method_keeps_is_its_point(name, short, tmp_path):
    """The saved weights, by open_clip's own forward pass, have the reported figures."""
    report = trained(configured(short, name), optim__lr=3e-3, eval__line=0.5)
    report.save(tmp_path)
    images, labels = by_open_clip.images_of(report.training.setup.config)
    weights = load_file(tmp_path / WEIGHTS)
    logits = by_open_clip.logits(images, weights)
    if report.training.student.text is not None:  # its own scale
        logits *= float(weights["text.logit_scale"].exp()) / by_open_clip.scale()
    acc = 100 * float(np.mean(logits.argmax(axis=1) == labels))
    assert report.metrics["id_val/acc"] == pytest.approx(acc)
    assert report.metrics["id_val/nll"] == pytest.approx(cross_entropy(logits, labels), rel=1e-3)
    assert report.metrics["line/a"] == 0.5
    end = report.training.student.plain_state()
    assert not all(torch.equal(value, end[name]) for name, value in weights.items())


def test_a_resumed_run_chooses_the_same_point(short, tmp_path):
    config = with_overrides(short, {"eval.line": "auto", "eval.line_images": 10}, "test")
    next(fine_tune(config)).save(tmp_path)
    whole, resumed = curve(config), curve(config, resume_from=tmp_path)
    assert resumed[-1] == whole[-1]
    assert "line/a" in whole[-1]


def test_the_end_is_found_again_from_the_point(short, whole_root):
    changes = {"method.name": "flyp", "eval.line": 0.4, "data.root": str(whole_root)}
    config = with_overrides(short, changes, "test")
    images = load_split(config, "test")
    found = trained(config).tested(images).metrics
    tested = trained(config, eval__line="off").tested(images).metrics
    for name in ("id_test/acc", "ood_test/sketch/acc", "ood_test/mean_acc"):
        assert found[f"line/1/{name}"] == pytest.approx(tested[name])


def test_without_ood_domains_id_accuracy_chooses(trial):
    changes = {"data.ood_domains": [], "eval.line": [0.5], "steps": 1, "method.name": "ft"}
    (report,) = fine_tune(with_overrides(trial, changes, "test"))
    on_line = [name for name in report.metrics if name.startswith("line/")]
    assert on_line == ["line/a", *(f"line/{a}/id_val/acc" for a in ("0", "0.5", "1"))]
