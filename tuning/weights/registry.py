"""Exported models in MLflow's model registry."""

from __future__ import annotations

import importlib.metadata
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.errors import ConfigError
from trainers.redact import redact
from tuning.process import environment_variables
from tuning.run import load_run
from tuning.views.mlflow import client as mlf
from tuning.weights import predict
from tuning.weights.card import summary
from tuning.weights.export import ABOUT, export_weights

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

REQUIREMENTS = ("mlflow", "open_clip_torch", "pandas", "pillow", "safetensors", "torch",
                "torchvision")  # fmt: skip
"""Packages that a registered model is loaded with, in the versions that are installed here."""


def register_weights(
    folder: Path, name: str, output: Path | None = None, **which: Any
) -> ModelVersion:
    """Export weights of a search, and log them as the next version of a registered MLflow model.

    `mlflow.pyfunc.load_model("models:/NAME/1")` loads it: a column `image` with the bytes of image
    files in, one column of probabilities for each class out. What `confirm` has built belongs to
    the run of the search, a trial to its own. It is files and `predict.py`, nothing pickled.

    Args:
        which: trial and others of `export_weights`.
    """
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    if not name or set(name) & set("/:"):
        raise ConfigError("must not be empty or contain / or :", key="--register", value=name)
    run = load_run(folder)
    tracking = run.file.search.tracking
    uri = mlf.tracking_uri(tracking.uri, run.folder.parent)
    client, experiment_id = mlf.connect(uri, tracking.experiment)
    parent = mlf.search_run(client, experiment_id, run.history.run_id)
    if parent is None:
        problem = f"MLflow at {redact(uri)} has no run of this search"
        hint = f"`lipsum-tune report {run.folder}` writes it"
        raise ConfigError(problem, source=run.folder, hint=hint)
    with tempfile.TemporaryDirectory(prefix="lipsum-tune-") as scratch:
        exported = export_weights(folder, output or Path(scratch, "exported"), **which)
        about = json.loads((exported / ABOUT).read_text(encoding="utf-8"))
        own = f"tags.trial_id = '{about.get('trial')}'"
        source = mlf.search_run(client, experiment_id, run.history.run_id, own) or parent
        columns = Schema([ColSpec(DataType.double, label) for label in about["classes"]])
        versions = {p: importlib.metadata.version(p).partition("+")[0] for p in REQUIREMENTS}
        place = {
            "MLFLOW_TRACKING_URI": os.path.expandvars(uri),
            "MLFLOW_EXPERIMENT_ID": experiment_id,
            "MLFLOW_EXPERIMENT_NAME": tracking.experiment,
        }
        # Servers answer an upload once they have copied the file to where they keep artifacts.
        place["MLFLOW_HTTP_REQUEST_TIMEOUT"] = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
        try:
            with environment_variables(place), mlf.brief_requests(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # it asks for an example
                # What `pyfunc.log_model` calls, which would start the run again.
                logged = Model.log(
                    None,
                    pyfunc,
                    name="model",
                    run_id=source.info.run_id,
                    registered_model_name=name,
                    loader_module="predict",
                    code_paths=[predict.__file__],
                    data_path=str(exported),
                    signature=ModelSignature(Schema([ColSpec(DataType.binary, "image")]), columns),
                    pip_requirements=[f"{p}=={version}" for p, version in versions.items()],
                )
                version = logged.registered_model_version
                return client.update_model_version(name, version, summary(about))
        except mlf.MlflowException as error:
            reason = mlf.reason_of(error, uri)
            problem = f"MLflow at {redact(uri)} refused the model: {reason}"
            raise mlf.TrackingError(problem) from None
