"""Models in MLflow's registry, as somebody loads them who has MLflow and open_clip alone."""

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from tests.conftest import CLASSES
from tests.images import file_of
from tests.trainers.exported import open_clip_logits
from tests.tuning.databases import with_database
from trainers.data.images import decode
from trainers.data.transforms import normalise
from trainers.errors import ConfigError
from trainers.loop.state import load_split
from trainers.models.clip import load_clip
from trainers.models.image import image_input
from tuning.runs.run_folder import load_run
from tuning.views.completion import complete_mlflow
from tuning.views.mlflow.client import default_tracking_uri
from tuning.weights.predict import prepared
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
    assert "optimistic" in client.get_model_version("robust-clip", "1").description
    again = register_weights(run.folder, "robust-clip", trial="trial-000", alpha=0.5)
    assert (int(again.version), again.source != version.source) == (2, True)

    images = load_split(run.file.trial, "val")["sketch"]
    pd.DataFrame({"image": [file_of(images.decode(index)) for index in range(5)]}).to_parquet(
        tmp_path / "images.parquet"
    )
    command = [sys.executable, "-c", PREDICT, uri]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = pd.read_parquet(tmp_path / "probabilities.parquet")
    assert list(found.columns) == [name.replace("_", " ") for name in CLASSES]
    model_input = image_input(load_clip(run.file.trial.model))
    views, _ = next(iter(images.eval_batches(model_input, 5)))
    logits = open_clip_logits(exported, normalise(views, model_input))
    assert found.to_numpy() == pytest.approx(logits.softmax(dim=-1).numpy(), abs=1e-6)
