"""Texts: class prompts, random texts, and texts of the user."""


def spoken(name: str) -> str:
    """A folder's name for prompts: underscores and hyphens become spaces."""
    return name.replace("_", " ").replace("-", " ")
