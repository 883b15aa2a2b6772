"""Exported models in MLflow's model registry."""

from __future__ import annotations

import importlib.metadata
import io
import json
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from trainers.errors import ConfigError
from trainers.redact import redact
from tuning.runs.run_folder import load_run
from tuning.views.mlflow import client as mlf
from tuning.views.mlflow.client import TrackingError
from tuning.weights import served_model
from tuning.weights.export import ABOUT, export_weights
from tuning.weights.model_card import summary
from tuning.weights.served_model import columns

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
    """Export weights of a search, and add them to a registered model as its next version.

    `mlflow.pyfunc.load_model("models:/NAME/1")` loads it: a column `image` with the bytes of image
    files in, one column of probabilities for each class out. The version refers to the run of the
    trial, or to that of the search for a soup.

    Args:
        folder: of a run.
        name: of the registered model, which is created if it is missing.
        output: also keep the export for open_clip there.
        trial, soup, alpha: see `export_weights`.

    Raises:
        ConfigError: see `export_weights`; MLflow cannot be used, or has no run of this search.
    """
    from mlflow.exceptions import MlflowException

    if not name or set(name) & set("/:"):
        raise ConfigError("must not be empty or contain / or :", key="--register", value=name)
    run = load_run(folder)
    tracking = run.file.search.tracking
    uri = mlf.tracking_uri(tracking.uri, run.folder.parent)
    client, experiment_id = mlf.connect(uri, tracking.experiment)
    parent = mlf.search_run(client, experiment_id, run.search.run_id)
    if parent is None:
        raise ConfigError(
            f"MLflow at {redact(uri)} has no run of this search",
            source=run.folder,
            hint=f"`lipsum-tune report {run.folder}` writes it",
        )
    with tempfile.TemporaryDirectory(prefix="lipsum-tune-") as scratch:
        exported = export_weights(
            folder, output or Path(scratch) / "exported", trial=trial, soup=soup, alpha=alpha
        )
        about = json.loads((exported / ABOUT).read_text(encoding="utf-8"))
        own = f"tags.trial_id = '{about.get('trial')}'"
        source = next(iter(mlf.runs_below(client, experiment_id, parent.info.run_id, own)), parent)
        packed, path = Path(scratch) / "packed", f"model-{secrets.token_hex(4)}"
        with mlf.brief_requests():  # none is made, but MLflow would print progress bars
            _pack(exported, about, packed)
        needs = f"It is loaded with {', '.join(REQUIREMENTS)}, and nothing of Lipsum-Tune."
        try:
            client.log_artifacts(source.info.run_id, str(packed), path)
            try:
                client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            return client.create_model_version(
                name,
                f"{source.info.artifact_uri}/{path}",
                source.info.run_id,
                tags={"search": run.search.name, "search_id": run.search.run_id},
                description=f"{summary(about)}\n\n{needs}",
            )
        except MlflowException as error:
            reason = redact(str(error), uri).strip().partition("\n")[0][:300]
            raise TrackingError(f"MLflow at {redact(uri)} refused the model: {reason}") from None


def _pack(exported: Path, about: dict[str, Any], packed: Path) -> None:
    """Write an exported folder as a model of MLflow."""
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    size = about["preprocessing"]["size"]
    image = io.BytesIO()
    Image.linear_gradient("L").resize((size, size)).convert("RGB").save(image, "PNG")
    pyfunc.save_model(
        packed,
        python_model=served_model.__file__,
        artifacts={"exported": str(exported)},
        signature=ModelSignature(
            Schema([ColSpec(DataType.binary, "image")]),
            Schema([ColSpec(DataType.double, label) for label in columns(about)]),
        ),
        input_example=pd.DataFrame({"image": [image.getvalue()]}),
        pip_requirements=[
            f"{package}=={importlib.metadata.version(package).partition('+')[0]}"
            for package in REQUIREMENTS
        ],
    )
