import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from tests.conftest import CLASSES
from tests.trainers.curves import PARTS, assert_near, changed, curve, saved_between, short
from tests.trainers.loop.short_memory import limit_images
from trainers import fine_tune as loop
from trainers.data.schema import LabelledImage, part_path, write_images
from trainers.loop.distributed import any_worker, average_gradients, averaged, gather
from trainers.loop.state import start

METHODS = {
    "ft": {},
    "ema": {"ema_decay": 0.5},
    "wise_ft": {},
    "l2_sp": {"reg_weight": 3},
    "lipsum_ft": {"text_count": 16},
    "flyp": {},
    "star_ft": {},
    "carot": {"teacher_updates": 3},
}


def configured(trial, method, **overrides):
    """Adam's eps is above rounding: see `test_step`."""
    return short(trial, {"name": method, **METHODS[method]}, **{"optim__eps": 1e-3, **overrides})


@pytest.mark.parametrize(
    ("method", "parallel", "parts"),
    [
        ("carot", "ddp", 3),
        pytest.param("ema", "fsdp", None, marks=pytest.mark.nightly),
        pytest.param("wise_ft", "fsdp", None, marks=pytest.mark.nightly),
        pytest.param("l2_sp", "fsdp", 3, marks=pytest.mark.nightly),
        pytest.param("lipsum_ft", "fsdp", None, marks=pytest.mark.nightly),
        pytest.param("flyp", "fsdp", 3, marks=pytest.mark.nightly),
    ],
)
def test_two_workers_have_the_curve_of_one(trial, two_workers, method, parallel, parts):
    """Shards, and steps in parts; replicas of every method are in the contract."""
    alone = configured(trial, method, steps=2, eval__line=[0.5])
    together = changed(alone, parallel=parallel, optim__micro_batch_size=parts)
    first, second = two_workers(curve, together)
    assert first == second
    assert_near(first, curve(alone))


def test_gradients_of_all_workers_together_are_clipped(trial, two_workers):
    settings = {"optim__clip_grad_norm": 0.5, "optim__eps": 1.0, "optim__lr": 0.5}
    clipped = curve(configured(trial, "ft", **settings))
    for parallel in ("ddp", "fsdp"):
        first, _ = two_workers(curve, configured(trial, "ft", parallel=parallel, **settings))
        assert_near(first, clipped)
    unclipped = curve(configured(trial, "ft", optim__eps=1.0, optim__lr=0.5))
    assert abs(unclipped[0]["id_val/nll"] - clipped[0]["id_val/nll"]) > 1e-2


def test_shards_go_with_checkpointing_and_with_16_bits(trial, two_workers):
    options = {"activation_checkpointing": True, "precision": "fp16", "steps": 2}
    replicas, shards = (
        two_workers(curve, configured(trial, "flyp", parallel=parallel, **options))
        for parallel in ("ddp", "fsdp")
    )
    assert shards[0] == shards[1]
    assert_near(shards[0], replicas[0])


def test_each_worker_holds_half_of_student_and_teacher(trial, two_workers):
    whole = start(configured(trial, "flyp"))
    teacher = list(whole.zero_shot.visual.parameters())
    wanted = [_numbers(whole.student.trained.values()), _numbers(teacher)]
    found = two_workers(_held, configured(trial, "flyp", parallel="fsdp", steps=1))
    assert [one + other for one, other in zip(*found, strict=True)] == wanted
    assert max(found[0]) < 0.55 * max(wanted)


def _held(config):
    """Numbers here of the student, in a state in which nothing is gathered, and of its teacher."""
    (report,) = loop.fine_tune(config)
    run = report.run
    return [_numbers(run.student.trained.values()), _numbers(run.zero_shot.visual.parameters())]


def _numbers(parameters):
    local = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
    return sum(tensor.numel() for tensor in local)


def test_a_worker_may_have_fewer_or_no_images_of_a_domain(
    trial, two_workers, images_root, tmp_path
):
    """In batches of two images of shards, which all workers must call equally often: of five the
    first worker has two batches and the second one; of one it has one and the second none.

    The first of two reports is on a sample.
    """
    for domain in trial.data.domains:
        (tmp_path / domain).symlink_to(images_root / domain)
    for domain, size in (("sketch", 1), ("painting", 5)):
        rows = pq.read_table(part_path(images_root, domain, "val")).to_pylist()[:size]
        images = [LabelledImage(row["image"]["bytes"], "x", row["label"]) for row in rows]
        (tmp_path / domain).unlink()
        write_images(part_path(tmp_path, domain, "val"), images, CLASSES, {})
    changes = {
        "data__root": str(tmp_path),
        "data__ood_domains": ["sketch", "painting"],
        "eval__batch_size": 2,
        "eval__every": 1,
        "eval__rung_images": 3,
        "eval__line": [0.5],
        "steps": 2,
    }
    first, second = two_workers(curve, configured(trial, "ft", parallel="fsdp", **changes))
    assert first == second
    assert [report["eval/images"] for report in first] == [3 + 1 + 3, 24 + 1 + 5]
    assert_near(first, curve(configured(trial, "ft", **changes)))


