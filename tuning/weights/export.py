"""A model of a search as a folder that open_clip loads, with its head and its origin."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from trainers.checkpoints.format import load_weights
from trainers.checkpoints.storage import fetched
from trainers.errors import ConfigError
from trainers.folders import appearing
from trainers.models.image import image_input
from trainers.weights.export import classifier, write_open_clip
from tuning.weights import predict
from tuning.weights.card import card_data, model_card
from tuning.weights.onnx import check_onnx, write_onnx
from tuning.weights.sources import SPLIT, TRIAL_FILE, Source, find_source, measured

ABOUT, CARD = "classes.json", "README.md"


def load_classifier(
    source: Source, alpha: float | None = None
) -> tuple[nn.Module, Tensor, tuple[str, ...]]:
    """The fine-tuned model of a source, its head, and that one's (K,) classes; see `classifier`."""
    with fetched(source.checkpoint) as folder:
        weights, class_names = load_weights(folder)
    prompts = source.trial.data.rules.prompts(class_names)
    return *classifier(source.trial.model, prompts, weights, alpha), class_names


def export_weights(
    folder: Path | str,
    output: Path | str,
    *,
    trial: str | None = None,
    rule: str | None = None,
    alpha: float | None = None,
    onnx: bool = False,
) -> Path:
    """Write fine-tuned weights as a folder for open_clip's `local-dir:`, with head and model card.

    `predict.py` of the folder classifies images. A failure leaves nothing behind.

    Args:
        folder: of a run, or of `lipsum-tune train`.
        output: a new folder, or an empty one.
        trial: of the run, or `ft` or `zero-shot`. By default the model that `confirm` has tested;
            before that what won, see `conclusion`, which is not tested.
        rule: `id_val`, for the model that ID accuracy alone has chosen, tested as well.
        alpha: of a named trial, or of what `train` wrote: the point of the line from 0 (zero-shot)
            to 1 (the end of the training); by default the one that it has chosen (`eval.line`).
        onnx: add `model.onnx`, image encoder and head in one file, whose logits are compared with
            those of PyTorch.

    Returns:
        The output, absolute.

    Raises:
        ConfigError: no such weights, an alpha out of range or of weights without a line, an output
            that is in use, or a package or equal logits are missing for ONNX.
        StorageFailed: the weights cannot be copied here.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise ConfigError("must be from 0 to 1", key="--alpha", value=alpha)
    if alpha is not None and not trial and not (Path(folder) / TRIAL_FILE).is_file():
        raise ConfigError("is for one training: name it by --trial", key="--alpha", value=alpha)
    if onnx:
        check_onnx()
    output = Path(output).expanduser().absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        problem, hint = "is not an empty folder", "name another one, or remove it first"
        raise ConfigError(problem, key="--output", value=str(output), hint=hint)
    source = find_source(Path(folder), trial, rule)
    if alpha and source.alpha == 0:
        raise ConfigError("is for trained weights", key="--alpha", value=alpha)
    if alpha is not None and not source.trial.method.has_line:
        problem = f"{source.trial.method.name} has an alpha of its own, `method.alpha`"
        raise ConfigError(problem, key="--alpha", value=alpha)
    data = source.trial.data
    model = source.trial.model
    metrics = source.metrics
    test = source.test
    point = metrics.get("line/a", 1.0)  # at which the weights of the checkpoint are
    if alpha is None:
        alpha = source.alpha
    elif alpha != point:  # nothing else was evaluated in full
        metrics = {}
        test = {}
    clip, head, class_names = load_classifier(source, None if alpha is None else alpha / point)
    pixels = dataclasses.asdict(image_input(clip))
    origin: dict[str, str | None] = {"name": model.name, "pretrained": model.pretrained}
    for path in model.paths:  # models are given away: the folders of this machine tell nobody
        origin = {
            key: value and value.replace(path, Path(path).name) for key, value in origin.items()
        }
    about: dict[str, Any] = {
        "classes": list(class_names),  # of the data, in the order of the head's rows
        "names_in_prompts": list(data.rules.prompts(class_names).names),
        "logit_scale": cast(Tensor, clip.logit_scale).exp().item(),
        "id_domain": data.id_domain,
        "ood_domains": list(data.ood_domains),
        "model": origin,
        "preprocessing": {**pixels, "crop_pct": dict.fromkeys(data.domains, data.crop_pct)},
        "precision": source.trial.precision,
        **source.origin,
        "alpha": point if alpha is None and point != 1 else alpha,
        "split": SPLIT,
        "metrics": measured(metrics),
        "test": dict(test),
    }
    try:
        with appearing(output) as unfinished:
            about["tokenizer"] = write_open_clip(unfinished, model, clip, head)
            (unfinished / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            card = model_card(source.title, about, card_data(model))
            (unfinished / CARD).write_text(card, encoding="utf-8")
            if onnx:
                write_onnx(unfinished, clip, head, about)
            shutil.copyfile(predict.__file__, unfinished / "predict.py")
            for file in unfinished.iterdir():
                file.chmod(0o644)  # safetensors writes for their owner alone
    except OSError as error:
        raise ConfigError(error.strerror or str(error), key="--output", value=str(output)) from None
    return output
