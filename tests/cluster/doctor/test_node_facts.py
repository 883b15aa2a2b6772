"""The task that gathers facts runs on nodes without Lipsum-Tune."""

import json
import subprocess
import sys
from importlib.metadata import version

from ray import cloudpickle

from cluster.doctor import node_facts

BARE = """
import json, pickle, sys, types
import ray
for package in ("cluster", "tuning", "trainers", "search_spaces"):
    sys.modules[package] = None  # as on a node where Lipsum-Tune is not installed
ray.get_runtime_context = lambda: types.SimpleNamespace(get_temp_dir=lambda: "/tmp/ray")
request = {
    "packages": ["ray", "no-such-package"], "folders": {}, "files": ["/", "/no/such/file"],
    "images": ("/data", [("real", "train")]),
}
print(json.dumps(pickle.load(open(sys.argv[1], "rb"))(request)))
"""


def test_a_node_without_lipsum_tune_reports_all_other_facts(tmp_path):
    cloudpickle.register_pickle_by_value(node_facts)
    try:
        (tmp_path / "task").write_bytes(cloudpickle.dumps(node_facts.node_facts))
    finally:
        cloudpickle.unregister_pickle_by_value(node_facts)
    done = subprocess.run(
        [sys.executable, "-c", BARE, tmp_path / "task"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["software"]["packages"] == {"ray": version("ray"), "no-such-package": None}
    assert facts["software"]["source"] == ""
    assert facts["torch_error"] == ""
    assert facts["missing_files"] == ["/no/such/file"]
    assert facts["images"]["error"]
    assert facts["memory_bytes"] > facts["memory_used_bytes"] > 0
    assert {disk["use"] for disk in facts["disks"]} == {"temporary files", "Ray's sessions"}


def test_all_processes_compute_the_same_digest_of_the_source():
    ask = "from cluster.doctor.node_facts import software; print(software([])['source'])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == node_facts.software([])["source"] != ""
