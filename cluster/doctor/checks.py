"""All checks of `lipsum-tune doctor`: each turns facts about the cluster into findings."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.doctor import node_facts
from cluster.doctor.cluster_facts import ClusterFacts
from trainers.data.data_root import EMBEDDED
from trainers.errors import ConfigError, first_line, system_words
from trainers.redact import redact
from tuning.algorithms.optuna_storage import open_storage
from tuning.config.validation import check_search
from tuning.execution.cluster_resources import (
    DRIVER_MEMORY,
    HEAD,
    check_fits,
    fitting_drivers,
    fitting_trials,
)
from tuning.runs.run_folder import job_runs
from tuning.security.databases import check_listens, expand
from tuning.security.exposure import goes_unencrypted

Status = Literal["fault", "warning", "ok"]
"""A fault stops a search or makes its results wrong. A warning may, or costs time."""

_GIB = 2**30
_MUST_BE_EQUAL = ("lipsum-tune", "ray", "torch")
"""Ray's processes, and PyTorch's collectives, require equal versions at both ends."""


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    status: Status
    found: str
    remedy: str = ""
    """What to do about it: a sentence or a command. Empty if all is well."""
    node: str = ""
    """Name of the node that it is about; empty if it is not about a node."""


def check_membership(cluster: ClusterFacts) -> Iterator[Finding]:
    """Ray is reachable, and its nodes answer."""
    if cluster.ray_error:
        remedy = "run `ray start --head`; RAY_AUTH_MODE and ~/.ray/auth_token must match its own"
        yield Finding("fault", cluster.ray_error, remedy)
        return
    names = [node.name for node in cluster.nodes]
    yield Finding("ok", f"{len(names)} node(s) alive: {', '.join(names)}")
    logs = "see raylet.out and worker-*.err in its /tmp/ray/session_latest/logs; restart Ray there"
    for name, reason in cluster.silent.items():
        yield Finding("fault", f"no facts from this node: {reason}", logs, name)
    for name, reason in cluster.dead.items():
        remedy = "if it should be alive, run `ray start` on it again; see its raylet.err"
        yield Finding("warning", f"dead: {reason or 'Ray gives no reason'}", remedy, name)


def check_versions(cluster: ClusterFacts) -> Iterator[Finding]:
    """Python, packages and source code are equal on all nodes and on the driver's machine."""
    ours = cluster.driver
    minor = ".".join(ours["python"].split(".")[:2])
    for node, facts in cluster.answers():
        theirs, differs = facts["software"], False
        if theirs["python"] != ours["python"]:
            differs = True
            status: Status = "warning" if theirs["python"].startswith(f"{minor}.") else "fault"
            found = f"python {theirs['python']} there, {ours['python']} here"
            yield Finding(status, found, f"run python {minor} everywhere", node.name)
        for package, version in ours["packages"].items():
            other = theirs["packages"].get(package)
            # The label of a build, as in 2.9.0+cu128, may differ: heads often have no GPU.
            if version is None or (other or "").partition("+")[0] == version.partition("+")[0]:
                continue
            differs = True
            status = "fault" if other is None or package in _MUST_BE_EQUAL else "warning"
            found = f"{package} {other or 'is missing'} there, {version} here"
            remedy = f"pip install {package}=={version.partition('+')[0]} on that node"
            yield Finding(status, found, remedy, node.name)
        if theirs["source"] and ours["source"] and theirs["source"] != ours["source"]:
            differs = True
            found = f"source code of Lipsum-Tune is {theirs['source']}, here {ours['source']}"
            remedy = "install the same commit on every node, or send the code: lipsum-tune submit"
            yield Finding("fault", found, remedy, node.name)
        if not differs:
            listed = ", ".join(f"{name} {v}" for name, v in theirs["packages"].items() if v)
            yield Finding("ok", f"python {theirs['python']}, {listed}", node=node.name)


