"""No secret of the environment is in anything that a search writes."""

import pytest

from tests.tuning.execution.instant import instant_file, start, write_instant
from tuning.run import load_run

pytestmark = pytest.mark.ray

CANARIES = {
    "CANARY_PASSWORD": "canary-in-a-url",
    "AWS_SECRET_ACCESS_KEY": "canary-of-a-cloud",
    "HF_TOKEN": "canary-of-a-hub",
}


def test_a_search_writes_no_secret(images_root, tmp_path, ray_head, monkeypatch):
    """Nor does Ray, of the driver's environment."""
    for name, value in {**CANARIES, "RAY_ADDRESS": ray_head.address}.items():
        monkeypatch.setenv(name, value)
    uri = "http://ann:${CANARY_PASSWORD}@127.0.0.1:9"  # where no server is
    for name, changes, status in (("none", {"search__tracking__uri": uri}, 2), ("small", {}, 0)):
        file = instant_file(images_root, tmp_path / "runs", search__name=name, **changes)
        path = write_instant(tmp_path / name, file)
        with start(path, tmp_path / f"{name}.log") as process:
            assert process.wait() == status
    assert "http://***@127.0.0.1:9" in (tmp_path / "none.log").read_text()
    assert load_run(tmp_path / "runs" / "small").history.outcome == "finished"
    for folder in (tmp_path, ray_head.folder):
        for path in folder.rglob("*"):
            content = path.read_bytes() if path.is_file() else b""
            assert not any(canary.encode() in content for canary in CANARIES.values()), path
