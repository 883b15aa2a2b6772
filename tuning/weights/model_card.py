"""The README of an exported model: its origin, its accuracy, and the code to use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainers.evaluation.metrics import ID, MEAN_OOD, MetricKey
from tuning.confirmation.results import SPLIT as TEST
from tuning.views.formatting import format_value
from tuning.weights.sources import SPLIT

_CARD = """\
# {title}
{crop}
{summary}

```python
import json, open_clip, safetensors.torch, torch
from PIL import Image, ImageOps{imports}
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")  # of this folder
head = safetensors.torch.load_file("head.safetensors")["head"]
classes = json.load(open("classes.json"))["classes"]
{preprocess}@torch.no_grad()
def classify(image):
    pixels = preprocess(ImageOps.exif_transpose(image).convert("RGB"))[None]
    return classes[(model.eval().encode_image(pixels, normalize=True) @ head.T).argmax()]
print(classify(Image.open("image.jpg")))
```

{note}
"""
_SUMMARY = """\
{what}, exported by Lipsum-Tune.

| | |
|---|---|
{rows}

{accuracies}"""
_PREPROCESS = """\
preprocess = transforms.Compose([  # open_clip's own shows more of each image
    transforms.Resize({resized}, transforms.InterpolationMode("{interpolation}")),
    transforms.CenterCrop({size}),
    transforms.ToTensor(),
    transforms.Normalize({mean}, {std}),
])
"""


def model_card(title: str, about: Mapping[str, Any]) -> str:
    """The card in Markdown: the `summary` and the code to use the model."""
    view = about["preprocessing"]
    crops = view["crop_pct"]
    crop = crops[about["id_domain"]]
    note, imports, preprocess, other_crop = "", "", "", ""
    # open_clip's transform has no crop: the short side of the image fills the model's input.
    if view["resize_mode"] == "shortest" and crop < 1:
        resized = round(view["size"] / crop)
        preprocess = _PREPROCESS.format(resized=resized, **view)
        imports = "\nfrom torchvision import transforms"
        other_crop = (
            f"**Its accuracies hold with the transform below, and not with open_clip's own**: the "
            f"short side of an image becomes {resized} pixels, of which the centre of "
            f"{view['size']} is shown.\n"
        )
    if others := [f"{name} {pct:g}" for name, pct in crops.items() if pct != crop]:
        note = f"Evaluated with other crops (`trial.data.crop_pct`): {', '.join(others)}. "
    note += (
        f"It was evaluated with precision `{about['precision']}`, images with transparency on "
        "white, and 16-bit ones scaled to 8 bits."
    )
    return _CARD.format(
        title=title,
        crop=other_crop,
        summary=summary(about),
        imports=imports,
        preprocess=preprocess,
        note=note,
    )


def summary(about: Mapping[str, Any]) -> str:
    """Origin and accuracies of the model in Markdown."""
    classes = f"{len(about['classes'])} classes of {about['id_domain']}"
    what = f"A CLIP of open_clip, fine-tuned on {classes}"
    if about["alpha"] == 0:
        what = f"A zero-shot CLIP of open_clip, with a head for {classes}"
    rows = "\n".join(f"| {name} | {value} |" for name, value in _rows(about))
    return _SUMMARY.format(what=what, rows=rows, accuracies=_accuracies(about))


def _rows(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    model = about["model"]
    weights = f", `{model['pretrained']}`" if model["pretrained"] else ""
    yield "model", f"`{model['name']}`{weights}"
    for key in ("method", "run", "trial", "step", "chosen"):
        if about.get(key) is not None:
            yield key, str(about[key])
    if about.get("trials"):
        yield "mean of", ", ".join(about["trials"])
    if about.get("params"):
        params = about["params"].items()
        yield "parameters", ", ".join(f"`{key}` {format_value(value)}" for key, value in params)
    if about["alpha"] is not None:
        yield "WiSE-FT", f"alpha = {about['alpha']:g}: 0 is the zero-shot model, 1 the fine-tuned"
    yield "tokenizer", f"`{about['tokenizer'].replace('{folder}', '.')}`"


def _accuracies(about: Mapping[str, Any]) -> str:
    """A table of the known accuracies, and how they were measured."""
    rows = [
        (f"{label}, test{_seeds(one)}", one["metrics"], TEST)
        for label, one in about.get("test", {}).items()
    ]
    rows.append(("this model, validation", about["metrics"], SPLIT))
    columns = {about["id_domain"]: (ID, "acc"), "OOD mean": (MEAN_OOD, "acc")}
    columns |= {domain: (domain, "acc") for domain in about["ood_domains"]}
    cells = {
        label: [metrics.get(str(MetricKey(split, *key))) for key in columns.values()]
        for label, metrics, split in rows
    }
    known = [i for i in range(len(columns)) if any(row[i] is not None for row in cells.values())]
    if not known:
        return "These weights have not been evaluated."
    names = [list(columns)[i] for i in known]
    lines = [f"| accuracy in percent | {' | '.join(names)} |", f"|---|{'---:|' * len(known)}"]
    for label, row in cells.items():
        values = (row[i] for i in known)
        shown = ("-" if value is None else f"{value:.1f}" for value in values)
        lines.append(f"| {label} | {' | '.join(shown)} |")
    text = ""
    if about.get("test"):
        text = (
            "\n\nThe test accuracies are from `lipsum-tune confirm`, which ran after the choice on "
            "the validation splits."
        )
    elif about.get("trial") or about.get("trials"):
        text = (
            "\n\nThe validation splits were used to choose the model, so this is optimistic. "
            "`lipsum-tune confirm` reads the test splits."
        )
    return "\n".join(lines) + text


def _seeds(measured: Mapping[str, Any]) -> str:
    """How many trainings a test accuracy is the mean of."""
    return f", mean of {measured['seeds']} fresh trainings" if "seeds" in measured else ""
