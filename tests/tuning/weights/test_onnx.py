"""`export --onnx`, read by ONNX Runtime."""

import json

import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from tests.trainers.exported import open_clip_logits
from tests.tuning.confirmation.searched import Searched
from tuning.cli import app
from tuning.weights import onnx


@pytest.mark.nightly
@pytest.mark.parametrize("which", ["trial-003", "the model"])
def test_onnx_has_the_logits_and_the_classes(which, real, whole_root, tmp_path):
    written, (folder, _), named = tmp_path / "model", real, ["--trial", which]
    if which == "the model":
        search = Searched(whole_root, tmp_path)
        search.confirm_a_mean()
        folder, named = search.folder, []
    command = ["export", str(folder), "--output", str(written), *named, "--onnx"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    about = json.loads((written / "classes.json").read_text())
    session = onnxruntime.InferenceSession(written / "model.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    for key in ("classes", "preprocessing"):
        assert json.loads(metadata[key]) == about[key]
    for size in (1, 7):
        images = torch.randn(size, 3, 48, 48)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        assert logits == pytest.approx(open_clip_logits(written, images).numpy(), abs=1e-3)


def test_a_missing_package_is_named_first(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "_PACKAGES", ("onnxruntime", "no_such_package"))
    command = ["export", str(tmp_path), "--output", str(tmp_path / "model"), "--onnx"]
    done = CliRunner().invoke(app, command)
    assert "--onnx: needs no_such_package" in str(done.exception)
