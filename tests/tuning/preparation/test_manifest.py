"""Two preparations in one folder, and files that differ from what was made."""

import errno
import fcntl
import os

import pytest

from tests.trainers.data.formats.trees import make_domainnet
from trainers.data.encoding import EncodeOptions
from trainers.data.formats.index import LayoutOptions
from trainers.data.formats.retry import SourceLost
from trainers.data.shards import make_shard
from trainers.data.storage import open_store
from trainers.errors import ConfigError
from tuning.preparation.manifest import (
    PreparationFailed,
    check_own,
    check_whole,
    locked,
    write_record,
)
from tuning.preparation.plan import PrepareOptions, plan_preparation
from tuning.preparation.prepare import run_shard

OPTIONS = PrepareOptions(LayoutOptions(domains=("real",)))


@pytest.fixture
def plan(tmp_path):
    tree = make_domainnet(tmp_path / "source")
    return plan_preparation("domainnet", str(tree), str(tmp_path / "data"), OPTIONS)


def made(plan):
    return [
        (shard, make_shard(plan.source, plan.destination, shard, EncodeOptions()))
        for shard in plan.domains[0].shards
    ]


def test_one_preparation_at_a_time_runs_in_a_domain(plan):
    (real,) = plan.domains
    with locked(real.store, None) as is_locked:
        assert is_locked
        with pytest.raises(ConfigError) as caught, locked(real.store, None):
            pass
        assert caught.value.source == f"{plan.destination.url}/real"
    with locked(real.store, None) as is_locked:
        assert is_locked


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_can_be_written_to(plan, monkeypatch, error):
    def refused(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refused)
    with locked(plan.domains[0].store, None) as is_locked:
        assert not is_locked


def test_a_preparation_that_ended_during_the_planning_is_noticed(plan):
    (real,) = plan.domains
    write_record(real.store, "done", {"run": "another"})
    with pytest.raises(ConfigError, match="has just changed it"), locked(real.store, real.record):
        pass


def test_another_preparation_in_a_bucket_is_noticed_by_its_record(tmp_path):
    store = open_store(f"memory://{tmp_path.name}/real")
    with locked(store, None) as is_locked:
        assert not is_locked
    write_record(store, "unfinished", {"run": "another"})
    with pytest.raises(PreparationFailed, match=r"/real: another `prepare` has begun there"):
        check_own(store, "mine")
    check_own(store, "another")


def test_shards_that_are_missing_replaced_or_too_many_are_named(plan):
    (real,) = plan.domains
    reports = made(plan)
    check_whole(plan.destination, real.store, reports)
    extra = real.store.local_path("val/part-00001.parquet")
    extra.write_bytes(b"of another split of validation images")
    with pytest.raises(PreparationFailed, match=r"val/part-00001.parquet: another program"):
        check_whole(plan.destination, real.store, reports)
    extra.unlink()
    other = plan_preparation(
        "domainnet",
        plan.source.url,
        plan.destination.url,
        PrepareOptions(OPTIONS.layout, seed=1, overwrite=True),
    )
    made(other)
    with pytest.raises(PreparationFailed, match=r"parquet: another program has changed it"):
        check_whole(plan.destination, real.store, reports)
    plan.destination.local_path(reports[0][0].path).unlink()
    with pytest.raises(PreparationFailed, match="a disk that every machine shares"):
        check_whole(plan.destination, real.store, reports)


def test_a_machine_without_the_source_makes_no_shard(plan, tmp_path):
    data, shard = str(tmp_path / "data"), plan.domains[0].shards[0]
    with pytest.raises(SourceLost, match="nowhere: not found on the machine"):
        run_shard((str(tmp_path / "nowhere"), data, EncodeOptions(), {}, make_shard), shard)
    assert not open_store(data).exists(shard.path)
