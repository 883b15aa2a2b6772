"""Models in MLflow's registry, as somebody loads them who has MLflow and open_clip alone."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image

from tests.conftest import CLASSES
from tests.images import file_of
from tests.ports import free_ports
from tests.test_docs import ROOT, blocks
from tests.trainers.exported import open_clip_logits
from tests.tuning.confirmation.searched import Searched
from tests.tuning.databases import with_database
from tests.waiting import wait_until
from trainers.data.images import decode
from trainers.data.loaders import eval_batches
from trainers.data.transforms import normalise
from trainers.errors import ConfigError
from trainers.loop.images import load_split
from trainers.models.clip import load_clip
from trainers.models.image import image_input
from tuning.run import load_run
from tuning.views.completion import complete_mlflow
from tuning.views.mlflow.client import default_tracking_uri
from tuning.weights.predict import _BATCH, prepared
from tuning.weights.registry import register_weights

PREDICT = """
import sys
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/robust-clip/1")
model.predict(pandas.read_parquet("images.parquet")).to_parquet("probabilities.parquet")
assert not {"trainers", "tuning", "search_spaces"} & {name.split(".")[0] for name in sys.modules}
"""


def test_images_are_seen_as_they_are_prepared():
    """Those of modes and orientations that preparation changes."""
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    colours = np.random.default_rng(0).integers(0, 256, (8, 6, 4), dtype=np.uint8)
    clear = Image.fromarray(colours, "RGBA")
    opaque = clear.convert("RGB")
    files = [file_of(Image.fromarray(ramp.astype(np.uint16))), file_of(clear)]
    files += [file_of(opaque.quantize(8), transparency=3), file_of(opaque.convert("CMYK"), "TIFF")]
    for turned in range(1, 10):
        exif = Image.Exif()
        exif[0x0112] = turned
        files += [file_of(opaque, kind, exif=exif) for kind in ("PNG", "JPEG", "TIFF")]
    for data in files:
        assert np.array_equal(prepared(Image.open(io.BytesIO(data))), decode(data))


@pytest.mark.ray
def test_a_registered_model_predicts_as_the_exported_one(real, tmp_path):
    run = load_run(real[0])
    uri = default_tracking_uri(with_database(run.folder.parent))
    with pytest.raises(ConfigError, match="must not be empty"):
        register_weights(run.folder, "a/b")
    with pytest.raises(ConfigError, match="has no run of this search"):
        register_weights(run.folder, "robust-clip")
    complete_mlflow(run)
    exported = tmp_path / "exported"
    version = register_weights(run.folder, "robust-clip", exported, trial="trial-003")

    client = MlflowClient(uri)
    assert client.get_run(version.run_id).data.tags["trial_id"] == "trial-003"
    assert "Not tested" in client.get_model_version("robust-clip", "1").description
    again = register_weights(run.folder, "robust-clip", trial="trial-000", alpha=0.5)
    assert (int(again.version), again.source != version.source) == (2, True)

    images = load_split(run.file.trial, "val")["sketch"]
    files = 14 * [file_of(images.decode(index)) for index in range(5)]  # more than a batch
    pd.DataFrame({"image": files}).to_parquet(tmp_path / "images.parquet")
    command = [sys.executable, "-c", PREDICT, uri]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = pd.read_parquet(tmp_path / "probabilities.parquet")
    assert list(found.columns) == [name.replace("_", " ") for name in CLASSES]
    model_input = image_input(load_clip(run.file.trial.model))
    views, _ = next(iter(eval_batches(images, model_input, 5)))
    # In batches of the same size: with another one, the last digits differ.
    batches = normalise(views, model_input).repeat(14, 1, 1, 1).split(_BATCH)
    logits = torch.cat([open_clip_logits(exported, batch) for batch in batches])
    assert found.to_numpy() == pytest.approx(logits.softmax(dim=-1).numpy(), abs=1e-6)


@pytest.mark.nightly
def test_a_mean_of_trainings_is_registered_with_the_run_of_its_search(whole_root, tmp_path):
    search = Searched(whole_root, tmp_path / "runs")
    search.confirm_a_mean()
    run, uri = load_run(search.folder), default_tracking_uri(search.folder.parent)
    complete_mlflow(run)
    version = register_weights(run.folder, "mean-clip", tmp_path / "exported")
    assert "trial_id" not in MlflowClient(uri).get_run(version.run_id).data.tags
    assert f"{search.models[0].test['id_test/acc']:.1f} ±" in version.description
    (stored,) = run.folder.parent.rglob("open_clip_model.safetensors")
    assert stored.read_bytes() == (tmp_path / "exported" / stored.name).read_bytes()


@pytest.mark.nightly
def test_a_served_model_takes_an_image_by_curl_as_documented(real, tmp_path):
    folder = with_database(tmp_path / "runs")
    complete_mlflow(load_run(shutil.copytree(real[0], folder / "mine")))
    register_weights(folder / "mine", "shop-clip", tmp_path / "exported", trial="trial-003")
    (block,) = [b for b in blocks(ROOT / "docs/confirm.md") if "mlflow models serve" in b.code]
    port = str(free_ports(1))
    uri, serve, *send = block.code.replace("5001", port).splitlines()
    image = load_split(load_run(real[0]).file.trial, "val")["real"].decode(0)
    image.save(tmp_path / "image.jpg")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shell = {"cwd": tmp_path, "env": environment, "text": True}
    words = f"{uri}; exec {serve.removesuffix('&')}"
    with subprocess.Popen(["bash", "-c", words], start_new_session=True, **shell) as server:
        try:
            ping = ["curl", "--silent", "--fail", f"http://127.0.0.1:{port}/ping"]
            wait_until(lambda: subprocess.run(ping, check=False).returncode == 0, process=server)
            answer = subprocess.check_output(["bash", "-c", "\n".join(send)], **shell)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
    (found,) = json.loads(answer)["predictions"]
    script = [sys.executable, "predict.py", tmp_path / "image.jpg"]
    shown = subprocess.check_output(script, cwd=tmp_path / "exported", text=True)
    _, best, probability = shown.strip().split("\t")
    assert max(found, key=found.get) == best
    assert f"{found[best]:.3f}" == probability
