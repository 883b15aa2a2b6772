from trainers.data.dataset import StepSampler


def steps(last, rank=0, world_size=1):
    return list(StepSampler(10, 4, seed=0, steps=range(last), rank=rank, world_size=world_size))


def test_every_epoch_shows_each_sample_once():
    order = [sample for batch in steps(10) for _, sample in batch]
    for epoch in range(4):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert order[:10] != order[10:20]


def test_workers_share_the_same_global_batch_evenly():
    for whole, *shares in zip(steps(6), steps(6, 0, 2), steps(6, 1, 2), strict=True):
        assert [len(share) for share in shares] == [2, 2]
        assert sorted(shares[0] + shares[1]) == sorted(whole)