@pytest.mark.parametrize(
    ("method", "places"),
    [("ft", [("student", "backward")]), ("star_ft", [("backward", "teacher"), (None, "teacher")])],
    ids=["ft", "star_ft"],
)
def test_workers_out_of_memory_agree_on_smaller_parts(trial, two_workers, method, places):
    config = configured(trial, method, steps=2)
    in_twos = configured(trial, method, steps=2, optim__micro_batch_size=2)
    from_the_start = two_workers(curve, in_twos)
    assert {report[PARTS] for report in from_the_start[0]} == {2}
    for where in places:
        assert two_workers(_curve_in_short_memory, config, where) == from_the_start


def _curve_in_short_memory(config, where, from_step=0, resume_from=None):
    """Of a run in which three images at a time are one too many, or none where it is nowhere."""
    place = where[dist.get_rank()]
    if place is not None:
        loop.start = limit_images(2, place, from_step)
    try:
        return curve(config, resume_from)
    finally:
        loop.start = start


def test_workers_agree_on_smaller_parts_after_an_evaluation_too(trial, two_workers):
    """It may leave other weights behind, and so less memory than there was."""
    config = configured(trial, "wise_ft", steps=6)
    first, second = two_workers(_curve_in_short_memory, config, ("student", None), 3)
    assert first == second
    assert [report[PARTS] for report in first] == [4, 2]


def test_resumed_workers_with_less_memory_agree_on_parts(trial, two_workers, tmp_path):
    """Memory is short in steps that follow neither the start of a training nor an evaluation."""
    config = configured(trial, "ft", steps=6, eval__every=6)
    undisturbed, _ = two_workers(saved_between, config, tmp_path, [False] * 3 + [True, False], 4)
    everywhere = ("student", "student")
    resumed, other = two_workers(_curve_in_short_memory, config, everywhere, 0, tmp_path)
    assert resumed == other
    assert_near(resumed, undisturbed)
    assert [report[PARTS] for report in (*undisturbed, *resumed)] == [4, 2]


@pytest.mark.parametrize(("parallel", "from_step"), [("ddp", 2), ("fsdp", 0)])
def test_out_of_memory_during_reductions_ends_the_run(trial, two_workers, parallel, from_step):
    """No worker can take a step again while another waits for it: a restart can."""
    config = configured(trial, "ft", parallel=parallel)
    said = two_workers(_out_of_memory, config, from_step)
    assert all("Tried to allocate" in message for message in said)


def _out_of_memory(config, from_step):
    try:
        _curve_in_short_memory(config, ("student", "student"), from_step)
    except torch.OutOfMemoryError as error:
        return str(error)
    return "it fits"


def test_a_gradient_through_gather_is_that_of_one_process(two_workers):
    """Of a loss in which every row meets every other, and of one parameter that is replicated."""
    weight = nn.Parameter(_weight())
    features = _rows() @ weight
    whole = _loss(features)
    wanted = torch.autograd.grad(whole, weight)[0]
    for rank, (loss, gradient, gathered) in enumerate(two_workers(_through_gather)):
        assert loss == pytest.approx(whole.item(), rel=1e-12)
        assert torch.allclose(torch.tensor(gradient, dtype=torch.float64), wanted, rtol=1e-10), rank
        assert gathered == features.tolist()


def _through_gather():
    rank, weight = dist.get_rank(), nn.Parameter(_weight())
    rows = _rows()[3 * rank : 3 * (rank + 1)]
    gathered = gather(rows @ weight)
    loss = _loss(gathered)
    loss.backward()
    average_gradients([weight])
    assert weight.grad is not None
    return loss.item(), weight.grad.tolist(), gathered.tolist()


def _rows():
    return torch.linspace(-1, 2, 24, dtype=torch.float64).square().reshape(6, 4)


def _weight():
    return torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)


def _loss(features):
    return (features @ features.T).logsumexp(dim=1).sum()


def test_workers_tell_each_other_flags_and_means(two_workers):
    assert two_workers(_flags_and_means) == [(True, True, False, 1.5)] * 2


def _flags_and_means():
    rank, cpu = dist.get_rank(), torch.device("cpu")
    flags = [any_worker(flag, cpu) for flag in (rank == 0, rank == 1, False)]
    return flags[0], flags[1], flags[2], float(averaged(torch.tensor(1.0 + rank)))
