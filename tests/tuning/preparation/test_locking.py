"""Two preparations in one place, and files that are not what a record would say."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from tests.trainers.data.formats.trees import make_domainnet
from trainers.data.encoding import EncodeOptions
from trainers.data.formats.index import LayoutOptions
from trainers.data.formats.retry import SourceLost
from trainers.data.shards import Shard, ShardReport, make_shard
from trainers.data.storage import open_store
from trainers.errors import ConfigError
from tuning.preparation.locking import alone, require_own, require_whole
from tuning.preparation.manifest import write_record
from tuning.preparation.options import PrepareOptions
from tuning.preparation.plan import Plan, plan_preparation
from tuning.preparation.tasks import PreparationFailed, _make

OPTIONS = PrepareOptions(LayoutOptions(domains=("real",)))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    tree = make_domainnet(tmp_path / "source")
    return plan_preparation("domainnet", str(tree), str(tmp_path / "data"), OPTIONS)


def made(plan: Plan) -> list[tuple[Shard, ShardReport]]:
    return [
        (shard, make_shard(plan.source, plan.destination, shard, EncodeOptions()))
        for shard in plan.domains[0].shards
    ]


def test_one_preparation_at_a_time_is_at_work_in_a_domain(plan: Plan) -> None:
    (real,) = plan.domains
    with alone(real) as is_locked:
        assert is_locked
        refused = pytest.raises(ConfigError, match="data/real: another `prepare` is at work there")
        with refused, alone(real):
            pass
    with alone(real) as is_locked:
        assert is_locked


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_that_refuses_locks_is_prepared_to_without_one(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refused(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refused)
    with alone(plan.domains[0]) as is_locked:
        assert not is_locked


def test_a_preparation_that_ended_while_this_one_made_its_plan_is_noticed(
    plan: Plan, tmp_path: Path
) -> None:
    write_record(plan.domains[0].store, "done", {"run": "another"})
    with pytest.raises(ConfigError, match="was at work there just now"), alone(plan.domains[0]):
        pass
    bucket = f"memory://{tmp_path.name}"
    there = plan_preparation("domainnet", plan.source.url, bucket, OPTIONS).domains[0]
    with alone(there) as is_locked:
        assert not is_locked
    write_record(there.store, "unfinished", {"run": "another"})
    with pytest.raises(PreparationFailed, match=r"/real: another `prepare` has begun there"):
        require_own(there.store, "mine")
    require_own(there.store, "another")


def test_what_a_worker_wrote_elsewhere_or_another_replaced_is_not_whole(plan: Plan) -> None:
    (real,) = plan.domains
    reports = made(plan)
    require_whole(plan.destination, real, reports)
    extra = real.store.local_path("val/part-00001.parquet")
    extra.write_bytes(b"of another split of validation images")
    with pytest.raises(PreparationFailed, match=r"val/part-00001.parquet: another program"):
        require_whole(plan.destination, real, reports)
    extra.unlink()
    other = plan_preparation(
        "domainnet",
        plan.source.url,
        plan.destination.url,
        PrepareOptions(OPTIONS.layout, seed=1, overwrite=True),
    )
    made(other)
    with pytest.raises(PreparationFailed, match=r"parquet: another program has changed it"):
        require_whole(plan.destination, real, reports)
    plan.destination.local_path(reports[0][0].path).unlink()
    with pytest.raises(PreparationFailed, match="a disk that every machine shares"):
        require_whole(plan.destination, real, reports)


def test_a_machine_that_lacks_the_source_makes_no_shard_of_unreadable_images(
    plan: Plan, tmp_path: Path
) -> None:
    data, shard = str(tmp_path / "data"), plan.domains[0].shards[0]
    with pytest.raises(SourceLost, match="nowhere: not found on the machine"):
        _make((str(tmp_path / "nowhere"), data, EncodeOptions(), {}, make_shard), shard)
    assert not open_store(data).exists(shard.path)