def check_gpus(cluster: ClusterFacts) -> Iterator[Finding]:
    """PyTorch works, and Ray, PyTorch and the driver agree on the number of GPUs."""
    for node, facts in cluster.answers():
        gpus, in_node = facts["gpus"], facts["driver_gpus"]
        if facts["torch_error"]:
            found = f"PyTorch cannot be imported: {facts['torch_error']}"
            yield Finding("fault", found, "reinstall it with its dependencies", node.name)
            continue
        if in_node and not facts["cuda"]:
            found = f"{in_node} in this node, but its PyTorch is a build for CPUs"
            remedy = "install a build for CUDA: https://pytorch.org/get-started/locally"
            yield Finding("fault", found, remedy, node.name)
            continue
        faulty = [gpu for gpu in gpus if gpu["error"]]
        for gpu in faulty:
            found = f"{gpu['name'] or 'a GPU'} fails: {gpu['error']}"
            remedy = "see `nvidia-smi` and `dmesg`; another process may use its memory"
            yield Finding("fault", found, remedy, node.name)
        present = len(gpus) or in_node
        if len(gpus) < node.gpus:
            found = (
                f"Ray offers {node.gpus:g}, nvidia-smi lists {in_node}, PyTorch (built for CUDA "
                f"{facts['cuda'] or 'none'}) sees {len(gpus)}"
            )
            remedy = (
                "check CUDA_VISIBLE_DEVICES and --num-gpus of `ray start`; PyTorch sees none if "
                "the driver is older than its CUDA"
            )
            yield Finding("fault", found, remedy, node.name)
        elif node.gpus < present:
            remedy = f"start Ray with --num-gpus={present} if searches may use them"
            yield Finding("warning", f"Ray offers {node.gpus:g} of {present}", remedy, node.name)
        elif not faulty:
            kinds = Counter(
                f"{gpu['name']} ({gpu['memory_bytes'] / _GIB:.0f} GiB, "
                f"{'bf16' if gpu['capability'] >= (8, 0) else 'no bf16'})"
                for gpu in gpus
            )
            listed = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
            found = f"{listed}; CUDA {facts['cuda']}" if gpus else "none"
            yield Finding("ok", found, node=node.name)


def check_machine(cluster: ClusterFacts) -> Iterator[Finding]:
    """Memory, shared memory, CPUs and open files suffice."""
    for node, facts in cluster.answers():
        total, used, shm = facts["memory_bytes"], facts["memory_used_bytes"], facts["shm_bytes"]
        problems = []
        if total and used > 0.9 * total:
            free = f"{(total - used) / _GIB:.1f} of {total / _GIB:.0f} GiB memory are free"
            remedy = "stop other programs there, or set search.resources.max_concurrent"
            problems.append((f"{free}; Ray kills tasks when 95 % are in use", remedy))
        if shm is not None and shm < _GIB:
            found = f"/dev/shm has {shm / 2**20:.0f} MiB, little for trial.data.workers and Ray"
            problems.append((found, "docker run --shm-size=8g, or an emptyDir in Memory"))
        if facts["cpus"] and node.cpus > facts["cpus"]:
            found = f"Ray offers {node.cpus:g} CPUs, but may use {facts['cpus']}"
            problems.append((found, f"start Ray with --num-cpus={facts['cpus']}"))
        if facts["open_files"] < 4096:
            found = f"a process may open {facts['open_files']} files"
            problems.append((found, "run `ulimit -n 65536` before `ray start`"))
        for found, remedy in problems:
            yield Finding("warning", found, remedy, node.name)
        if not problems:
            found = f"{node.cpus:g} of {facts['cpus']} CPUs, {total / _GIB:.0f} GiB memory"
            yield Finding("ok", found, node=node.name)


_MAKE_ROOM = {
    node_facts.RAY_SESSION: "remove old sessions, or start Ray with --temp-dir on another disk",
    node_facts.RUN_STORAGE: "set search.checkpoints.disk_gb, or remove old run folders",
    node_facts.IMAGE_CACHE: "set HF_DATASETS_CACHE to a folder on another disk",
    node_facts.TEMPORARY: "set TMPDIR to a folder on another disk before `ray start`",
}


