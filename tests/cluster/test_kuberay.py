"""The Kubernetes manifests, against Kubernetes' own schemas and Ray's own reader of a RayCluster.

KubeRay's definitions of its two kinds are not at hand in CI: see `tests.cluster.crd_check`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from mlflow.server.security_utils import is_allowed_host_header
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr as read_by_ray,
)
from typer.main import get_command

from cluster.cli import app
from tests.cluster.crd_check import closed
from tuning.config.validation import load_config

ROOT = Path(__file__).parent.parent.parent / "cluster"
MANIFESTS = ROOT / "kuberay"
KUBERNETES = ("1.29", kubernetes_validate.latest_version())


def documents() -> list[dict[str, Any]]:
    texts = [path.read_text() for path in sorted(MANIFESTS.glob("*.yaml"))]
    return [found for text in texts for found in yaml.load_all(text, Loader=yaml.CSafeLoader)]


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = [d for d in documents() if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return found


def cluster_specs() -> dict[str, dict[str, Any]]:
    job = one("RayJob", "domainnet")["spec"]
    return {"RayCluster": one("RayCluster", "lipsum-tune")["spec"], "RayJob": job["rayClusterSpec"]}


def pod_templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that the manifests describe, by a name to be told apart by."""
    for kind, name in (("Deployment", "mlflow"), ("StatefulSet", "postgresql")):
        yield name, one(kind, name)["spec"]["template"]
    yield "submitter", one("RayJob", "domainnet")["spec"]["submitterPodTemplate"]
    for owner, spec in cluster_specs().items():
        yield f"{owner} head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield f"{owner} {group['groupName']}", group["template"]


