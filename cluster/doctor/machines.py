"""Memory, disks and clock of a node. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cluster.doctor.facts import (
    PICTURE_CACHE,
    RAY_SESSION,
    RUN_STORAGE,
    TEMPORARY,
    Disk,
    NodeFacts,
)
from cluster.doctor.finding import Finding, Status

_GIB = 2**30
_SHM_BYTES = _GIB
_OPEN_FILES = 4096
_FREE_SHARE, _FREE_SHARE_FAULT, _FREE_BYTES_FAULT = 0.10, 0.02, 10**9
_RAY_FREE_SHARE = 0.05
_SKEW_S, _SKEW_FAULT_S = 1.0, 60.0


def machine(name: str, facts: NodeFacts, cpus: float) -> Iterator[Finding]:
    """CPUs, memory, shared memory, open files.

    Args:
        name: of the node.
        facts: of the node.
        cpus: those that Ray hands out there.
    """
    tight = list(_tight(name, facts, cpus))
    yield from tight
    if not tight:
        shm = facts["shm_bytes"]
        found = f"{facts['cpus']} CPUs, of which Ray offers {cpus:g}; "
        found += f"{facts['memory_bytes'] / _GIB:.0f} GiB memory"
        found += "" if shm is None else f", {shm / _GIB:.0f} GiB /dev/shm"
        yield Finding("machine", "ok", found, nodes=(name,))


def _tight(name: str, facts: NodeFacts, cpus: float) -> Iterator[Finding]:
    total, used = facts["memory_bytes"], facts["memory_used_bytes"]
    if total and used > 0.9 * total:
        yield Finding(
            "memory", "warning",
            f"{(total - used) / _GIB:.1f} of {total / _GIB:.0f} GiB are free; Ray kills tasks when "
            "95 % are in use",
            "end what else runs there, or let fewer trials run at once "
            "(search.resources.max_concurrent)", (name,),
        )  # fmt: skip
    shm = facts["shm_bytes"]
    if shm is not None and shm < _SHM_BYTES:
        yield Finding(
            "memory", "warning",
            f"/dev/shm holds {shm / 2**20:.0f} MiB: little for decoding processes "
            "(trial.data.workers) and for Ray's objects",
            "give containers more: docker run --shm-size=8g, or an emptyDir with medium: Memory",
            (name,),
        )  # fmt: skip
    if facts["cpus"] and cpus > facts["cpus"]:
        yield Finding(
            "CPUs", "warning", f"Ray offers {cpus:g}, but may use {facts['cpus']}",
            f"start Ray there with --num-cpus={facts['cpus']}, or trials get in each other's way",
            (name,),
        )  # fmt: skip
    if facts["open_files"] < _OPEN_FILES:
        yield Finding(
            "open files", "warning", f"no more than {facts['open_files']} in a process",
            "ulimit -n 65536 before `ray start`", (name,),
        )  # fmt: skip


def disks(by_node: Mapping[str, NodeFacts]) -> Iterator[Finding]:
    """Room on the disks of nodes; folders on one disk are looked at together.

    Nodes that have enough of it are told together, with the least that one of them has.
    """
    enough: dict[str, tuple[float, str, list[str]]] = {}
    for name, facts in by_node.items():
        by_device: dict[int, list[Disk]] = {}
        for disk in facts["disks"]:
            by_device.setdefault(disk["device"], []).append(disk)
        for together in by_device.values():
            free, total = together[0]["free_bytes"], max(together[0]["total_bytes"], 1)
            where = ", ".join(f"{disk['use']} ({disk['path']})" for disk in together)
            found = f"{_gb(free)} of {_gb(total)} GB free: {where}"
            status = _disk_status(free, total, together)
            if status != "ok":
                remedy = f"make room: {'; '.join(dict.fromkeys(map(_room, together)))}"
                yield Finding("disk", status, found, remedy, (name,))
                continue
            least, said, names = enough.get(where, (float("inf"), "", []))
            best = min((least, said), (free / total, found))
            enough[where] = (*best, [*names, name])
    for _, found, names in enough.values():
        at_least = "at least " if len(names) > 1 else ""
        yield Finding("disk", "ok", f"{at_least}{found}", nodes=tuple(names))


def _disk_status(free: int, total: int, together: Sequence[Disk]) -> Status:
    """Of a disk with these folders; Ray itself stops taking data where its session's is full."""
    with_ray = any(disk["use"] == RAY_SESSION for disk in together)
    fault_below = max(_FREE_SHARE_FAULT, _RAY_FREE_SHARE if with_ray else 0.0)
    if free < _FREE_BYTES_FAULT or free < fault_below * total:
        return "fault"
    return "warning" if free < _FREE_SHARE * total else "ok"


def _room(disk: Disk) -> str:
    return {
        RAY_SESSION: f"remove old sessions, for Ray stops below {_RAY_FREE_SHARE:.0%}, or start it "
        "with --temp-dir on another disk",
        RUN_STORAGE: "set search.checkpoints.disk_gb, remove old run folders",
        PICTURE_CACHE: "set trial.data.cache_gb, or let LIPSUM_TUNE_ARROW_CACHE name another "
        "disk's folder",
        TEMPORARY: "let TMPDIR name another disk's folder before `ray start`",
    }.get(disk["use"], "")


def _gb(size: int) -> str:
    return f"{size / 1e9:.2g}" if size < 10**10 else f"{size / 1e9:.0f}"


def clock(name: str, trips: Sequence[tuple[float, float, float]]) -> Finding:
    """A node's clock against the one here, both in seconds.

    Args:
        name: of the node.
        trips: of each, the time here when the question was sent, the node's time, and the time here
            when the answer came.
    """
    offset, uncertainty = clock_offset(trips)
    ahead = "ahead of" if offset > 0 else "behind"
    within = f"{abs(offset):.3f} s {ahead} the clock here, to within {uncertainty:.3f} s"
    if abs(offset) - uncertainty <= _SKEW_S:
        agrees = max(0.01, abs(offset) + uncertainty)
        return Finding("clock", "ok", f"agrees to {_rounded_up(agrees):g} s", nodes=(name,))
    status: Status = "fault" if abs(offset) - uncertainty > _SKEW_FAULT_S else "warning"
    why = "; storage and tokens refuse what is dated wrongly" if status == "fault" else ""
    return Finding(
        "clock", status, f"{within}{why}",
        "keep it right by NTP: timedatectl set-ntp true, or chronyc makestep", (name,),
    )  # fmt: skip


def clock_offset(trips: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """How far a clock is ahead, and how well that is known, in seconds (as NTP does it).

    The answer was given at some time within the round trip; of several, the shortest says most.
    """
    sent, read, received = min(trips, key=lambda trip: trip[2] - trip[0])
    return read - (sent + received) / 2, (received - sent) / 2


def _rounded_up(seconds: float) -> float:
    """The next of 0.01, 0.1, 1: so that nodes that agree say the same."""
    return next((step for step in (0.01, 0.1, 1.0) if seconds <= step), seconds)
