"""Maps logits of the ID classes to the classes of another domain.

A domain may have a part of the ID classes (ImageNet-R and -A: 200 of 1000), the same ones in
another order, or classes that each stand for one or several ID classes. Its images are always
scored in its own label space: a softmax over its own classes.

A class that stands for no ID class cannot be scored, and a domain with such a class is refused,
since an accuracy over the rest would pass for the accuracy of the domain. If a model is fine-tuned
on 100 of ImageNet's classes and evaluated on those of ImageNet-V2, the suite sets
`unknown_classes: skip`, which leaves the images of the other classes out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trainers.data.config import DataConfig
from trainers.errors import ConfigError, nearest, quoted


@dataclass(frozen=True)
class ClassMap:
    """The ID classes that each class of a domain stands for."""

    groups: tuple[tuple[int, ...], ...]
    """ID labels for each class of the domain in the order of its labels; empty if its images are
    left out."""

    @property
    def num_classes(self) -> int:
        """Number of the domain's classes that are scored."""
        return sum(map(bool, self.groups))

    def project(self, logits: Tensor) -> Tensor:
        """ID logits (B, K) to the domain's (B, `num_classes`): the maximum of each group."""
        members, _ = self._on(logits.device)
        return logits[:, members].amax(dim=-1)

    def columns(self, labels: Tensor) -> Tensor:
        """Columns (B,) of the projected logits; -1 for images that are left out."""
        _, columns = self._on(labels.device)
        return columns[labels]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """On a device, (num_classes, widest group) ID labels of each scored class, and for each
        label of the domain its column of the projected logits, -1 if it is left out."""
        if device not in self._by_device:
            groups = [group for group in self.groups if group]
            widest = max(map(len, groups))
            # Short groups repeat their first member, which changes no maximum.
            members = [group + group[:1] * (widest - len(group)) for group in groups]
            kept = torch.tensor([bool(group) for group in self.groups])
            columns = torch.where(kept, kept.cumsum(0) - 1, -1)
            self._by_device[device] = torch.tensor(members).to(device), columns.to(device)
        return self._by_device[device]

    @cached_property
    def _by_device(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}


def domain_class_map(
    data: DataConfig, id_classes: Sequence[str], domain: str, domain_classes: Sequence[str]
) -> ClassMap:
    """The map of one of a configuration's domains, by its suite or else by names."""
    rule = data.rules.rule(domain)
    id_domain = data.id_domain
    if rule.num_classes is not None and rule.num_classes != len(domain_classes):
        problem = f"it has {len(domain_classes)} classes, and the suite expects {rule.num_classes}"
        raise ConfigError(problem, source=domain)
    labels = {name: label for label, name in enumerate(id_classes)}
    for name, classes in ((id_domain, id_classes), (domain, domain_classes)):
        if twice := [c for c, times in Counter(classes).items() if times > 1]:
            raise ConfigError(f"several classes are called {quoted(twice)}", source=name)
    by_name = {name: (name,) for name in domain_classes}
    targets: Mapping[str, Sequence[str]] = rule.class_map or by_name
    of_class = {name: targets.get(name, ()) for name in domain_classes}
    groups = tuple(tuple(labels[t] for t in of if t in labels) for of in of_class.values())
    unknown = [n for n, of in of_class.items() if not of or not labels.keys() >= {*of}]
    if unknown and rule.unknown_classes == "refuse":
        rules = f"domains.{domain} may have a class_map, or unknown_classes: skip"
        hint = f"in a suite of your own, {rules}"
        if len(unknown) == 1 and (close := nearest(unknown[0], labels)):
            hint = f"{hint}; {close}"
        problem = f"{quoted(unknown)}: no class of {id_domain}, which has {len(labels)}"
        raise ConfigError(problem, hint=hint, source=domain)
    scored = [frozenset(group) for group in groups if group]
    if not scored:
        raise ConfigError(f"none of its classes is one of {id_domain}", source=domain)
    if len({*scored}) < len(scored):  # classes may share some ID classes, but not all of them
        named = zip(domain_classes, groups, strict=True)
        same = [name for name, group in named if scored.count(frozenset(group)) > 1]
        problem = f"{quoted(same)} stand for the same classes of {id_domain}"
        raise ConfigError(problem, source=domain)
    return ClassMap(groups)
