"""What can be known to fail before a worker starts, from headers and configurations alone."""

from __future__ import annotations

from trainers.config import TrialConfig
from trainers.data.pictures import parquet_files
from trainers.data.roots import EMBEDDED, resolve_root
from trainers.data.schema import read_class_names
from trainers.errors import ConfigError, did_you_mean
from trainers.methods import LipsumFineTuning
from trainers.methods.lipsum import check_text_length
from trainers.models import check_model, context_length

EMBEDDED_DOMAINS = ("real", "painting", "clipart", "infograph", "sketch")


def check_trial(config: TrialConfig) -> None:
    """Raise a `ConfigError` for an unknown model, a text that is too long, or missing data.

    Weights are not loaded, pictures not read, and the embedded benchmark not built.
    """
    check_model(config.model)
    if isinstance(config.method, LipsumFineTuning):
        check_text_length(config.method.text_length, context_length(config.model))
    domains = (config.data.id_domain, *config.data.ood_domains)
    if config.data.root == EMBEDDED:
        for domain in domains:
            if domain not in EMBEDDED_DOMAINS:
                raise ConfigError(
                    f"data: the embedded benchmark has no domain {domain!r}"
                    f"{did_you_mean(domain, EMBEDDED_DOMAINS)}"
                )
        return
    root = resolve_root(config.data.root)
    classes = read_class_names(parquet_files(root, config.data.id_domain, "train")[0])
    for domain in domains:
        files = parquet_files(root, domain, "val")
        if read_class_names(files[0]) != classes:
            raise ConfigError(
                f"{files[0]}: its classes differ from those of {config.data.id_domain}/train"
            )