def as_pod(template: dict[str, Any]) -> dict[str, Any]:
    metadata = template["metadata"] | {"name": "pod"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


PODS = [pytest.param(template, id=name) for name, template in pod_templates()]


@pytest.mark.parametrize("version", KUBERNETES)
def test_what_kubernetes_defines_is_as_kubernetes_defines_it(version: str) -> None:
    kinds = set()
    for document in documents():
        if not document["apiVersion"].startswith("ray.io/"):
            kubernetes_validate.validate(document, version, strict=True)
            kinds.add(document["kind"])
    assert kinds == {
        "ConfigMap", "Deployment", "Namespace", "NetworkPolicy", "PersistentVolumeClaim", "Service",
        "StatefulSet",
    }  # fmt: skip


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("template", PODS)
def test_pods_are_as_kubernetes_defines_them(template: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(as_pod(template), version, strict=True)


def test_the_check_of_pods_finds_a_misspelt_key() -> None:
    (template,) = PODS[0].values
    pod = json.loads(json.dumps(as_pod(template)))
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.utils.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(pod, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize("template", PODS)
def test_pods_keep_to_the_restricted_security_standard(template: dict[str, Any]) -> None:
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] != 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["enableServiceLinks"] is False  # no names of Services among the settings
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim"}
    assert {key for volume in spec.get("volumes", []) for key in volume} - {"name"} <= allowed
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not any("hostPort" in port for port in container.get("ports", []))
        for kind in ("requests", "limits"):
            assert set(container["resources"][kind]) >= {"cpu", "memory"}
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert limits["memory"] == requests["memory"]  # what was not asked for may be taken back


@pytest.mark.parametrize("owner", ["RayCluster", "RayJob"])
def test_ray_reads_the_groups_as_they_are_meant(owner: str) -> None:
    metadata = {"name": "search", "namespace": "lipsum-tune"}
    config = read_by_ray({"metadata": metadata, "spec": cluster_specs()[owner]})
    head, gpu, spot = (
        config["available_node_types"][name] for name in ("headgroup", "gpu", "gpu-spot")
    )
    assert len(config["available_node_types"]) == 3
    assert head["resources"] == {"CPU": 0, "memory": 16 * 2**30}
    assert gpu["resources"] == {"CPU": 8, "GPU": 1, "memory": 48 * 2**30} == spot["resources"]
    assert (gpu["min_workers"], gpu["max_workers"]) == (1, 4)
    assert (spot["min_workers"], spot["max_workers"]) == (0, 8)
    assert spot["priority"] > gpu.get("priority", 0)
    assert config["max_workers"] == 12
    assert config["idle_timeout_minutes"] == 5


def test_the_job_brings_the_cluster_of_the_other_manifest_and_its_search() -> None:
    cluster, job = cluster_specs().values()
    head = job["headGroupSpec"]["template"]["spec"]
    search = {"name": "search", "configMap": {"name": "domainnet"}}
    mount = {"name": "search", "mountPath": "/etc/lipsum-tune", "readOnly": True}
    head["volumes"].remove(search)
    head["containers"][0]["volumeMounts"].remove(mount)
    assert job == cluster


@pytest.mark.parametrize("owner", ["RayCluster", "RayJob"])
def test_every_ray_pod_has_the_shared_storage_and_the_token(owner: str) -> None:
    spec = cluster_specs()[owner]
    assert spec["authOptions"] == {"mode": "token"}
    claim = one("PersistentVolumeClaim", "lipsum-tune-shared")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        (volume,) = [v for v in pod["volumes"] if "persistentVolumeClaim" in v]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        mounts = pod["containers"][0]["volumeMounts"]
        assert {"name": volume["name"], "mountPath": "/shared"} in mounts


@pytest.mark.parametrize("owner", ["RayCluster", "RayJob"])
def test_a_preempted_worker_is_drained_before_kubernetes_kills_it(owner: str) -> None:
    for group in cluster_specs()[owner]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        environment = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        drain = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert 60 <= drain <= pod["terminationGracePeriodSeconds"] - 10


def test_only_the_spot_group_goes_to_spot_machines() -> None:
    gpu, spot = cluster_specs()["RayCluster"]["workerGroupSpecs"]

    def tolerated(group: dict[str, Any]) -> set[str]:
        return {entry["key"] for entry in group["template"]["spec"]["tolerations"]}

    assert tolerated(gpu) == {"nvidia.com/gpu"} < tolerated(spot)
    assert "affinity" not in gpu["template"]["spec"]
    affinity = spot["template"]["spec"]["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    keys = {term["matchExpressions"][0]["key"] for term in terms}
    assert tolerated(spot) - {"nvidia.com/gpu"} <= keys


def test_a_retried_job_goes_on_with_the_same_search(tmp_path: Path) -> None:
    spec = one("RayJob", "domainnet")["spec"]
    # KubeRay pastes it into a shell that submits it, Ray gives it to another that runs it.
    assert re.fullmatch(r"[\w./ -]+", spec["entrypoint"])
    program, command, *words = spec["entrypoint"].split()
    assert (program, command) == ("lipsum-tune", "search")
    search = get_command(app).commands[command]  # type: ignore[attr-defined]
    said = search.make_context(command, words).params
    assert said["config"] == "/etc/lipsum-tune/search.yaml"
    assert said["name"] == "domainnet"
    assert said["resume"]
    assert said["allow_failed_trials"]  # or a search that is done would be tried again
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]
    assert spec["submissionMode"] == "K8sJobMode"
    path = tmp_path / "search.yaml"
    path.write_text(one("ConfigMap", "domainnet")["data"]["search.yaml"])
    search = load_config(path, check=False).search  # its data are in the cluster
    assert str(search.storage).startswith("/shared/")
    assert search.tracking.uri == "http://mlflow:5000"
    (port,) = one("Service", "mlflow")["spec"]["ports"]
    assert port["port"] == 5000
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert search.resources.max_concurrent == sum(group["maxReplicas"] for group in groups)
    resources = groups[0]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert search.resources.cpus_per_worker == int(resources["cpu"])
    assert search.resources.gpus_per_worker == int(resources["nvidia.com/gpu"])


def test_nothing_is_opened_to_the_outside() -> None:
    kinds = {document["kind"] for document in documents()}
    assert not kinds & {"Ingress", "Gateway", "HTTPRoute", "ClusterRoleBinding"}
    for document in documents():
        if document["kind"] == "Service":
            assert document["spec"].get("type", "ClusterIP") == "ClusterIP"
    for spec in cluster_specs().values():
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert "enableIngress" not in spec["headGroupSpec"]


def callers(name: str) -> list[tuple[dict[str, str], Any]]:
    """Labels of the pods that a policy lets in, and the ports that they may go to (None: all)."""
    spec = one("NetworkPolicy", name)["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    found = []
    for rule in spec["ingress"]:
        ports = [port["port"] for port in rule["ports"]] if "ports" in rule else None
        for peer in rule["from"]:
            assert set(peer) <= {"podSelector", "namespaceSelector"}
            found.append((peer["podSelector"]["matchLabels"], ports))
    return found


def test_network_policies_name_pods_that_exist_and_let_only_those_in() -> None:
    components = {
        template["metadata"]["labels"]["app.kubernetes.io/component"]
        for _, template in pod_templates()
    }
    assert components == {"ray", "submitter", "mlflow", "postgresql"}

    def of(component: str) -> dict[str, str]:
        return {"app.kubernetes.io/component": component}

    for name in ("ray", "mlflow", "postgresql"):
        selector = one("NetworkPolicy", name)["spec"]["podSelector"]
        assert selector == {"matchLabels": of(name)}
    # The one label that the operator has from KubeRay's Helm chart and from its manifests alike.
    allowed = [(of("ray"), None), (of("submitter"), [8265]), (of("kuberay-operator"), [8265])]
    assert callers("ray") == allowed
    assert callers("mlflow") == [(of("ray"), [5000])]
    assert callers("postgresql") == [(of("mlflow"), [5432])]


def test_no_secret_stands_in_a_manifest() -> None:
    assert not [document for document in documents() if document["kind"] == "Secret"]
    for name, template in pod_templates():
        for container in template["spec"]["containers"]:
            for entry in container.get("env", []):
                if re.search(r"PASSWORD|TOKEN|SECRET|USER$|KEY", entry["name"]):
                    assert list(entry) == ["name", "valueFrom"], (name, entry["name"])
                    assert set(entry["valueFrom"]) == {"secretKeyRef"}
    for path in MANIFESTS.glob("*.yaml"):
        assert not re.search(r"://[^/\s]*@", path.read_text())  # a URL with a user in it


def test_mlflow_answers_to_the_names_that_it_is_called_by_and_to_no_other() -> None:
    container = one("Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]
    (allowed,) = [e["value"] for e in container["env"] if e["name"].endswith("ALLOWED_HOSTS")]
    hosts = allowed.split(",")
    for name in ("mlflow:5000", "localhost:5000", "127.0.0.1:8080"):
        assert is_allowed_host_header(hosts, name)
    assert not is_allowed_host_header(hosts, "attacker.example:5000")


def test_the_check_against_definitions_refuses_keys_that_they_do_not_list() -> None:
    schema = closed(
        {"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {}}}}}
    )
    jsonschema.validate({"spec": {"a": 1}}, schema)
    with pytest.raises(jsonschema.ValidationError, match="'b' was unexpected"):
        jsonschema.validate({"spec": {"b": 1}}, schema)
