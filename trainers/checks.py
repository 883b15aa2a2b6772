"""Checks of model, method and data before a worker starts: of data, headers and labels alone."""

from __future__ import annotations

from collections.abc import Sequence

from trainers.config import TrialConfig, say_once, training_images
from trainers.data.class_map import domain_class_map
from trainers.data.config import DataConfig
from trainers.data.roots import domain_files
from trainers.data.schema import split_header
from trainers.data.store import open_root
from trainers.errors import ConfigError
from trainers.loop.setup import check_names
from trainers.models.clip import check_model


def check_trial(config: TrialConfig, checked: list[tuple[DataConfig, Sequence[str]]]) -> None:
    """Raise a ConfigError for a model, method or data that cannot work, alone or together.

    A model is loaded once. No images are read. `checked` are data that other trials have in common
    with this one, with their classes; those of this one are added.
    """
    classes = next((classes for data, classes in checked if data == config.data), None)
    if classes is None:
        classes = check_data(config.data)
        checked.append((config.data, classes))
    if isinstance(config.class_weights, dict):
        check_names(config.class_weights, classes)
    check_model(config.model)  # after the data: it may fetch weights
    config.method.check(config.model)
    check_batch(config)


def check_batch(config: TrialConfig) -> None:
    """Refuse a batch of more images than there are for a loss that compares them; warn for others.

    Such a batch has images several times, each time as the same view, since a view is a function of
    (seed, step, sample).
    """
    batch_size, images = config.optim.batch_size, training_images(config.data)
    if batch_size <= images:
        return
    if config.method.per_image:
        twice = "a step has some of them several times, each time as the same view"
        say_once(f"optim.batch_size = {batch_size}: of {images} training images, {twice}")
        return
    name = config.method.name
    problem = f"of {images} training images, {name} would compare some with themselves"
    hint = f"write {images} or less"
    raise ConfigError(problem, key="optim.batch_size", value=batch_size, hint=hint)


def check_data(data: DataConfig, parts: Sequence[tuple[str, str]] | None = None) -> tuple[str, ...]:
    """The classes of the ID domain; a ConfigError for data that are missing, unfinished or
    mislabelled. `parts` are domains and splits, the ID domain first; by default `trial_parts`.
    """
    parts = parts or data.trial_parts
    store = open_root(data.root)
    headers = {part: split_header(store, domain_files(store, *part)) for part in parts}
    id_classes = headers[parts[0]].class_names
    data.rules.prompts(id_classes)
    for (domain, _), header in headers.items():
        domain_class_map(data, id_classes, domain, header.class_names)
    return id_classes
