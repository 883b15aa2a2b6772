"""Prompts of the zero-shot head: class names in templates."""

from __future__ import annotations

from dataclasses import dataclass

from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

TEMPLATES: dict[str, tuple[str, ...]] = {
    "openai_imagenet": tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),
    "simple_imagenet": tuple(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES),
}
"""Templates by name: the 80 of CLIP's authors, and the 7 that they found nearly as good."""


@dataclass(frozen=True)
class Prompts:
    """Prompts of K classes: every name in every template."""

    names: tuple[str, ...]
    """(K,) class names as used in prompts, in the order of the classes."""
    templates: tuple[str, ...] = TEMPLATES["openai_imagenet"]
    """Each with one `{}`."""

    def of(self, name: str) -> list[str]:
        """All texts of one class."""
        return [template.replace("{}", name) for template in self.templates]
