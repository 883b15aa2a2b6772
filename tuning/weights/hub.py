"""Exported models on the Hugging Face hub: the metadata of their cards, and the upload."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id
from open_clip import get_pretrained_cfg

from trainers.config import TrialConfig
from trainers.data.domain_files import read_record, stored_root
from trainers.errors import ConfigError, StorageFailed, first_line
from trainers.evaluation.metrics import ID, MetricKey
from trainers.models.config import HUB, ModelConfig
from tuning.runs.confirmation import SPLIT as TEST

_TASK = "image-classification"
_FETCH = """
To fetch this folder: `hf download {repo} --local-dir model`.
"""


def card_data(title: str, trial: TrialConfig, about: Mapping[str, Any]) -> ModelCardData:
    """The front matter of a model card.

    The test accuracies are those of `confirm`; without it there are none, because those of the
    validation splits are optimistic.
    """
    sources, root = _hub_sources(trial), trial.data.root
    folder = Path(root.partition("?")[0]).name if isinstance(root, str) else ""
    tested: Mapping[str, Mapping[str, Any]] = about["test"]
    label, measured = next(iter(tested.items())) if tested else ("", {})
    seeds = measured.get("seeds")
    means = f", mean of {seeds} trainings of {label} with fresh seeds" if seeds else ""
    results = []
    for domain in trial.data.domains:
        column = ID if domain == trial.data.id_domain else domain
        accuracy = measured.get("metrics", {}).get(str(MetricKey(TEST, column, "acc")))
        if accuracy is not None:
            source = sources.get(domain, {})
            result = EvalResult(
                task_type=_TASK,
                dataset_type=source.get("path", "imagefolder"),
                dataset_name=": ".join(filter(None, (folder, domain))),
                dataset_config=domain,  # the client merges results that differ in the name alone
                dataset_revision=source.get("revision"),
                dataset_split=TEST,
                metric_type="accuracy",
                metric_name=f"Accuracy{means}",
                metric_value=round(accuracy / 100, 4),
            )
            results.append(result)
    return ModelCardData(
        base_model=_base_model(trial.model),
        datasets=sorted({source["path"] for source in sources.values()}) or None,
        library_name="open_clip",
        pipeline_tag=_TASK,
        tags=["clip", "lipsum-tune"],
        metrics=["accuracy"] if results else None,
        model_name=title,
        eval_results=results or None,
    )


def _base_model(model: ModelConfig) -> str | None:
    """The zero-shot model on the hub, if it is there."""
    place = model.name.removeprefix(HUB) if model.name.startswith(HUB) else ""
    if model.pretrained:
        place = get_pretrained_cfg(model.name, model.pretrained).get("hf_hub", "")
    return "/".join(place.split("/")[:2]) or None  # the rest is a file


def _hub_sources(trial: TrialConfig) -> dict[str, Mapping[str, Any]]:
    """Domain -> source, of the domains that were prepared from a data set of the hub."""
    found = {}
    with suppress(ConfigError, OSError, StorageFailed):  # data may be gone since the search
        store = stored_root(trial.data.root)
        for domain in trial.data.domains:
            source = (read_record(store.at(domain)) or {}).get("source", {})
            # A copy in a folder has an absolute path.
            if source.get("layout") == "hub" and not Path(source["path"]).is_absolute():
                found[domain] = source
    return found


def check_upload(repo: str, *, needs_token: bool = True) -> None:
    """Check what can be checked before a model is exported for the hub.

    Raises:
        ConfigError: not the name of a repository, or no token.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(first_line(error), key="--push") from None
    if repo.count("/") != 1:
        raise ConfigError("must be USER/NAME", key="--push", value=repo)
    if needs_token and not get_token():
        hint = "set HF_TOKEN to one that may write, or run `hf auth login`"
        raise ConfigError("no token of the Hugging Face hub", key="--push", value=repo, hint=hint)


def complete_card(folder: Path, repo: str, license: str | None) -> ModelCard:
    """Add to the card of an exported folder what its place on the hub adds, and return it."""
    path = folder / "README.md"
    card = ModelCard.load(path)
    card.data.license = license
    card.text = f"{card.text.rstrip()}\n{_FETCH.format(repo=repo)}"
    card.save(path)
    return card


def upload(folder: Path, repo: str, *, private: bool = True) -> str:
    """Send an exported folder to a repository, which is created if it is missing.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: the hub refuses it, or the repository is public where a private one is meant.
        StorageFailed: the hub does not answer.
    """
    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            hint = "--public adds the model to it"
            raise ConfigError("exists and is public", key="--push", value=repo, hint=hint)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Add the model")
    except (HTTPError, OSError) as error:
        problem = f"the Hugging Face hub: {first_line(error)}"
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise ConfigError(problem, key="--push", value=repo) from None
        raise StorageFailed(f"--push {repo}: {problem}") from None
    return str(url)
