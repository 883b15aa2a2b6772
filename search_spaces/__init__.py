"""What is searched: spaces as data, and the ready ones by name. Imports neither torch nor ray."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from search_spaces.lipsum_ft import lipsum_ft
from search_spaces.space import Categorical, Distribution, Float, Int, SearchSpace, Value

__all__ = [
    "SPACES",
    "Categorical",
    "Distribution",
    "Float",
    "Int",
    "SearchSpace",
    "Value",
    "load",
]

SPACES: dict[str, Callable[[], SearchSpace]] = {
    "lipsum_ft": lipsum_ft,
    "lipsum_ft_text_count": lambda: lipsum_ft(text_count=True),
}
"""Every ready space, by the name that a search's configuration uses."""


def load(name: str) -> SearchSpace:
    """The ready space of that name.

    Raises:
        ValueError: there is none; the text offers the nearest names and lists all.
    """
    if name in SPACES:
        return SPACES[name]()
    close = difflib.get_close_matches(name.lower().replace("-", "_"), SPACES, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"no search space is called {name!r}.{hint} There are: {', '.join(SPACES)}")
