import pytest

from trainers.data.sampler import StepSampler


def steps(first, last, rank=0, world_size=1, seed=0):
    return list(
        StepSampler(10, 4, seed=seed, steps=range(first, last), rank=rank, world_size=world_size)
    )


def test_every_epoch_shows_each_sample_once():
    order = [sample for batch in steps(0, 10) for _, sample in batch]
    for epoch in range(4):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert order[:10] != order[10:20]


@pytest.mark.parametrize("first", [1, 2, 3, 7])
def test_batches_do_not_depend_on_where_a_run_was_resumed(first):
    assert steps(first, 10) == steps(0, 10)[first:]


def test_workers_share_the_same_global_batch_evenly():
    for whole, *shares in zip(steps(0, 6), steps(0, 6, 0, 2), steps(0, 6, 1, 2), strict=True):
        assert [len(share) for share in shares] == [2, 2]
        assert sorted(shares[0] + shares[1]) == sorted(whole)


def test_another_seed_gives_another_order():
    assert steps(0, 6) != steps(0, 6, seed=1)
