"""Exported models in MLflow's model registry."""

from __future__ import annotations

import importlib.metadata
import json
import secrets
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.errors import ConfigError
from trainers.redact import redact
from tuning.runs.run_folder import load_run
from tuning.views.mlflow import client as mlf
from tuning.views.mlflow.client import TrackingError
from tuning.weights import classify
from tuning.weights.export import ABOUT, export_weights
from tuning.weights.model_card import summary

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

REQUIREMENTS = ("mlflow", "open_clip_torch", "pandas", "pillow", "safetensors", "torch",
                "torchvision")  # fmt: skip
"""Packages that a registered model is loaded with, in the versions that are installed here."""


def register_weights(
    folder: Path,
    name: str,
    output: Path | None = None,
    *,
    trial: str | None = None,
    soup: str | None = None,
    alpha: float | None = None,
) -> ModelVersion:
    """Export weights of a search (`export_weights`) as the next version of a registered model.

    `mlflow.pyfunc.load_model("models:/NAME/1")` loads it: a column `image` with the bytes of image
    files in, one column of probabilities for each class out. The version refers to the run of the
    trial, or to that of the search for a soup.

    Raises:
        ConfigError: see `export_weights`; MLflow cannot be used, or has no run of this search.
    """
    from mlflow import pyfunc
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    if not name or set(name) & set("/:"):
        raise ConfigError("must not be empty or contain / or :", key="--register", value=name)
    run = load_run(folder)
    tracking = run.file.search.tracking
    uri = mlf.tracking_uri(tracking.uri, run.folder.parent)
    client, experiment_id = mlf.connect(uri, tracking.experiment)
    parent = mlf.search_run(client, experiment_id, run.search.run_id)
    if parent is None:
        problem = f"MLflow at {redact(uri)} has no run of this search"
        hint = f"`lipsum-tune report {run.folder}` writes it"
        raise ConfigError(problem, source=run.folder, hint=hint)
    with tempfile.TemporaryDirectory(prefix="lipsum-tune-") as scratch:
        to, packed = output or Path(scratch, "exported"), Path(scratch, "packed")
        exported = export_weights(folder, to, trial=trial, soup=soup, alpha=alpha)
        about = json.loads((exported / ABOUT).read_text(encoding="utf-8"))
        own = f"tags.trial_id = '{about.get('trial')}'"
        source = next(iter(mlf.runs_below(client, experiment_id, parent.info.run_id, own)), parent)
        columns = Schema([ColSpec(DataType.double, label) for label in about["classes"]])
        versions = {p: importlib.metadata.version(p).partition("+")[0] for p in REQUIREMENTS}
        with mlf.brief_requests(), warnings.catch_warnings():  # it asks for an example
            warnings.simplefilter("ignore", UserWarning)
            pyfunc.save_model(
                packed,
                loader_module="classify",
                code_paths=[classify.__file__],
                data_path=str(exported),
                signature=ModelSignature(Schema([ColSpec(DataType.binary, "image")]), columns),
                pip_requirements=[f"{p}=={version}" for p, version in versions.items()],
            )
        path = f"model-{secrets.token_hex(4)}"
        try:
            client.log_artifacts(source.info.run_id, str(packed), path)
            with suppress(MlflowException):  # it exists; else the next line fails
                client.create_registered_model(name)
            uri_of_model, tags = f"{source.info.artifact_uri}/{path}", {"search": run.search.name}
            return client.create_model_version(
                name, uri_of_model, source.info.run_id, tags=tags, description=summary(about)
            )
        except MlflowException as error:
            reason = redact(str(error), uri).strip().partition("\n")[0][:300]
            raise TrackingError(f"MLflow at {redact(uri)} refused the model: {reason}") from None
