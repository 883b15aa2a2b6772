"""The domains and classes of the benchmark, and how drawings are divided among the splits."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

import yaml

from trainers.data.folders import SPLITS, Split
from trainers.embedded_benchmark.arrays import generator

SEED = 0

Domain = Literal["real", "painting", "clipart", "infograph", "sketch"]

DOMAINS: tuple[Domain, ...] = get_args(Domain)


@cache
def load_classes() -> Mapping[str, tuple[str, ...]]:
    """The code points of the benchmark's drawings of every class, by DomainNet name."""
    text = files("trainers.embedded_benchmark").joinpath("classes.yaml").read_text(encoding="utf-8")
    classes = yaml.safe_load(text)
    return {str(name): tuple(map(str, points)) for name, points in sorted(classes.items())}


def split_drawings(name: str, code_points: tuple[str, ...]) -> dict[Split, list[str]]:
    """Which drawings of a class each split shows.

    A fifth goes to val and three tenths to test, and no two splits share one; if there is a single
    drawing, all show it.
    """
    if len(code_points) == 1:
        return {split: list(code_points) for split in SPLITS}
    order = [code_points[i] for i in generator(SEED, *name.encode()).permutation(len(code_points))]
    val, test = (max(1, round(share * len(order))) for share in (0.2, 0.3))
    return {"train": order[val + test :], "val": order[:val], "test": order[val : val + test]}
