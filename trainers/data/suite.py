"""Evaluation suites as data: domains that belong together, and the words for their classes.

A suite is a few lines of YAML, packaged (`imagenet`, `domainnet`) or a user's own::

    name: products
    id_domain: studio
    ood_domains: [street, sketch]
    templates: ["a photo of a {}.", "a product photo of a {}."]
    class_names: {sku_17: running shoe, sku_18: sandal}
    domains:
      sketch: {num_classes: 1, class_map: {shoe: [sku_17, sku_18]}}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainers.config_model import Frozen
from trainers.errors import ConfigError, did_you_mean, nearest, suggestion, validate
from trainers.texts import TEMPLATES, Prompts, named_templates
from trainers.yaml_text import read_yaml

_WORDNET_ID = re.compile(r"n\d{8}")


class DomainRule(Frozen):
    """Rules for the classes of one domain."""

    num_classes: int | None = Field(default=None, ge=1, le=10**9)
    """Number of its classes; other data of that name are refused."""
    class_map: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] | None = None
    """From a class of this domain to the ID classes that are counted as correct. By default the
    ID class of the same name."""

    unknown_classes: Literal["refuse", "skip"] = "refuse"
    """For classes that stand for no ID class: refuse the data, or leave the images of those classes
    out, so that the domain's figures are of the others."""


def _check_templates(templates: Any) -> Any:
    if isinstance(templates, str) and templates not in TEMPLATES:
        problem = f"no templates are called so{did_you_mean(templates, TEMPLATES)}; or give a list"
        raise ValueError(problem)
    given = templates if isinstance(templates, list | tuple) else ()
    if any(str(template).count("{}") != 1 for template in given) or not templates:
        raise ValueError("expected templates, each with one {}")
    return templates


def _check_names(names: Any) -> Any:
    known = ("spoken", "verbatim", "imagenet")
    if not isinstance(names, Mapping) and names not in known:
        hint = did_you_mean(str(names), known)
        raise ValueError(f"not one of its values{hint}; or give a mapping from class to name")
    if not isinstance(names, Mapping):
        return names
    if empty := [key for key, name in names.items() if not str(name or "").strip()]:
        raise ValueError(f"the class {empty[0]!r} has an empty name")
    return {str(key): str(name) for key, name in names.items()}


def is_domain_name(name: str) -> bool:
    """Whether it can be a folder in the root: no path, nothing that a terminal does not show,
    and not too long for a file system."""
    is_one = name not in ("", ".", "..") and {*"/\\"}.isdisjoint(name) and name.isprintable()
    return is_one and len(name.encode(errors="surrogatepass")) <= 200


class Suite(Frozen):
    """Domains that are evaluated together, the words for their classes, and published figures."""

    name: str = Field(default="custom", min_length=1)
    id_domain: str
    """In-distribution domain: fine-tuned on; its classes are those of the head."""
    ood_domains: tuple[str, ...] = ()
    """Domains that are only evaluated."""
    templates: Annotated[str | tuple[str, ...], BeforeValidator(_check_templates)] = (
        "openai_imagenet"
    )
    """`openai_imagenet` (80), `simple_imagenet` (7), or a list, each with one `{}`."""
    class_names: Annotated[
        Literal["spoken", "verbatim", "imagenet"] | dict[str, str], BeforeValidator(_check_names)
    ] = "spoken"
    """Class names in prompts: underscores and hyphens become spaces (`spoken`), unchanged
    (`verbatim`), open_clip's name of the WordNet id (`imagenet`), or by a mapping."""
    domains: dict[str, DomainRule] = Field(default_factory=dict)
    """Rules by domain, also for domains that a user may add to `ood_domains`."""
    published: dict[str, dict[str, Annotated[float, Field(ge=0, le=100)]]] = Field(
        default_factory=dict
    )
    """Zero-shot accuracy in percent on test splits: `<model.name>/<model.pretrained>` to domain to
    figure."""

    @property
    def all_templates(self) -> tuple[str, ...]:
        """The templates themselves."""
        given = self.templates
        return named_templates(given) if isinstance(given, str) else given

    def rule(self, domain: str) -> DomainRule:
        """Rules of a domain; the default if the suite has none."""
        return self.domains.get(domain, DomainRule())

    def prompts(self, class_names: Sequence[str]) -> Prompts:
        """Texts of the zero-shot head, for the ID classes in the order of their labels.

        No two classes may have one name, in which tokenizers ignore case and spaces. Of `imagenet`,
        open_clip has two such pairs.
        """
        names = tuple(self._name(name) for name in class_names)
        first: dict[str, str] = {}
        for identity, name in zip(class_names, names, strict=True):
            seen = " ".join(name.casefold().split())
            other = first.setdefault(seen, identity)
            if other != identity and self.class_names != "imagenet":
                problem = f"the classes {other!r} and {identity!r} are both called {seen!r}"
                raise self._error(problem)
        return Prompts(names, self.all_templates)

    def _name(self, identity: str) -> str:
        """Name of a class in prompts."""
        if self.class_names == "verbatim":
            return identity
        if self.class_names == "spoken":
            if _WORDNET_ID.fullmatch(identity):
                problem = f"the class {identity!r} is a WordNet id, which means nothing to a model"
                hint = "set data.suite = imagenet, or class_names: imagenet in your own suite"
                raise ConfigError(problem, hint=hint)
            return identity.replace("_", " ").replace("-", " ")
        names = imagenet_names() if self.class_names == "imagenet" else self.class_names
        if identity not in names:
            raise self._error(f"has no name for {identity!r}", nearest(identity, names))
        return names[identity]

    def _error(self, problem: str, hint: str | None = None) -> ConfigError:
        return ConfigError(problem, key="class_names", hint=hint, source=f"suite {self.name!r}")


def load_suite(source: str | Path) -> Suite:
    """A packaged suite by name, or one of a YAML file."""
    name = str(source)
    path = Path(source).expanduser()
    if name in packaged_suites():
        return packaged_suites()[name]
    if not path.is_file():
        hint = suggestion(name, packaged_suites())
        raise ConfigError(f"no suite is called {name!r}, nor is there such a file", hint=hint)
    return validate(Suite, read_yaml(path), name)


def resolve_suite(value: Any, source: str = "suite") -> str | Suite | None:
    """The suite as a configuration keeps it: a packaged suite's name, or the whole of any other.

    `value` is a name, a YAML file, the keys of a suite, or a resolved suite.
    """
    if isinstance(value, Mapping):
        return validate(Suite, value, source)
    if isinstance(value, str | Path):
        return str(value) if str(value) in packaged_suites() else load_suite(value)
    if value is None or isinstance(value, Suite):
        return value
    raise ConfigError("expected the name of a suite, a YAML file, or the keys of a suite")


@cache
def packaged_suites() -> dict[str, Suite]:
    """The suites that come with the package, by name."""
    folder = Path(__file__).parent / "suites"
    return {
        file.stem: validate(Suite, read_yaml(file), file.name) for file in folder.glob("*.yaml")
    }


@cache
def imagenet_names() -> dict[str, str]:
    """Open_clip's names of ImageNet's 1000 classes, by WordNet id."""
    from open_clip import IMAGENET_CLASSNAMES

    from trainers.data.published import wordnet_ids

    return dict(zip(wordnet_ids(), IMAGENET_CLASSNAMES, strict=True))
