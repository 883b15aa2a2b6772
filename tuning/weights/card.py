"""The README of an exported model: its origin, its accuracy, and the code to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData
from open_clip import get_pretrained_cfg

from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from trainers.models.config import HUB, ModelConfig
from tuning.results.estimates import SPLIT as TEST
from tuning.views.formatting import format_value
from tuning.weights.sources import SPLIT

_USE = """
```python
from PIL import Image
from predict import Classifier  # predict.py of this folder: needs open_clip alone

classify = Classifier(".")
print(classify(Image.open("image.jpg")))
```

So does `python predict.py image.jpg ...`, with the probability.

`classes.json` has the preprocessing of each domain, as in the evaluation of the model.
"""


def model_card(title: str, about: Mapping[str, Any], data: ModelCardData) -> str:
    """The card in Markdown: metadata for the hub, the `summary` and the code to use the model."""
    return f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{summary(about)}\n{_USE}"


def summary(about: Mapping[str, Any]) -> str:
    """Origin and accuracies of the model in Markdown."""
    model = about["model"]
    alpha = about["alpha"]
    what = "A zero-shot CLIP with a head" if alpha == 0 else "A CLIP of open_clip, fine-tuned"
    origin = {"model": " / ".join(f"`{part}`" for part in model.values() if part)}
    origin["made of"] = about.get("made_of", "")
    origin |= {key: about.get(key, "") for key in ("method", "run", "trial", "step", "chosen")}
    origin["parameters"] = _params(about.get("params") or {})
    for training in about.get("trainings", ()):
        parts = [f"{training['method']}, seed {training['seed']}", _params(training["params"])]
        if training["point"] is not None:
            parts.append(f"at {training['point']:g} of its line")
        origin[f"training `{training['name']}`"] = ", ".join(filter(None, parts))
    if alpha is not None:
        origin["WiSE-FT"] = f"alpha = {alpha:g}: 0 is the zero-shot model, 1 the fine-tuned"
    rows = "\n".join(f"| {key} | {value} |" for key, value in origin.items() if value)
    classes = f"{len(about['classes'])} classes of {about['id_domain']}"
    return (
        f"{what} for {classes}, by Lipsum-Tune.\n\n| | |\n|---|---|\n{rows}\n\n{_accuracies(about)}"
    )


def _params(params: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}` {format_value(value)}" for key, value in params.items())


def _accuracies(about: Mapping[str, Any]) -> str:
    """A table of the known accuracies, and how they were measured.

    Validation accuracies stand there only where nothing was tested.
    """
    rows = {}
    for label, one in about["test"].items():
        seeds = f", mean of {one['seeds']} fresh trainings" if "seeds" in one else ""
        rows[f"{label}, test{seeds}"] = (one["metrics"], one.get("margins", {}), TEST)
    if not rows:
        rows["this model, validation"] = (about["metrics"], {}, SPLIT)
    columns = {about["id_domain"]: ID, "OOD mean": MEAN_OOD}
    columns |= {domain: domain for domain in about["ood_domains"]}
    if not any(metrics for metrics, _, _ in rows.values()):
        return "These weights have not been evaluated."
    lines = [f"| accuracy in percent | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for label, (metrics, margins, split) in rows.items():
        names = [str(MetricKey(split, domain, "acc")) for domain in columns.values()]
        cells = [f"{metrics[name]:.1f}" if name in metrics else "-" for name in names]
        pairs = zip(cells, names, strict=True)
        shown = [f"{c} ± {margins[name]:.1f}" if name in margins else c for c, name in pairs]
        lines.append(f"| {label} | {' | '.join(shown)} |")
    if about["test"]:
        tested = "Tested by `lipsum-tune confirm`, after the choice."
        has_margins = any(margins for _, margins, _ in rows.values())
        lines.append(f"\n{tested} ± is for new images." if has_margins else f"\n{tested}")
    elif about.get("trial"):
        lines.append("\nNot tested. The validation splits chose it, so this is optimistic.")
    return "\n".join(lines)


def card_data(model: ModelConfig) -> ModelCardData:
    """The front matter of a model card. Accuracies stand in the card, with their intervals."""
    return ModelCardData(
        base_model=_base_model(model),
        library_name="open_clip",
        pipeline_tag="image-classification",
        tags=["clip", "lipsum-tune"],
    )


def _base_model(model: ModelConfig) -> str | None:
    """The zero-shot model on the hub, if it is there."""
    place = model.name.removeprefix(HUB) if model.name.startswith(HUB) else ""
    if model.pretrained:
        place = get_pretrained_cfg(model.name, model.pretrained).get("hf_hub", "")
    return "/".join(place.split("/")[:2]) or None  # the rest is a file
