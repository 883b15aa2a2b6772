"""Captions of images in the words of their domain."""

from trainers.embedded_benchmark.raster import Rng
from trainers.embedded_benchmark.render import Domain

TEMPLATES: dict[Domain, tuple[str, ...]] = {
    "real": ("a photo of {}.", "a photograph of {}.", "a blurry photo of {}.", "a snapshot of {}."),
    "painting": ("a painting of {}.", "an oil painting of {}.", "a canvas showing {}."),
    "clipart": ("a clipart of {}.", "a clip art picture of {}.", "a cartoon of {}."),
    "infograph": ("an infographic about {}.", "an infograph of {}.", "a chart with {}."),
    "sketch": ("a sketch of {}.", "a pencil drawing of {}.", "a line drawing of {}."),
}

_UNCOUNTED = {"bread", "rain", "butter", "garlic", "bacon", "broccoli", "popcorn", "coral", "wood"}


def with_article(words: str) -> str:
    """Return the words after "a" or "an", or alone where they are a plural or uncounted."""
    plural = words.endswith("s") and not words.endswith(("ss", "us", "is"))
    if plural or words in _UNCOUNTED:
        return words
    return f"{'an' if words[:1] in 'aeiou' else 'a'} {words}"


def caption(words: str, domain: Domain, rng: Rng) -> str:
    """Return a caption for an image of the domain that shows what the words say."""
    templates = TEMPLATES[domain]
    return templates[int(rng.integers(len(templates)))].format(with_article(words))
