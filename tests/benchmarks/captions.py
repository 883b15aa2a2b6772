"""Drawings of the pre-training, what they are called, and captions in the words of a domain."""

import unicodedata
from functools import cache
from pathlib import Path

import yaml

from trainers.embedded_benchmark.classes import Domain, load_classes
from trainers.embedded_benchmark.drawings import openmoji_folder, raster

TEMPLATES: dict[Domain, tuple[str, ...]] = {
    "real": ("a photo of {}.", "a photograph of {}.", "a blurry photo of {}.", "a snapshot of {}."),
    "painting": ("a painting of {}.", "an oil painting of {}.", "a canvas showing {}."),
    "clipart": ("a clipart of {}.", "a clip art picture of {}.", "a cartoon of {}."),
    "infograph": ("an infographic about {}.", "an infograph of {}.", "a chart with {}."),
    "sketch": ("a sketch of {}.", "a pencil drawing of {}.", "a line drawing of {}."),
}

# Letters, flags' letters and modifiers: an image of them shows text, not a thing.
_NOT_A_THING = (
    "regional indicator", "squared", "negative squared", "circled", "rounded symbol",
    "emoji modifier", "emoji component", "combining", "input symbol", "hyphen", "copyright",
    "registered", "copyleft", "trade mark", "service mark", "sound recording",
)  # fmt: skip
_FILLER_WORDS = {"symbol", "sign", "emblem", "ornament", "emoji"}
# In names of the older blocks these words tell filled from outlined glyphs, not colours.
_GLYPH_WORDS = {"black", "white", "heavy", "medium"}
_OLD_BLOCKS_END = 0x3000
_UNCOUNTED = {"bread", "rain", "butter", "garlic", "bacon", "broccoli", "popcorn", "coral", "wood"}


def with_article(words):
    """Return the words after "a" or "an", or alone where they are a plural or uncounted."""
    plural = words.endswith("s") and not words.endswith(("ss", "us", "is"))
    if plural or words in _UNCOUNTED:
        return words
    return f"{'an' if words[:1] in 'aeiou' else 'a'} {words}"


def caption(words, domain, rng):
    """Return a caption for an image of the domain that shows what the words say."""
    templates = TEMPLATES[domain]
    return templates[int(rng.integers(len(templates)))].format(with_article(words))


def tidy_name(code_point):
    """Return what the character shows, in words a caption can use.

    Raises ValueError if ``unicodedata`` has no name for it.
    """
    number = int(code_point, 16)
    words = unicodedata.name(chr(number)).lower().split()
    dropped = _FILLER_WORDS | (_GLYPH_WORDS if number < _OLD_BLOCKS_END else set())
    kept = [word for word in words if word not in dropped]
    return " ".join(kept or words)


@cache
def all_drawings():
    """Return the code points of all drawings of a single named character, in their order.

    Left out are letters and modifiers, and drawings that would be an empty image with only
    their outlines or only their colours.
    """
    found = []
    for path in openmoji_folder().glob("*.svg"):
        if "-" in path.stem:
            continue
        name = unicodedata.name(chr(int(path.stem, 16)), "").lower()
        if not name or name.startswith(_NOT_A_THING):
            continue
        if all(raster(path.stem, layer).getchannel("A").getbbox() for layer in ("line", "colour")):
            found.append(path.stem)
    return tuple(sorted(found, key=lambda code_point: int(code_point, 16)))


@cache
def all_class_drawings():
    """Return all that goes by a class's name: the benchmark's drawings, then others."""
    also = yaml.safe_load(Path(__file__).with_name("class_drawings.yaml").read_text("utf-8"))
    return {name: (*points, *also.get(name, ())) for name, points in load_classes().items()}
