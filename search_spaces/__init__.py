"""What is searched: spaces as data, and the ready ones by name. Imports neither torch nor ray."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from search_spaces.car_ft import car_ft
from search_spaces.carot import carot
from search_spaces.distributions import Categorical, Distribution, Float, Int, Value
from search_spaces.ema import ema
from search_spaces.flyp import flyp
from search_spaces.ft import ft
from search_spaces.kd import kd
from search_spaces.l2_sp import l2_sp
from search_spaces.lipsum_ft import lipsum_ft
from search_spaces.lp_ft import lp_ft
from search_spaces.r_adapter import r_adapter
from search_spaces.space import BRANCH_KEY, SearchSpace
from search_spaces.star_ft import star_ft
from search_spaces.tpgm import tpgm
from search_spaces.wise_ft import wise_ft

__all__ = [
    "BRANCH_KEY",
    "METHODS",
    "SPACES",
    "Categorical",
    "Distribution",
    "Float",
    "Int",
    "SearchSpace",
    "Value",
    "load",
]

METHODS: dict[str, Callable[[], SearchSpace]] = {
    "ft": ft,
    "lp_ft": lp_ft,
    "ema": ema,
    "wise_ft": wise_ft,
    "tpgm": tpgm,
    "l2_sp": l2_sp,
    "kd": kd,
    "car_ft": car_ft,
    "lipsum_ft": lipsum_ft,
    "flyp": flyp,
    "star_ft": star_ft,
    "carot": carot,
    "r_adapter": r_adapter,
}
"""The ready space of every method, by the method's own name."""

SPACES: dict[str, Callable[[], SearchSpace]] = {
    **METHODS,
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
