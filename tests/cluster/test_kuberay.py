"""The Kubernetes manifest: Kubernetes' own schemas, security, and agreement within itself.

KubeRay's definition of its kind is not here.
"""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from cluster.cli import app
from tuning.config.validation import load_config

MANIFEST = Path(__file__).parent.parent.parent / "cluster" / "kuberay" / "rayjob.yaml"
DOCUMENTS = {
    document["kind"]: document
    for document in yaml.load_all(MANIFEST.read_text(), Loader=yaml.CSafeLoader)
}
JOB = DOCUMENTS["RayJob"]["spec"]
CLUSTER = JOB["rayClusterSpec"]
PODS = {
    "submitter": JOB["submitterPodTemplate"],
    "head": CLUSTER["headGroupSpec"]["template"],
    "worker": CLUSTER["workerGroupSpecs"][0]["template"],
}
KUBERNETES = ("1.29", kubernetes_validate.latest_version())


@pytest.mark.parametrize("version", KUBERNETES)
def test_everything_matches_the_schemas_of_kubernetes(version):
    assert set(DOCUMENTS) == {"Namespace", "PersistentVolumeClaim", "RayJob", "ConfigMap"}
    for kind, document in DOCUMENTS.items():
        if kind != "RayJob":
            kubernetes_validate.validate(document, version, strict=True)
    for template in PODS.values():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
        kubernetes_validate.validate({**pod, "spec": template["spec"]}, version, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_pods_meet_the_restricted_security_standard(name):
    spec = PODS[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] != 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["enableServiceLinks"] is False  # no names of Services among the settings
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert limits["memory"] == requests["memory"]  # Kubernetes may evict pods above the request


def test_ray_is_behind_a_token_and_inside_the_cluster():
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert CLUSTER["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in CLUSTER["headGroupSpec"]
    assert not re.search(r"password|secret|://[^/\s]*@", MANIFEST.read_text(), re.IGNORECASE)


def test_ray_drains_a_preempted_worker_before_kubernetes_kills_it():
    pod = PODS["worker"]["spec"]
    environment = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    drain = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert 60 <= drain <= pod["terminationGracePeriodSeconds"] - 10


def test_the_command_of_the_job_resumes_its_search():
    # KubeRay pastes it into a shell that submits it, and Ray passes it to the shell that runs it.
    assert re.fullmatch(r"[\w./ -]+", JOB["entrypoint"])
    program, command, *words = JOB["entrypoint"].split()
    assert (program, command) == ("lipsum-tune", "search")
    options = get_command(app).commands[command].make_context(command, words).params
    assert options["config"] == "/etc/lipsum-tune/search.yaml"
    assert options["name"] == "domainnet"
    assert options["resume"]
    assert options["allow_failed_trials"]  # otherwise a finished search would be repeated
    assert JOB["backoffLimit"] > 0
    assert JOB["shutdownAfterJobFinishes"]


def test_the_search_of_the_job_uses_the_whole_cluster(tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(DOCUMENTS["ConfigMap"]["data"]["search.yaml"])
    search = load_config(path, check=False).search  # its data are in the cluster
    assert str(search.storage).startswith("/shared/")
    (group,) = CLUSTER["workerGroupSpecs"]
    assert search.resources.max_concurrent == group["maxReplicas"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert search.resources.cpus_per_worker == int(limits["cpu"])
    assert search.resources.gpus_per_worker == int(limits["nvidia.com/gpu"])
