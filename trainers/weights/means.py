"""A model out of many fine-tunings: which candidates are made of their weights, and which one wins.

Fine-tunings of one zero-shot model theta_0 can be averaged (Wortsman et al., "Model soups", ICML
2022, arXiv 2203.05482; Rame et al., "DiWA", NeurIPS 2022, arXiv 2205.09739). What is stored of a
training is the point a of its line, theta_a. Its end is ``theta_0 + (theta_a - theta_0) / a``.
Methods with a share of their own, such as `alpha` of WiSE-FT, have no line: their point is their
end. The candidates are

- each training at its point;
- of points, and of ends: the greedy soup (best first, each only if the mean becomes better with
  it), and the means of the first k, for each k of `FIRST` and all, also of each method alone;
- of the best mean of ends, the points `LINE` of the line from theta_0 through it.

Points and ends are in the order of their own figures on the whole validation splits. Weights that
cannot be averaged, since their tensors or classes differ, have candidates of their own. A
`Criterion` compares: constraints, then the objective, then the NLL. Of equals, the candidate of
more trainings wins, and then the earlier one. A criterion that reads fewer labels than what chose
the points, such as ID accuracy alone, chooses among single ends, the means of the first k of them
and the line (`ends_alone`).

Each candidate is ``theta_0 + sum of share_i (theta_i - theta_0)`` over stored weights theta_i. Sums
are float64 and in a fixed order, so that they are the same whenever they are made again. A head
that a text encoder makes is not averaged but made again by the text encoder of the mean. Folders
are passed as paths or URLs, since these functions run in other processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor

from trainers.checkpoints.format import Header, Progress, load_weights, whole_header
from trainers.checkpoints.storage import fetched, write_weights
from trainers.config import TrialConfig
from trainers.data.store import open_store
from trainers.errors import validate
from trainers.loop.images import load_split
from trainers.loop.measure import (
    classifier_of,
    holding,
    measure_each,
    measure_with_predictions,
)
from trainers.loop.setup import set_up
from trainers.models.student import Student

FIRST: Final = (2, 3, 5, 8, 12, 20, 32)
"""Numbers of trainings whose mean is a candidate, beside all of them."""
LINE: Final = (0.7, 0.85, 1.15, 1.3, 1.5)
"""Points of the line through the best mean of ends; beyond 1 it is longer than the mean."""
HELD_BYTES: Final = 4 << 30
"""Weights of candidates that are evaluated in one pass over the images."""

Metrics: TypeAlias = Mapping[str, float]
Device: TypeAlias = torch.device | str | None
Kind: TypeAlias = Literal["single", "greedy", "first"]
"""One training, or a mean: the greedy soup, or of the first k."""


@dataclass(frozen=True)
class Stored:
    """The weights of a training in a folder."""

    folder: str
    config: TrialConfig
    """See `evaluation_config`."""
    method: str
    metrics: Metrics
    """Of the whole validation splits."""
    point: float = 1.0
    """a of its line at which its weights are."""


@dataclass(frozen=True)
class Recipe:
    """How a model is made of stored weights."""

    config: TrialConfig
    """See `evaluation_config`."""
    shares: tuple[tuple[str, float], ...] = ()
    """Folder and share of each of them, by folder; none for the zero-shot model."""


@dataclass(frozen=True)
class Candidate:
    """Weights that may become the model."""

    kind: Kind
    of_ends: bool
    """Whether it is made of ends, and not of points."""
    trainings: tuple[Stored, ...]
    """What it is made of, the best first; one for a single."""
    line: float = 1.0
    """The point of the line from the zero-shot weights through it."""
    metrics: Metrics = field(default_factory=dict)
    """Of the whole validation splits; empty before it is evaluated."""

    @property
    def recipe(self) -> Recipe:
        """How it is made."""
        each = self.line / len(self.trainings)
        shares = [
            (one.folder, each / one.point if self.of_ends else each) for one in self.trainings
        ]
        return Recipe(self.trainings[0].config, tuple(sorted(shares)))


@dataclass(frozen=True)
class Criterion:
    """What makes a model better."""

    merit: Callable[[Metrics], Any]
    """Of metrics of the validation splits, something that is greater for a better model."""
    nll: Callable[[Metrics], float]
    """Decides between models of the same merit: less is better."""
    ends_alone: bool = False
    """Whether only single ends and the means of the first k of them are candidates."""

    def order(self, candidate: Candidate) -> tuple[Any, float]:
        """Greater for a better one."""
        nll = self.nll(candidate.metrics)
        return self.merit(candidate.metrics), -nll if math.isfinite(nll) else -math.inf

    def best(self, candidates: Iterable[Candidate]) -> Candidate:
        """The best candidate; of equals that of more trainings, and then the earlier one."""
        return max(candidates, key=lambda one: (*self.order(one), len(one.trainings)))


@dataclass(frozen=True)
class Built:
    """What was chosen by a criterion, and among what."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    evaluations: int
    """Of the validation splits, which this criterion needed beyond those before it."""


