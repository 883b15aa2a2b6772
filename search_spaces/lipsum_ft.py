"""The space of Lipsum-FT: regularisation weight, random texts and learning rate.

Paper: Nam, Heo and Lee, "Lipsum-FT: Robust Fine-Tuning of Zero-Shot Models Using Random Text
Guidance", ICLR 2024, arXiv 2404.00860. Its defaults, regularisation weight 1.0, random texts of 8
tokens, 80 texts a step and learning rate 1e-5, are the first point here, so no search can end below
them but for chance. The lists that the authors themselves searched over were not found: the ranges
below are ours.
"""

from __future__ import annotations

from search_spaces.distributions import Distribution, Float, Int, Value
from search_spaces.space import SearchSpace

# Low and high, all on a log scale. Weight 0, plain fine-tuning, is not in any of them: it runs
# beside the search as a reference.
REG_WEIGHT = (0.01, 100.0)
TEXT_LENGTH = (2, 24)
"""Tokens of a random text, without its start and end."""
LR = (1e-6, 1e-3)
TEXT_COUNT = (8, 256)
"""Random texts of a step."""

PAPER_DEFAULTS: dict[str, Value] = {
    "method.reg_weight": 1.0,
    "method.text_length": 8,
    "optim.lr": 1e-5,
    "method.text_count": 80,
}


def lipsum_ft(text_count: bool = False) -> SearchSpace:
    """The space for Lipsum-FT; with `text_count`, the number of random texts is searched too."""
    parameters: dict[str, Distribution] = {
        "method.reg_weight": Float(low=REG_WEIGHT[0], high=REG_WEIGHT[1], log=True),
        "method.text_length": Int(low=TEXT_LENGTH[0], high=TEXT_LENGTH[1], log=True),
        "optim.lr": Float(low=LR[0], high=LR[1], log=True),
    }
    if text_count:
        parameters["method.text_count"] = Int(low=TEXT_COUNT[0], high=TEXT_COUNT[1], log=True)
    first = {key: PAPER_DEFAULTS[key] for key in parameters}
    return SearchSpace(parameters=parameters, initial_points=[first])
