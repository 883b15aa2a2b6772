"""What the zero-shot head is made of: names of the classes and templates around them."""

from __future__ import annotations

from dataclasses import dataclass

from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

TEMPLATES: dict[str, tuple[str, ...]] = {
    "openai_imagenet": tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),
    "simple_imagenet": tuple(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES),
}
"""By name: the 80 of CLIP's authors, and the 7 they found to do nearly as well."""


@dataclass(frozen=True)
class Prompts:
    """Texts of K classes: every name in every template."""

    names: tuple[str, ...]
    """(K,) as they are spoken of, in the order of the classes."""
    templates: tuple[str, ...] = TEMPLATES["openai_imagenet"]
    """Each with one `{}`."""

    def of(self, name: str) -> list[str]:
        """All texts of one class."""
        return [template.replace("{}", name) for template in self.templates]


def spoken(name: str) -> str:
    """A folder's name as a prompt says it: underscores and hyphens are spaces."""
    return name.replace("_", " ").replace("-", " ")