def evaluation_config(config: TrialConfig, *, trains_text: bool) -> TrialConfig:
    """What an evaluation of merged weights depends on; equal for weights that can be averaged.

    Model, data, precision and batch. The method is `flyp` if the text encoder trained, else `ft`:
    all of their tensors train.
    """
    kept = {"model", "data", "precision", "zero_shot_cache_gb"}
    values = config.model_dump(mode="json", include=kept)
    for key in ("crop_area", "crop_law", "flip", "augment"):  # of training views
        del values["data"][key]
    values["eval"] = {"batch_size": config.eval.batch_size, "line": "off"}
    values["method"] = {"name": "flyp" if trains_text else "ft"}
    return validate(TrialConfig, values, "evaluation")


def build(
    stored: Sequence[Stored], criteria: Sequence[Criterion], device: Device = None
) -> list[Built]:
    """Choose a model of stored weights by each criterion.

    A set of weights is evaluated once, whichever criteria need it.
    """
    candidates: list[list[Candidate]] = [[] for _ in criteria]
    evaluations = [0 for _ in criteria]
    for kind in _kinds(stored):
        with _Evaluation.of(kind, device) as evaluation:
            for index, criterion in enumerate(criteria):
                before = evaluation.count
                candidates[index] += _candidates(evaluation, criterion)
                evaluations[index] += evaluation.count - before
    return [
        Built(criterion.best(found), tuple(found), count)
        for criterion, found, count in zip(criteria, candidates, evaluations, strict=True)
    ]


def most_evaluations(trainings: int, *, has_line: bool, ends_alone: int = 0) -> int:
    """The most sets of weights that `build` evaluates, of so many trainings of one method.

    Args:
        has_line: whether points and ends are different weights.
        ends_alone: number of criteria `Criterion.ends_alone`, beside another one.
    """
    if trainings < 2:
        return trainings if has_line else 0
    firsts = len({*(k for k in FIRST if k < trainings), trainings})
    greedy = trainings - 2  # the mean of the first two is among them
    means = firsts + greedy
    of_ends = ends_alone * (firsts - 1 + len(LINE))  # the mean of all is that of the other one
    return (trainings + 2 * means if has_line else means) + len(LINE) + of_ends


def make_and_test(
    recipe: Recipe, target: str | None, metrics: Metrics, split: str, device: Device = None
) -> tuple[dict[str, float], bytes]:
    """Write a model into a folder, if there is one, then evaluate it on a split.

    `metrics` of the validation splits become its report. Returned are those of the split, and the
    predictions on it as a Parquet file.
    """
    setup = set_up(recipe.config, device=device)
    student = setup.student()
    with _local_copies(folder for folder, _ in recipe.shares) as local:
        weights = _weights(student, recipe, local)
    with holding(setup, student, weights):
        if target is not None:
            report = {"step": 0.0, **metrics}
            header = Header(Progress(), setup.class_names, [report])
            write_weights(open_store(target), student.plain_state(), header)
        return measure_with_predictions(setup, student, load_split(recipe.config, split))


def _candidates(evaluation: _Evaluation, criterion: Criterion) -> list[Candidate]:
    """All candidates of weights that can be averaged, evaluated."""
    ends = evaluation.of_all([Candidate("single", True, (one,)) for one in evaluation.stored])
    of_ends = _means(evaluation, ends, criterion)
    if of_ends:
        best = criterion.best(of_ends)
        of_ends += evaluation.of_all([replace(best, line=a) for a in LINE])
    if criterion.ends_alone:
        return [*ends, *of_ends]
    points = evaluation.of_all([Candidate("single", False, (one,)) for one in evaluation.stored])
    return [*points, *_means(evaluation, points, criterion), *of_ends]


