"""The classes of the benchmark and how their drawings are divided among the splits."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import yaml

from trainers.data.folders import SPLITS, Split
from trainers.embedded_benchmark.raster import generator

_VAL_SHARE, _TEST_SHARE = 0.2, 0.3  # of the drawings of a class that has several


@cache
def load_classes() -> Mapping[str, tuple[str, ...]]:
    """Return the code points of the benchmark's drawings of every class, by DomainNet name."""
    text = files("trainers.embedded_benchmark").joinpath("classes.yaml").read_text(encoding="utf-8")
    classes = yaml.safe_load(text)
    return {str(name): tuple(map(str, points)) for name, points in sorted(classes.items())}


def split_drawings(name: str, code_points: tuple[str, ...], seed: int) -> dict[Split, list[str]]:
    """Return which drawings of a class each split shows.

    With several drawings no two splits share one; a single drawing is shown by all.
    """
    if len(code_points) == 1:
        return {split: list(code_points) for split in SPLITS}
    rng = generator(seed, *name.encode())
    order = [code_points[i] for i in rng.permutation(len(code_points))]
    val = max(1, round(_VAL_SHARE * len(order)))
    test = max(1, round(_TEST_SHARE * len(order)))
    return {"train": order[val + test :], "val": order[:val], "test": order[val : val + test]}
