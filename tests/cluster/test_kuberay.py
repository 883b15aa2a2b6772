"""The Kubernetes manifests: Kubernetes' own schemas, security, and agreement with each other.

KubeRay's definitions of its two kinds are not in CI: see `tests.cluster.crd_check`.
"""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from mlflow.server.security_utils import is_allowed_host_header
from typer.main import get_command

from cluster.cli import app
from tuning.config.validation import load_config

MANIFESTS = Path(__file__).parent.parent.parent / "cluster" / "kuberay"
KUBERNETES = ("1.29", kubernetes_validate.latest_version())


def documents():
    texts = [path.read_text() for path in sorted(MANIFESTS.glob("*.yaml"))]
    return [found for text in texts for found in yaml.load_all(text, Loader=yaml.CSafeLoader)]


def one(kind, name):
    (found,) = [d for d in documents() if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return found


def cluster_specs():
    job = one("RayJob", "domainnet")["spec"]
    return {"RayCluster": one("RayCluster", "lipsum-tune")["spec"], "RayJob": job["rayClusterSpec"]}


def pod_templates():
    """The template of every pod in the manifests, with a name for it."""
    for kind, name in (("Deployment", "mlflow"), ("StatefulSet", "postgresql")):
        yield name, one(kind, name)["spec"]["template"]
    yield "submitter", one("RayJob", "domainnet")["spec"]["submitterPodTemplate"]
    for owner, spec in cluster_specs().items():
        yield f"{owner} head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield f"{owner} {group['groupName']}", group["template"]


PODS = [pytest.param(template, id=name) for name, template in pod_templates()]


@pytest.mark.parametrize("version", KUBERNETES)
def test_objects_of_kubernetes_match_its_schemas(version):
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
def test_pods_match_the_schema_of_kubernetes(template, version):
    metadata = template["metadata"] | {"name": "pod"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize("template", PODS)
def test_pods_meet_the_restricted_security_standard(template):
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
        assert limits["memory"] == requests["memory"]  # Kubernetes may evict pods above the request


def test_both_ways_to_run_have_the_same_cluster():
    cluster, job = cluster_specs().values()
    head = job["headGroupSpec"]["template"]["spec"]
    search = {"name": "search", "configMap": {"name": "domainnet"}}
    mount = {"name": "search", "mountPath": "/etc/lipsum-tune", "readOnly": True}
    head["volumes"].remove(search)
    head["containers"][0]["volumeMounts"].remove(mount)
    assert job == cluster


def test_the_cluster_has_a_head_without_trials_and_two_groups_of_gpus():
    spec = cluster_specs()["RayCluster"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpu, spot = spec["workerGroupSpecs"]
    assert [(g["groupName"], g["minReplicas"], g["maxReplicas"]) for g in (gpu, spot)] == [
        ("gpu", 1, 4),
        ("gpu-spot", 0, 8),
    ]
    assert spot["priority"] > gpu.get("priority", 0)


def test_every_ray_pod_mounts_the_shared_storage():
    spec = cluster_specs()["RayCluster"]
    claim = one("PersistentVolumeClaim", "lipsum-tune-shared")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        (volume,) = [v for v in pod["volumes"] if "persistentVolumeClaim" in v]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        mounts = pod["containers"][0]["volumeMounts"]
        assert {"name": volume["name"], "mountPath": "/shared"} in mounts


def test_ray_drains_a_preempted_worker_before_kubernetes_kills_it():
    for group in cluster_specs()["RayCluster"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        environment = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        drain = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert 60 <= drain <= pod["terminationGracePeriodSeconds"] - 10


def test_only_the_spot_group_runs_on_spot_machines():
    gpu, spot = cluster_specs()["RayCluster"]["workerGroupSpecs"]

    def tolerated(group):
        return {entry["key"] for entry in group["template"]["spec"]["tolerations"]}

    assert tolerated(gpu) == {"nvidia.com/gpu"} < tolerated(spot)
    assert "affinity" not in gpu["template"]["spec"]
    affinity = spot["template"]["spec"]["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    keys = {term["matchExpressions"][0]["key"] for term in terms}
    assert tolerated(spot) - {"nvidia.com/gpu"} <= keys


def test_the_command_of_the_job_resumes_its_search():
    spec = one("RayJob", "domainnet")["spec"]
    # KubeRay pastes it into a shell that submits it, and Ray passes it to the shell that runs it.
    assert re.fullmatch(r"[\w./ -]+", spec["entrypoint"])
    program, command, *words = spec["entrypoint"].split()
    assert (program, command) == ("lipsum-tune", "search")
    search = get_command(app).commands[command]
    options = search.make_context(command, words).params
    assert options["config"] == "/etc/lipsum-tune/search.yaml"
    assert options["name"] == "domainnet"
    assert options["resume"]
    assert options["allow_failed_trials"]  # otherwise a finished search would be repeated
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]


def test_the_search_of_the_job_uses_the_whole_cluster(tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(one("ConfigMap", "domainnet")["data"]["search.yaml"])
    search = load_config(path, check=False).search  # its data are in the cluster
    assert str(search.storage).startswith("/shared/")
    (port,) = one("Service", "mlflow")["spec"]["ports"]
    assert search.tracking.uri == f"http://mlflow:{port['port']}"
    groups = cluster_specs()["RayJob"]["workerGroupSpecs"]
    assert search.resources.max_concurrent == sum(group["maxReplicas"] for group in groups)
    limits = groups[0]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert search.resources.cpus_per_worker == int(limits["cpu"])
    assert search.resources.gpus_per_worker == int(limits["nvidia.com/gpu"])


def test_nothing_is_reachable_from_outside():
    kinds = {document["kind"] for document in documents()}
    assert not kinds & {"Ingress", "Gateway", "HTTPRoute", "ClusterRoleBinding"}
    for document in documents():
        if document["kind"] == "Service":
            assert document["spec"].get("type", "ClusterIP") == "ClusterIP"
    for spec in cluster_specs().values():
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert "enableIngress" not in spec["headGroupSpec"]


def test_network_policies_let_in_only_pods_that_need_it():
    components = {
        template["metadata"]["labels"]["app.kubernetes.io/component"]
        for _, template in pod_templates()
    }
    assert components == {"ray", "submitter", "mlflow", "postgresql"}
    allowed = {
        "ray": [("ray", None), ("submitter", [8265]), ("kuberay-operator", [8265])],
        "mlflow": [("ray", [5000])],
        "postgresql": [("mlflow", [5432])],
    }
    for name, expected in allowed.items():
        spec = one("NetworkPolicy", name)["spec"]
        assert spec["policyTypes"] == ["Ingress"]
        assert spec["podSelector"] == {"matchLabels": {"app.kubernetes.io/component": name}}
        callers = []
        for rule in spec["ingress"]:
            ports = [port["port"] for port in rule["ports"]] if "ports" in rule else None
            for peer in rule["from"]:
                assert set(peer) <= {"podSelector", "namespaceSelector"}
                ((label, component),) = peer["podSelector"]["matchLabels"].items()
                assert label == "app.kubernetes.io/component"
                callers.append((component, ports))
        assert callers == expected


def test_manifests_hold_no_secrets():
    assert not [document for document in documents() if document["kind"] == "Secret"]
    for name, template in pod_templates():
        for container in template["spec"]["containers"]:
            for entry in container.get("env", []):
                if re.search(r"PASSWORD|TOKEN|SECRET|USER$|KEY", entry["name"]):
                    assert set(entry) == {"name", "valueFrom"}, (name, entry["name"])
                    assert set(entry["valueFrom"]) == {"secretKeyRef"}
    for path in MANIFESTS.glob("*.yaml"):
        assert not re.search(r"://[^/\s]*@", path.read_text())  # a URL with a user


def test_mlflow_answers_to_its_own_names_only():
    container = one("Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]
    (allowed,) = [e["value"] for e in container["env"] if e["name"].endswith("ALLOWED_HOSTS")]
    hosts = allowed.split(",")
    for name in ("mlflow:5000", "localhost:5000", "127.0.0.1:8080"):
        assert is_allowed_host_header(hosts, name)
    assert not is_allowed_host_header(hosts, "attacker.example:5000")
