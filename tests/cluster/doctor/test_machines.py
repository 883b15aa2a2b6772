"""What is made of memory, disks and clocks, from accounts of nodes."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.doctor.facts import PICTURE_CACHE, RAY_SESSION, RUN_STORAGE, TEMPORARY, Disk
from cluster.doctor.finding import Finding
from cluster.doctor.machines import clock, clock_offset, disks, machine
from tests.cluster.doctor.accounts import facts

GIB = 2**30
GB = 10**9


def disk(use: str, free: int, total: int = 1000 * GB, device: int = 1) -> Disk:
    path = f"/{use.partition(' ')[0]}"
    return {"use": use, "path": path, "device": device, "free_bytes": free, "total_bytes": total}


def test_a_machine_with_room_is_one_row() -> None:
    (finding,) = machine("a", facts(), cpus=16)
    assert finding.status == "ok"
    assert finding.found == "16 CPUs, of which Ray offers 16; 64 GiB memory, 32 GiB /dev/shm"


@pytest.mark.parametrize(
    ("changes", "said", "remedy"),
    [
        ({"memory_used_bytes": 60 * GIB}, "4.0 of 64 GiB are free", "max_concurrent"),
        ({"shm_bytes": 64 * 2**20}, "/dev/shm holds 64 MiB", "--shm-size"),
        ({"cpus": 8}, "Ray offers 16, but may use 8", "--num-cpus=8"),
        ({"open_files": 1024}, "no more than 1024", "ulimit -n"),
    ],
)
def test_a_machine_that_is_tight_somewhere_is_a_warning(
    changes: dict[str, Any], said: str, remedy: str
) -> None:
    (finding,) = machine("a", facts(**changes), cpus=16)
    assert finding.status == "warning"
    assert said in finding.found
    assert remedy in finding.remedy


def test_a_machine_without_shared_memory_is_not_told_that_it_has_little() -> None:
    (finding,) = machine("a", facts(shm_bytes=None), cpus=16)
    assert finding.status == "ok"
    assert "/dev/shm" not in finding.found


@pytest.mark.parametrize(
    ("use", "free", "total", "status"),
    [
        (TEMPORARY, 101 * GB, 1000 * GB, "ok"),
        (TEMPORARY, 99 * GB, 1000 * GB, "warning"),
        (TEMPORARY, 21 * GB, 1000 * GB, "warning"),
        (TEMPORARY, 19 * GB, 1000 * GB, "fault"),
        (TEMPORARY, 2 * GB, 4 * GB, "ok"),
        (TEMPORARY, GB - 1, 4 * GB, "fault"),
        (RAY_SESSION, 51 * GB, 1000 * GB, "warning"),
        (RAY_SESSION, 49 * GB, 1000 * GB, "fault"),
    ],
)
def test_a_disk_is_judged_by_its_share_and_its_bytes(
    use: str, free: int, total: int, status: str
) -> None:
    (finding,) = disks({"a": facts(disks=[disk(use, free, total)])})
    assert finding.status == status
    assert bool(finding.remedy) == (status != "ok")


def test_folders_on_one_disk_are_one_row_and_each_has_its_advice() -> None:
    full = [disk(RUN_STORAGE, GB), disk(PICTURE_CACHE, GB), disk(TEMPORARY, 500 * GB, device=2)]
    short, enough = sorted(disks({"a": facts(disks=full)}), key=lambda finding: finding.status)
    assert "run storage (/run), cache of images (/cache)" in short.found
    assert "search.checkpoints.disk_gb" in short.remedy
    assert "LIPSUM_TUNE_ARROW_CACHE" in short.remedy
    assert enough.found == "500 of 1000 GB free: temporary files (/temporary)"


def test_nodes_with_room_are_told_together_and_the_least_is_named() -> None:
    free = {"a": 700 * GB, "b": 300 * GB, "c": 500 * GB, "d": 5 * GB}
    found = list(disks({n: facts(disks=[disk(TEMPORARY, f)]) for n, f in free.items()}))
    together = next(finding for finding in found if finding.status == "ok")
    assert together.nodes == ("a", "b", "c")
    assert together.found.startswith("at least 300 of 1000 GB free")
    assert [f.nodes for f in found if f.status == "fault"] == [("d",)]


def trip(sent: float, there: float, back: float, ahead: float) -> tuple[float, float, float]:
    """A round trip to a clock that is ahead by so much; `there` and `back` are the ways."""
    return sent, sent + there + ahead, sent + there + back


@pytest.mark.parametrize("ahead", [-90.0, -0.25, 0.0, 3.5])
def test_the_true_offset_lies_within_the_uncertainty(ahead: float) -> None:
    trips = [
        trip(100.0, 0.300, 0.010, ahead),
        trip(101.0, 0.004, 0.001, ahead),  # the shortest says most, however uneven its ways
        trip(102.0, 0.010, 0.500, ahead),
    ]
    offset, uncertainty = clock_offset(trips)
    assert uncertainty == pytest.approx(0.0025)
    assert abs(offset - ahead) <= uncertainty + 1e-9


def skewed(ahead: float, way: float = 0.001) -> Finding:
    return clock("a", [trip(100.0, way, way, ahead)])


def test_clocks_are_judged_by_what_they_are_off_for_certain() -> None:
    assert [skewed(s).status for s in (0.0, -0.9, 1.1, -59.0, 61.0)] == [
        "ok", "ok", "warning", "warning", "fault",
    ]  # fmt: skip
    assert skewed(1.5, way=2.0).status == "ok"  # the trip alone took longer
    assert "61.000 s ahead of the clock here, to within 0.001 s" in skewed(61.0).found
    assert "59.000 s behind" in skewed(-59.0).found
    assert "chronyc" in skewed(61.0).remedy


def test_clocks_that_agree_say_the_same_so_that_they_make_one_row() -> None:
    assert {skewed(s).found for s in (0.0, 0.003, -0.007)} == {"agrees to 0.01 s"}
