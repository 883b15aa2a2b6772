"""The README of an exported model: where it comes from, what it can do, and how to use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers.config import TrialConfig
from trainers.data.transforms import CROP_PCT
from tuning.reporting.formatting import format_value
from tuning.runs.records import ID_ACC, OOD_MEAN_ACC, domain_acc

_USE = """\
import json, open_clip, PIL.Image, safetensors.torch
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{folder}")
head = safetensors.torch.load_file("{folder}/head.safetensors")["head"]
about, image = json.load(open("{folder}/classes.json")), PIL.Image.open("image.jpg")
features = model.eval().encode_image(preprocess(image)[None], normalize=True)
print(about["classes"][(about["logit_scale"] * features @ head.T).argmax()])
"""


def model_card(title: str, trial: TrialConfig, about: Mapping[str, Any], folder: Path) -> str:
    """Markdown.

    Args:
        title: of the model.
        trial: what it was trained with.
        about: what `classes.json` says.
        folder: where the model will lie.
    """
    lines = [
        f"# {title}",
        "",
        f"A CLIP of open_clip, fine-tuned on {len(about['classes'])} classes of "
        f"{about['id_domain']} and exported by Lipsum-Tune.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _rows(about)),
        "",
        *_accuracies(about),
        "```python",
        *_USE.format(folder=folder).splitlines(),
        "```",
        "",
        _crop(trial),
    ]
    return "\n".join(lines) + "\n"


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
    yield "tokenizer", f"`{about['tokenizer']}`"


def _accuracies(about: Mapping[str, Any]) -> list[str]:
    """A table of what is known, and what it is worth."""
    domains = {about["id_domain"]: ID_ACC, "OOD mean": OOD_MEAN_ACC}
    domains |= {domain: domain_acc(domain) for domain in about["ood_domains"]}
    known = {d: about["metrics"][name] for d, name in domains.items() if name in about["metrics"]}
    if not known:
        return ["These very weights have not been evaluated.", ""]
    worth = "."
    if about.get("trial") or about.get("trials"):
        worth = (
            ", which had a say in the choice: it is optimistic. "
            "`lipsum-tune confirm` reads the test splits."
        )
    return [
        f"| {' | '.join(known)} |",
        f"|{'---:|' * len(known)}",
        f"| {' | '.join(f'{value:.1f}' for value in known.values())} |",
        "",
        f"Accuracy in percent on the validation splits{worth}",
        "",
    ]


def _crop(trial: TrialConfig) -> str:
    share = trial.data.crop_pct
    known = f"{share:g}" if share else f"the data's own share, or {CROP_PCT:g}"
    return (
        f"The search evaluated the centre of each image ({known} of its short side, "
        "`trial.data.crop_pct`), and open_clip's `preprocess` takes all of the short side."
    )