def _means(
    evaluation: _Evaluation, singles: Iterable[Candidate], criterion: Criterion
) -> list[Candidate]:
    """The means of the first k, of all and of each method, and the greedy soup."""
    ordered = sorted(singles, key=criterion.order, reverse=True)
    methods = {one.trainings[0].method for one in ordered}
    groups = [ordered]
    if len(methods) > 1:
        groups += [[o for o in ordered if o.trainings[0].method == m] for m in sorted(methods)]
    firsts = [
        replace(group[0], kind="first", trainings=tuple(one.trainings[0] for one in group[:k]))
        for group in groups
        for k in sorted({*FIRST, len(group)})
        if 1 < k <= len(group)
    ]
    distinct = {one.recipe.shares: one for one in firsts}  # two groups may begin alike
    means = evaluation.of_all([*distinct.values()])
    if not criterion.ends_alone:
        soup = _greedy_soup(evaluation, ordered, criterion)
        means += [soup] if len(soup.trainings) > 1 else []
    return means


def _greedy_soup(
    evaluation: _Evaluation, ordered: Sequence[Candidate], criterion: Criterion
) -> Candidate:
    """Average singles, the best first, each only if the merit becomes greater with it."""
    soup = replace(ordered[0], kind="greedy")
    for one in ordered[1:]:
        (larger,) = evaluation.of_all([replace(soup, trainings=soup.trainings + one.trainings)])
        if criterion.merit(larger.metrics) > criterion.merit(soup.metrics):
            soup = larger
    return soup


class _Evaluation:
    """Figures of weights that are made of trainings which can be averaged."""

    def __init__(self, stored: Sequence[Stored], local: Mapping[str, Path], device: Device) -> None:
        self.stored = stored
        self.count = 0
        """Sets of weights that were evaluated."""
        self._local = local
        config = stored[0].config
        self._setup = set_up(config, device=device)
        self._student = self._setup.student()
        self._images = load_split(config, "val")
        # What is stored was evaluated by its training.
        points = [Candidate("single", False, (one,), metrics=one.metrics) for one in stored]
        self._known = {one.recipe.shares: one.metrics for one in points}
        size = sum(value.nbytes for value in self._student.weights.values())
        self._at_once = max(1, HELD_BYTES // size)

    @classmethod
    @contextmanager
    def of(cls, stored: Sequence[Stored], device: Device) -> Iterator[_Evaluation]:
        """Within the block, weights in buckets are on this machine."""
        with _local_copies(one.folder for one in stored) as local:
            yield cls(stored, local, device)

    def of_all(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates with their figures."""
        new = {one.recipe.shares: one for one in candidates}
        missing = [one for shares, one in new.items() if shares not in self._known]
        for first in range(0, len(missing), self._at_once):
            some = missing[first : first + self._at_once]
            weights = [_weights(self._student, one.recipe, self._local) for one in some]
            models = [classifier_of(self._setup, self._student, one.copy) for one in weights]
            found = measure_each(self._setup, models, self._images)
            pairs = zip(some, found, strict=True)
            self._known |= {one.recipe.shares: metrics for one, metrics in pairs}
        self.count += len(missing)
        return [replace(one, metrics=self._known[one.recipe.shares]) for one in candidates]


def _kinds(stored: Iterable[Stored]) -> list[list[Stored]]:
    """Groups that can be averaged: of one configuration, with the same classes and tensors."""
    groups: dict[object, list[Stored]] = {}
    for one in stored:
        header = whole_header(open_store(one.folder))
        shapes = tuple(sorted(header.shapes.items()))
        kind = one.config.model_dump_json(), header.class_names, shapes
        groups.setdefault(kind, []).append(one)
    return [*groups.values()]


@contextmanager
def _local_copies(folders: Iterable[str]) -> Iterator[dict[str, Path]]:
    """Within the block, the weights in each folder or bucket are in a folder of this machine."""
    with ExitStack() as stack:
        yield {folder: stack.enter_context(fetched(open_store(folder))) for folder in folders}


@torch.no_grad()
def _weights(student: Student, recipe: Recipe, local: Mapping[str, Path]) -> dict[str, Tensor]:
    """The trained parameters of a recipe in float32, summed up in float64 on the CPU."""
    rest = 1 - sum(share for _, share in recipe.shares)
    total = {name: rest * value.cpu().double() for name, value in student.weights.items()}
    for folder, share in recipe.shares:
        weights, _ = load_weights(local[folder])
        for name, value in total.items():
            # `plain_state` has the text encoder's names as open_clip does.
            value += share * weights[name.replace("text.clip.", "text.", 1)].double()
    return {name: total[name].to(value) for name, value in student.weights.items()}
