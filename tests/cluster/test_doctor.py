import pytest
import ray

from cluster.doctor import Node, examine, node_facts, render
from tests.tuning.result_tables import text_of
from tuning.config.validation import load_config


def test_a_node_names_what_it_has_and_is_left_as_it_was(tmp_path):
    facts, faults = node_facts({"checkpoints": str(tmp_path)})
    assert "torch " in facts["versions"]
    assert facts["device"]
    assert facts["free disk"].endswith(" GB")
    assert facts["checkpoints"] == "writable"
    assert faults == []
    assert list(tmp_path.iterdir()) == []


def test_what_a_search_would_fail_of_is_a_fault(tmp_path):
    (tmp_path / "file").write_text("")
    asked = {
        "checkpoints": str(tmp_path / "file" / "inside"),
        "files": [str(tmp_path / "weights.safetensors")],
        "data": str(tmp_path / "none"),
        "shared memory": 10**15,
    }
    _, (memory, *faults) = node_facts(asked)
    assert [fault.split()[0] for fault in faults] == ["not", "checkpoints", "data"]
    assert "loader processes need 1000000000 MB" in memory
    assert "--shm-size" in memory


def test_faults_stand_below_the_table():
    head, other = Node("10.0.0.1 (head)", {"CPUs": "4"}), Node("10.0.0.2", {}, ("no answer",))
    text = text_of(render([head, other]), 200)
    assert text.index(head.name) < text.index("10.0.0.2: no answer")
    assert "All nodes can run a search." in text_of(render([head]), 200)


@pytest.mark.ray
def test_every_node_of_a_real_ray_answers(tmp_path):
    file = load_config("quickstart", [f"search.storage={tmp_path}"], check=False)
    (node,) = examine(file)
    assert not ray.is_initialized()
    assert node.name.endswith("(head)")
    assert node.faults == ()
    assert node.facts["checkpoints"] == "writable"
