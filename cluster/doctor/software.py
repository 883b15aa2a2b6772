"""Software and GPUs of a node against those here and against what Ray offers. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cluster.doctor.facts import Gpu, NodeFacts
from cluster.doctor.finding import Finding, Status

PACKAGES = (
    "lipsum-tune", "ray", "torch", "torchvision", "open_clip_torch", "optuna", "mlflow", "pyarrow",
    "numpy",
)  # fmt: skip
"""Distributions that every node should have alike."""

_MUST_BE_EQUAL = ("lipsum-tune", "ray", "torch")
"""Ray's processes talk in formats of their version, and so do PyTorch's in collectives."""

_GIB = 2**30


@dataclass(frozen=True)
class Here:
    """Where doctor and a search's driver run: what nodes are compared with."""

    python: str
    versions: Mapping[str, str | None]
    code: str


def software(here: Here, name: str, facts: NodeFacts) -> Iterator[Finding]:
    """Versions of one node against those here."""
    different = list(_differences(here, facts))
    for status, found, remedy in different:
        yield Finding("versions", status, found, remedy, (name,))
    if error := facts["torch"]["error"]:
        yield Finding(
            "PyTorch", "fault", f"cannot be imported: {error}",
            "install it again on that node, with all that it needs", (name,),
        )  # fmt: skip
    if not different:
        listed = ", ".join(f"{package} {v}" for package, v in facts["versions"].items() if v)
        code = f"; source code {facts['code']}" if facts["code"] else ""
        yield Finding("versions", "ok", f"python {facts['python']}, {listed}{code}", nodes=(name,))


def _differences(here: Here, facts: NodeFacts) -> Iterator[tuple[Status, str, str]]:
    if facts["python"] != here.python:
        minor = facts["python"].split(".")[:2] != here.python.split(".")[:2]
        yield (
            "fault" if minor else "warning",
            f"python {facts['python']} there, {here.python} here",
            f"run python {'.'.join(here.python.split('.')[:2])} everywhere",
        )
    for package, ours in here.versions.items():
        theirs = facts["versions"].get(package)
        # A build's label, as in 2.9.0+cu128, is no difference: heads often have no GPU.
        if ours is None or (theirs or "").partition("+")[0] == ours.partition("+")[0]:
            continue
        install = f"pip install {package}=={ours.partition('+')[0]} on that node"
        if theirs is None:
            yield "fault", f"{package} is not installed", install
        else:
            status: Status = "fault" if package in _MUST_BE_EQUAL else "warning"
            yield status, f"{package} {theirs} there, {ours} here", install
    if facts["code"] and here.code and facts["code"] != here.code:
        yield (
            "fault",
            f"another source code of Lipsum-Tune there ({facts['code']}) than here ({here.code})",
            "install the same commit on every node, or send the code along: lipsum-tune submit",
        )


def gpus(name: str, facts: NodeFacts, offered: float) -> Iterator[Finding]:
    """GPUs as Ray, PyTorch and the driver see them.

    Args:
        name: of the node.
        facts: of the node.
        offered: the GPUs that Ray hands out there.
    """

    def finding(status: Status, found: str, remedy: str = "") -> Finding:
        return Finding("GPUs", status, found, remedy, (name,))

    torch, smi = facts["torch"], facts["smi"]
    if torch["error"]:
        return
    listed = _counted(gpu["name"] for gpu in smi)
    if smi and not torch["cuda"]:
        yield finding(
            "fault",
            f"{listed}, but PyTorch {facts['versions'].get('torch')} is a build for CPUs",
            "install a build for CUDA: https://pytorch.org/get-started/locally",
        )
        return
    seen, faulty = len(torch["gpus"]), [gpu for gpu in torch["gpus"] if gpu["error"]]
    if seen < offered:
        driver = f" (driver {smi[0]['driver']})" if smi else ""
        yield finding(
            "fault",
            f"Ray offers {offered:g}, nvidia-smi lists {len(smi)}{driver}, PyTorch, built for CUDA "
            f"{torch['cuda'] or 'none'}, sees {seen}",
            "look at CUDA_VISIBLE_DEVICES and --num-gpus of `ray start`; a driver older than the "
            "build's CUDA shows no GPU at all",
        )
    for gpu in faulty:
        yield finding(
            "fault", f"{gpu['name'] or 'a GPU'} fails: {gpu['error']}",
            "see `nvidia-smi` and `dmesg`; another process may hold its memory",
        )  # fmt: skip
    there = seen or len(smi)
    if offered < there:
        yield finding(
            "warning", f"Ray offers {offered:g} of {there}",
            f"start Ray there with --num-gpus={there}, if they are for searches",
        )  # fmt: skip
    elif seen == offered and not faulty:
        yield finding("ok", _described(facts) if seen else "none")


def _described(facts: NodeFacts) -> str:
    torch = facts["torch"]
    software = [f"driver {facts['smi'][0]['driver']}"] if facts["smi"] else []
    software += [f"CUDA {torch['cuda']}"]
    software += [f"NCCL {torch['nccl']}"] if torch["nccl"] else []
    return f"{_counted(map(_gpu, torch['gpus']))}; {', '.join(software)}"


def _gpu(gpu: Gpu) -> str:
    major, minor = gpu["capability"]
    bf16 = "bf16" if major >= 8 else "no bf16"
    return f"{gpu['name']} ({gpu['memory_bytes'] / _GIB:.0f} GiB, sm_{major}{minor}, {bf16})"


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{number} x {name}" for name, number in Counter(names).items())
