"""Prompts of the zero-shot head: class names in templates."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

TEMPLATES = ("openai_imagenet", "simple_imagenet")
"""Names of templates: the 80 of CLIP's authors, and the 7 that they found nearly as good."""


@cache
def named_templates(name: str = "openai_imagenet") -> tuple[str, ...]:
    """The templates of one of these names, each with one `{}`."""
    import open_clip

    return tuple(template("{}") for template in getattr(open_clip, f"{name.upper()}_TEMPLATES"))


@dataclass(frozen=True)
class Prompts:
    """Prompts of K classes: every name in every template."""

    names: tuple[str, ...]
    """(K,) class names as used in prompts, in the order of the classes."""
    templates: tuple[str, ...] = field(default_factory=named_templates)
    """Each with one `{}`."""

    def of(self, name: str) -> list[str]:
        """All texts of one class."""
        return [template.replace("{}", name) for template in self.templates]
