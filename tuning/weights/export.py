"""A model of a search as a folder that open_clip loads, with its head and where it comes from."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.checkpoints.format import load_weights
from trainers.errors import ConfigError
from trainers.models import TINY_CLIP
from trainers.texts.prompts import Prompts
from trainers.weights.export import Classifier, classifier, write_open_clip
from tuning.checkpoints.files import fetched
from tuning.weights.model_card import model_card
from tuning.weights.sources import SPLIT, Source, find_source, measured

ABOUT, CARD = "classes.json", "README.md"


def export(
    folder: Path,
    output: Path,
    *,
    trial: str | None = None,
    soup: str | None = None,
    alpha: float | None = None,
) -> Path:
    """Write fine-tuned weights as open_clip's own `local-dir:`, the head and `classes.json` beside.

    No images are read. A folder that exists must be empty; a failure leaves nothing behind.

    Args:
        folder: of a run, or of `lipsum-tune train`.
        output: where to.
        trial: of the run; by default the one that the objective chooses.
        soup: of the run, in place of a trial.
        alpha: of WiSE-FT, see `trainers.weights.export.classifier`.

    Returns:
        The output, absolute.

    Raises:
        ConfigError: no such weights, or an output that is in use.
        StorageFailed: the weights cannot be copied here.
    """
    source, output = find_source(folder, trial, soup), output.expanduser().absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output}: it exists, and is no empty folder")
    with fetched(source.checkpoint) as checkpoint:
        weights, class_names = load_weights(checkpoint)
    prompts = source.trial.data.rules.prompts(class_names)
    found = classifier(source.trial.model, prompts, weights, alpha)
    about = _about(source, found, class_names, prompts, alpha)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
        try:
            write_open_clip(unfinished, source.trial.model, found)
            (unfinished / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            card = model_card(source.title, source.trial, about, output)
            (unfinished / CARD).write_text(card, encoding="utf-8")
            unfinished.chmod(0o755)  # it and what safetensors writes are for their owner alone
            for file in unfinished.iterdir():
                file.chmod(0o644)
            unfinished.replace(output)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: {error.strerror or error}") from None
    return output


def _about(
    source: Source,
    found: Classifier,
    class_names: tuple[str, ...],
    prompts: Prompts,
    alpha: float | None,
) -> dict[str, Any]:
    """What `classes.json` says; classes are in the order of the head's rows."""
    trial, data = source.trial, source.trial.data
    return {
        "classes": list(prompts.names),
        "class_names": list(class_names),
        "logit_scale": found.logit_scale,
        "id_domain": data.id_domain,
        "ood_domains": list(data.ood_domains),
        "model": {"name": trial.model.name, "pretrained": trial.model.pretrained},
        "tokenizer": _tokenizer(trial.model.name),
        **source.origin,
        "alpha": alpha,
        "split": SPLIT,
        "metrics": _figures(source.metrics, alpha),
    }


def _figures(metrics: Mapping[str, float], alpha: float | None) -> dict[str, float]:
    """Of the exported weights, as far as the search has measured them."""
    if alpha is not None:
        point = f"wise/{alpha:g}/"
        metrics = {n.removeprefix(point): v for n, v in metrics.items() if n.startswith(point)}
    return measured(metrics)


def _tokenizer(name: str) -> str:
    """How a user gets the one that the model was trained with."""
    if name == TINY_CLIP:
        return "trainers.models.tiny_clip.tokenizer()"
    return "open_clip.get_tokenizer('local-dir:...') of this folder"