def check_disks(cluster: ClusterFacts) -> Iterator[Finding]:
    """Every disk in use has free space."""
    for node, facts in cluster.answers():
        enough = []
        for disk in facts["disks"]:
            free, total = disk["free_bytes"], disk["total_bytes"]
            # Ray stores no more objects when the disk of its session is 95 % full.
            least = 0.05 if disk["use"] == node_facts.RAY_SESSION else 0.02
            if free >= 10**9 and free >= 0.1 * total:
                enough.append(disk["use"])
                continue
            status: Status = "fault" if free < 10**9 or free < least * total else "warning"
            found = f"{free / 1e9:.3g} of {total / 1e9:.3g} GB free: {disk['use']} ({disk['path']})"
            yield Finding(status, found, _MAKE_ROOM[disk["use"]], node.name)
        if enough:
            yield Finding("ok", f"enough free space: {', '.join(enough)}", node=node.name)


def check_files(cluster: ClusterFacts) -> Iterator[Finding]:
    """Every node has the local files that the configuration names."""
    remedy = "copy them to the same path on that node, or to a shared folder"
    for node, facts in cluster.answers():
        if facts["missing_files"]:
            found = f"missing: {', '.join(facts['missing_files'])}"
            yield Finding("fault", found, remedy, node.name)


def check_token(cluster: ClusterFacts) -> Iterator[Finding]:
    """Ray requires its token unless it uses loopback only."""
    is_local = all(ipaddress.ip_address(node.address).is_loopback for node in cluster.nodes)
    for node, facts in cluster.answers():
        if node.is_head and facts["token"]:
            yield Finding("ok", "Ray requires its token (RAY_AUTH_MODE=token)")
        elif node.is_head and is_local:
            yield Finding("ok", "Ray requires no token, but uses loopback only")
        elif node.is_head:
            found = "Ray requires no token: everyone who reaches its ports can run code as you"
            remedy = (
                "`ray get-auth-token --generate`, copy ~/.ray/auth_token to every node, and set "
                "RAY_AUTH_MODE=token for `ray start` and here"
            )
            yield Finding("warning", found, remedy)


def check_storage(cluster: ClusterFacts) -> Iterator[Finding]:
    """The driver and every node write runs and checkpoints to the same place."""
    for storage in cluster.storage:
        named = f"{storage.key} = {storage.url}"
        if storage.error:
            remedy = "check its owner and how it is mounted, or set another folder"
            yield Finding("fault", f"{named}: from here, {storage.error}", remedy)
        remedy = "mount a shared disk there, or set search.checkpoints.storage to s3://..."
        if "://" in storage.url:
            remedy = "give that node credentials and network access"
        for name, answer in storage.nodes:
            if answer.fault:
                yield Finding("fault", f"{named}: {answer.fault}", remedy, name)
            else:
                yield Finding("ok", f"{storage.url}: readable and writable", node=name)


def check_images(cluster: ClusterFacts) -> Iterator[Finding]:
    """Every node reads the same images."""
    if cluster.file is None or cluster.ray_error:
        return
    root = cluster.file.trial.data.root
    if root == EMBEDDED:  # `check_versions` covers the packages that draw it
        yield Finding("ok", "the embedded benchmark: every node draws it at first use")
        return
    if not isinstance(root, str):
        yield Finding("ok", "sources: every node prepares them at first use")
        return
    seen = [(node, images) for node, facts in cluster.answers() if (images := facts["images"])]
    counts = Counter((im["files"], im["bytes"]) for _, im in seen if not im["error"])
    usual = counts.most_common(1)[0][0] if counts else (0, 0)
    for node, images in seen:
        found = f"{root}: {images['files']} files of train and val, {images['bytes'] / 1e9:.3g} GB"
        if images["error"]:
            remedy = f"copy or mount {root} there; buckets need credentials in its environment"
            yield Finding("fault", images["error"], remedy, node.name)
        elif (images["files"], images["bytes"]) != usual:
            found += f"; other nodes: {usual[0]} files, {usual[1] / 1e9:.3g} GB"
            remedy = f"copy {root} again, so that all trials train on the same images"
            yield Finding("fault", found, remedy, node.name)
        else:
            yield Finding("ok", found, node=node.name)


