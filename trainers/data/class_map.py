"""From the logits of the ID classes to those of another domain's own classes.

A domain may have a part of the ID classes (ImageNet-R and -A: 200 of 1000), the same in another
order, or classes of its own that each stand for one or several ID classes (ObjectNet). Its
images are always scored in its own label space: a softmax over its own classes and no others.

A class that stands for no ID class cannot be scored, and a domain that has one is refused: an
accuracy over the rest would pass for the domain's and be another. Who fine-tunes on 100 of
ImageNet's classes and wants ImageNet-V2 on those says so in a suite: `unknown_classes: skip` leaves
the images of all others out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from trainers.config import DataConfig
from trainers.data.suite import DomainRule, listed, near
from trainers.errors import ConfigError

METADATA_KEY = "class_map"
"""Under which a domain's Parquet files say what its classes stand for, as JSON."""


@dataclass(frozen=True)
class ClassMap:
    """Which ID classes each class of a domain stands for."""

    num_id_classes: int
    groups: tuple[tuple[int, ...], ...]
    """For each class of the domain, in the order of its labels, the ID labels it stands for; none
    where its images are left out."""

    @property
    def num_classes(self) -> int:
        """Of the domain, those that are scored."""
        return sum(map(bool, self.groups))

    def project(self, logits: Tensor) -> Tensor:
        """ID logits (B, K) to the domain's (B, `num_classes`): the best of each group."""
        if self._index is None:
            return logits
        return logits[:, self._index.to(logits.device)].amax(dim=-1)

    def score(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """`project`, with the domain's labels (B,) as columns of it; without what is left out."""
        if all(self.groups):
            return self.project(logits), labels
        columns = self._columns.to(labels.device)[labels]
        return self.project(logits[columns >= 0]), columns[columns >= 0]

    @cached_property
    def _index(self) -> Tensor | None:
        """(num_classes, widest group) ID labels; None where there is nothing to do."""
        if self.groups == tuple((label,) for label in range(self.num_id_classes)):
            return None
        groups = [group for group in self.groups if group]
        widest = max(map(len, groups))
        # Short groups repeat their first member, which changes no maximum.
        return torch.tensor([group + group[:1] * (widest - len(group)) for group in groups])

    @cached_property
    def _columns(self) -> Tensor:
        """For each label of the domain, its column of what `project` gives; -1: left out."""
        kept = torch.tensor([bool(group) for group in self.groups])
        return torch.where(kept, kept.cumsum(0) - 1, -1)


class Described(Protocol):
    """What says of itself which classes it has: opened images, or a file's header."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Of the Parquet files."""


def domain_class_map(
    data: DataConfig, id_classes: Sequence[str], domain: str, described: Described
) -> ClassMap:
    """The map of one of a configuration's domains, by its suite and by what its files say.

    Raises:
        ConfigError: as `class_map`.
    """
    return class_map(
        id_classes,
        described.class_names,
        domain=domain,
        id_domain=data.id_domain,
        rule=data.rules.rule(domain),
        metadata=described.metadata if domain != data.id_domain else None,
    )


def class_map(
    id_classes: Sequence[str],
    domain_classes: Sequence[str],
    *,
    domain: str,
    id_domain: str,
    rule: DomainRule | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ClassMap:
    """The map of one domain.

    Args:
        id_classes: (K,) names that identify the classes of the head.
        domain_classes: of the domain, in the order of its labels.
        domain: its name, for messages.
        id_domain: the ID domain's name, for messages.
        rule: of the suite; what it maps goes before what the files say.
        metadata: of the domain's Parquet files.

    Raises:
        ConfigError: another number of classes than the suite has, a class that stands for none of
            the ID classes, several classes of one name, or that stand for the same ID classes, or
            a class of the suite's map that the domain has not.
    """
    rule = rule or DomainRule()
    if rule.num_classes is not None and rule.num_classes != len(domain_classes):
        raise ConfigError(
            f"{domain}: it has {len(domain_classes)} classes, and the suite expects "
            f"{rule.num_classes}"
        )
    for name, classes in ((id_domain, id_classes), (domain, domain_classes)):
        if twice := sorted(c for c, times in Counter(classes).items() if times > 1):
            raise ConfigError(f"{name}: several of its classes are called {listed(twice)}")
    labels = {name: label for label, name in enumerate(id_classes)}
    for name in rule.class_map or ():
        if name not in domain_classes:
            raise ConfigError(
                f"{domain}: the class_map of the suite has {name!r}, which is none of its "
                f"{len(domain_classes)} classes{near(name, domain_classes)}"
            )
    given = rule.class_map or _from_metadata(metadata or {}, domain)
    targets = given or {name: (name,) for name in domain_classes}
    if rule.unknown_classes == "refuse":
        if given is None:
            _check_names(domain_classes, labels, domain, id_domain)
        else:
            _check_targets(domain_classes, given, labels, domain, id_domain)
    groups = tuple(
        tuple(labels[target] for target in targets.get(name, ()) if target in labels)
        for name in domain_classes
    )
    if not any(groups):
        raise ConfigError(f"{domain}: none of its classes is one of {id_domain}")
    _check_groups(domain_classes, groups, domain, id_domain)
    return ClassMap(len(id_classes), groups)


def _check_names(
    domain_classes: Sequence[str], labels: Mapping[str, int], domain: str, id_domain: str
) -> None:
    """Every class of the domain must be one of the ID domain."""
    unknown = [name for name in domain_classes if name not in labels]
    if unknown:
        hint = near(unknown[0], labels) if len(unknown) == 1 else ""
        raise ConfigError(
            f"{domain}: {listed(unknown)}: no class of {id_domain}, which has {len(labels)}{hint}; "
            f"in a suite of your own, domains.{domain} may have a class_map, or unknown_classes: "
            "skip"
        )


def _check_targets(
    domain_classes: Sequence[str],
    given: Mapping[str, tuple[str, ...]],
    labels: Mapping[str, int],
    domain: str,
    id_domain: str,
) -> None:
    """Every class of the domain must be in its map, and stand for ID classes alone."""
    unmapped = [name for name in domain_classes if name not in given]
    if unmapped:
        hint = near(unmapped[0], given) if len(unmapped) == 1 else ""
        raise ConfigError(f"{domain}: its class_map has nothing for {listed(unmapped)}{hint}")
    for name in domain_classes:
        for target in given[name]:
            if target not in labels:
                raise ConfigError(
                    f"{domain}: its class_map has {name!r} stand for {target!r}, which is no class "
                    f"of {id_domain}{near(target, labels)}"
                )


def _check_groups(
    domain_classes: Sequence[str],
    groups: Sequence[tuple[int, ...]],
    domain: str,
    id_domain: str,
) -> None:
    """No two classes may stand for the same ID classes; that some are shared is usual."""
    first: dict[frozenset[int], str] = {}
    for name, group in zip(domain_classes, groups, strict=True):
        other = first.setdefault(frozenset(group), name)
        if group and other != name:
            raise ConfigError(
                f"{domain}: its class_map has {other!r} and {name!r} stand for the same classes of "
                f"{id_domain}, so that nothing could tell them apart"
            )


def _from_metadata(metadata: Mapping[str, str], domain: str) -> dict[str, tuple[str, ...]] | None:
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        values = json.loads(text)
        return {str(name): tuple(map(str, _as_list(ids))) for name, ids in values.items()}
    except (ValueError, AttributeError, TypeError):
        raise ConfigError(
            f"{domain}: the class_map of its Parquet files is no JSON object of lists"
        ) from None


def _as_list(ids: object) -> list[object]:
    if not isinstance(ids, list) or not ids:
        raise TypeError(ids)
    return ids
