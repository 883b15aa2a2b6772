"""What is sent to nodes runs there whatever they have installed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from ray import cloudpickle

from cluster.doctor import node_facts

BARE = """
import json, pickle, sys
import ray
for package in ("cluster", "tuning", "trainers", "search_spaces"):
    sys.modules[package] = None  # as where Lipsum-Tune is not installed
ask = pickle.load(open(sys.argv[1], "rb"))
print(json.dumps(ask(["ray", "no-such-package"], {}, ["/", "/no/such/file"])))
"""


def test_a_node_without_lipsum_tune_gives_its_account(tmp_path: Path) -> None:
    cloudpickle.register_pickle_by_value(node_facts)
    try:
        (tmp_path / "ask").write_bytes(cloudpickle.dumps(node_facts.node_facts))
    finally:
        cloudpickle.unregister_pickle_by_value(node_facts)
    done = subprocess.run(
        [sys.executable, "-c", BARE, tmp_path / "ask"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    account = json.loads(done.stdout)
    assert account["versions"] == {"ray": version("ray"), "no-such-package": None}
    assert account["code"] == ""
    assert account["torch"]["error"] == ""
    assert account["missing_files"] == ["/no/such/file"]
    assert account["memory_bytes"] > account["memory_used_bytes"] > 0
    assert {disk["use"] for disk in account["disks"]} == {"temporary files"}


def test_the_code_of_this_checkout_has_a_digest_that_every_process_agrees_on() -> None:
    ask = "from cluster.doctor.node_facts import code_digest; print(code_digest())"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == node_facts.code_digest() != ""