def check_room(cluster: ClusterFacts) -> Iterator[Finding]:
    """A trial fits into the cluster."""
    if cluster.file is None or cluster.ray_error:
        return
    resources = cluster.file.search.resources
    offered = [{"CPU": node.cpus, "GPU": node.gpus} for node in cluster.nodes]
    try:
        check_fits(offered, resources)
    except ConfigError as error:
        remedy = "add nodes, or reduce search.resources"
        if cluster.has_autoscaler:
            found = f"{error}; trials wait until the autoscaler adds nodes"
            yield Finding("warning", found, "let it add enough nodes that are large enough")
        else:
            yield Finding("fault", str(error), remedy)
        return
    fits, most = fitting_trials(offered, resources), resources.max_concurrent
    heads = [{HEAD: 1.0, "memory": node.memory_bytes} for node in cluster.nodes if node.is_head]
    drivers = fitting_drivers(heads)
    least = "" if resources.min_workers is None else f"{resources.min_workers} to "
    takes = f"{resources.cpus_per_worker} CPU, {resources.gpus_per_worker:g} GPU"
    found = f"a trial takes {least}{resources.workers} x ({takes})"
    wanted = min(fits, most or fits)
    found += f"; {wanted} at once"
    if drivers is not None and drivers < wanted:
        found += (
            f", but the head's memory of {heads[0]['memory'] / 1e9:.1f} GB has room for {drivers} "
            f"driver(s) of {DRIVER_MEMORY / 1e9:.1f} GB"
        )
        yield Finding(
            "warning", found, "take a larger head, or fewer trials: search.resources.max_concurrent"
        )
        return
    if cluster.has_autoscaler and most is not None and most > fits:
        found += f", {most} when the autoscaler has added nodes"
    yield Finding("ok", found)


def check_configuration(cluster: ClusterFacts) -> Iterator[Finding]:
    """The configuration passes the checks with which a search begins."""
    if cluster.file is None:
        return
    try:
        check_search(cluster.file)
        yield Finding("ok", f"search.name = {cluster.file.search.name}: can run here")
    except ConfigError as error:
        for line in str(error).splitlines():
            yield Finding("fault", line, "correct it, or override it by --set")


def check_mlflow(cluster: ClusterFacts) -> Iterator[Finding]:
    """The driver can record in MLflow."""
    if cluster.file is None:
        return
    from tuning.views.mlflow.client import connect, sqlite_path, tracking_uri

    tracking = cluster.file.search.tracking
    uri = tracking_uri(tracking.uri, job_runs(cluster.file.search.storage))
    file = sqlite_path(uri)
    if file is not None and not file.exists():  # connecting would create it
        yield Finding("ok", f"{redact(uri)}: created by the first search")
    elif error := _error(uri, lambda: connect(uri, tracking.experiment)):
        remedy = "start its server, allow access from here, or set another search.tracking.uri"
        yield Finding("fault", error, remedy)
    elif goes_unencrypted(expand(uri)):
        found = f"{redact(uri)} answers, but over a public network without encryption"
        remedy = "use https, or forward its port: ssh -L 5000:127.0.0.1:5000 SERVER"
        yield Finding("warning", found, remedy)
    else:
        yield Finding("ok", f"{redact(uri)} answers")


def check_optuna(cluster: ClusterFacts) -> Iterator[Finding]:
    """The driver can use the database of the Optuna study."""
    if cluster.file is None:
        return
    url = cluster.file.search.study_storage
    if url is None:
        yield Finding("ok", "a journal file in the run folder")
        return
    if error := _error(url, lambda: open_storage(Path(), url)):
        yield Finding("fault", error, "start the database, or allow access from this machine")
    else:
        yield Finding("ok", f"{redact(url)} answers")


def _error(url: str, use: Callable[[], object]) -> str:
    """Why a server or database cannot be used, without secrets; empty if it can."""
    try:
        check_listens(expand(url))
        use()
    except (ConfigError, ValueError) as error:
        return redact(first_line(error), url)
    except OSError as error:
        return f"nothing answers at {redact(url)}: {system_words(error)}"
    return ""


CHECKS: Mapping[str, Callable[[ClusterFacts], Iterable[Finding]]] = {
    "Ray": check_membership,
    "versions": check_versions,
    "GPUs": check_gpus,
    "machine": check_machine,
    "disk": check_disks,
    "files": check_files,
    "security": check_token,
    "storage": check_storage,
    "images": check_images,
    "room": check_room,
    "configuration": check_configuration,
    "MLflow": check_mlflow,
    "Optuna": check_optuna,
}
"""Checks by the name under which their findings are shown, in the order of the output."""
