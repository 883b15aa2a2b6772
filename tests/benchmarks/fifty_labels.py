"""How many labels tell the best trial on a new domain? `python -m tests.benchmarks.fifty_labels`

Candidates are trainings all over the space of a search, with their predictions on validation images
of each domain (`fifty_labels.parquet`, recorded by `record_curves --predictions`). Half of an OOD
domain's images, drawn anew in each draw, is the pool: some of it is labelled, and a candidate is
chosen by these labels. *Regret* is the accuracy of the best candidate on the other half minus that
of the chosen one there, in points. For a mean of domains, labels are spread equally over them.
Rules for the next label, and for the choice:

- random: any image; accuracy on the labelled images.
- active: an image is drawn in proportion to the probability that two candidates disagree on it, if
  they are drawn by the belief in them; `estimates`, whose differences have no bias.
- selector: that of Model Selector (Okanovic et al., arXiv 2410.13609): the image with the least
  expected entropy of the belief; accuracy on the labelled images.

The belief in a candidate is proportional to (1 - EPSILON) / EPSILON to the power of the number of
its correct answers. Without labels, a candidate is chosen by its ID accuracy, or any is taken.

Intervals of a row are Student's over the draws, which share their images: they do not hold for
other images. Those of rows with several domains are over the domains.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tuning.runs.confirmation import estimate

FILE = Path(__file__).parent / "fifty_labels.parquet"
RANDOM, ACTIVE, SELECTOR = RULES = ("random", "active", "selector")
BUDGETS = (10, 20, 50, 100, 200)
ANY, BEST_ID, ALL = ("any", 0), ("best ID", 0), ("all", 0)
EPSILON = 0.46
"""Default of the authors' code; their values for 18 collections of models are 0.36 to 0.47."""
UNIFORM = 0.1
"""Share of uniform draws in the active rule, which bounds the weights."""
ENOUGH = 0.3
"""Regret in points."""
MEAN, EACH, PHOTOGRAPHS = "mean", "each", "photo"
SCHEMA = pa.schema(
    {"id_domain": pa.string(), "domain": pa.string(), "label": pa.int8()}
    | {"predicted": pa.list_(pa.int8())}  # by each candidate
)
HEADS = (
    "| ID | OOD | any | best ID | random | active | selector | all |",
    "| ID | OOD | random | active | selector | active - random | selector - random "
    "| labels | labels, above all |",
)


@dataclass(frozen=True)
class Images:
    """Predictions of the candidates on the images of a domain."""

    label: np.ndarray
    """(images,)"""
    predicted: np.ndarray
    """(candidates, images)"""

    @property
    def correct(self):
        return (self.predicted == self.label).astype(float)

    @property
    def differ(self):
        """Whether candidates disagree (images,)."""
        return (self.predicted != self.predicted[0]).any(axis=0)

    def accuracy(self, images):
        """Of each candidate (draws, candidates) on the images of each draw (draws, images)."""
        return images / images.sum(axis=1, keepdims=True) @ self.correct.T


def answers(predicted):
    """The different answers to each image.

    Returns:
        Index of an image's first answer (images,), and who gives an answer (answers, candidates).
    """
    of_images = [np.unique(of, return_inverse=True)[1] for of in predicted.T]
    given = [np.arange(of.max() + 1)[:, None] == of for of in of_images]
    return np.cumsum([0, *map(len, given[:-1])]), np.concatenate(given).astype(float)


def scores(rule, starts, given, belief):
    """How much each image is wanted (images, draws) with a belief (candidates, draws)."""
    share = given @ belief
    if rule == ACTIVE:
        return 1 - np.add.reduceat(share**2, starts)
    odds = (1 - EPSILON) / EPSILON
    weighted = belief * np.log(belief)
    of_answer, of_all = given @ weighted, weighted.sum(axis=0)
    total = 1 + (odds - 1) * share
    # Entropy of the belief if this answer is right. If none is, the belief stays as it is.
    after = np.log(total) - (odds * (np.log(odds) * share + of_answer) + of_all - of_answer) / total
    return np.add.reduceat(-of_all - after, starts)


def label(rule, domains, pools, budget, rng):
    """Label images of the domains in turn, in many draws at once.

    Args:
        pools: (draws, images) of each domain.

    Returns:
        For each domain, its labelled images in order (draws, steps), and by what factor their
        probability was above a uniform one when they were drawn; nan if no image was left.
    """
    left = [
        pool.T & (rule == RANDOM or of.differ[:, None])
        for of, pool in zip(domains, pools, strict=True)
    ]
    given, found = [answers(of.predicted) for of in domains], [([], []) for _ in domains]
    draws = np.arange(len(pools[0]))
    odds = np.zeros((len(domains[0].predicted), len(draws)))
    for step in range(budget):
        turn = step % len(domains)
        pool, count = left[turn], left[turn].sum(axis=0)
        belief = np.exp(odds - odds.max(axis=0))
        belief /= belief.sum(axis=0)
        wanted = np.ones(pool.shape)
        if rule == SELECTOR:
            wanted = scores(rule, *given[turn], belief) + 1e-12 * rng.random(pool.shape)
            image, factor = np.where(pool, wanted, -np.inf).argmax(axis=0), np.ones(len(draws))
        else:
            if rule == ACTIVE:
                wanted = np.where(pool, scores(rule, *given[turn], belief), 0)
                wanted *= (1 - UNIFORM) * count / np.maximum(wanted.sum(axis=0), 1e-12)
                wanted += UNIFORM
            # The first of exponential waiting times is a draw in proportion to the rates.
            waits = rng.exponential(size=pool.shape) / wanted
            image = np.where(pool, waits, np.inf).argmin(axis=0)
            factor = wanted[image, draws]
        found[turn][0].append(image)
        found[turn][1].append(np.where(count > 0, factor, np.nan))
        pool[image, draws] = False
        odds += np.log((1 - EPSILON) / EPSILON) * domains[turn].correct[:, image] * (count > 0)
    return [(np.array(images).T, np.array(factors).T) for images, factors in found]


def estimates(of, eligible, pool, images, factors):
    """Accuracy on the pool, less the mean over the candidates (draws, candidates).

    The weight of the m-th of M labels among n eligible images, drawn without replacement, is
    1 + (n - M) / (n - m) * (1 / factor - 1). It has no bias, whatever the factors depended on
    (Farquhar et al., arXiv 2101.11665). Images that are not eligible, as all agree on them, add
    nothing to a difference.
    """
    labelled = np.isfinite(factors)
    size, total = eligible.sum(axis=1, keepdims=True), labelled.sum(axis=1, keepdims=True)
    remaining = np.maximum(size - np.arange(1, factors.shape[1] + 1), 1)
    weights = 1 + (size - total) / remaining * (1 / np.where(labelled, factors, 1) - 1)
    weights *= labelled / total * size / pool.sum(axis=1, keepdims=True)
    centred = of.correct - of.correct.mean(axis=0)
    return np.einsum("cds,ds->dc", centred[:, images], weights)


def replay(domains, id_accuracy, draws, seed=0):
    """Regrets (draws,) by rule and number of labels, for the mean of the domains."""
    rng = np.random.default_rng(seed)
    shapes = [(draws, len(of.label)) for of in domains]
    pools = [rng.random(s).argsort(axis=1).argsort(axis=1) < s[1] // 2 for s in shapes]
    held_out = np.mean(
        [of.accuracy(~pool) for of, pool in zip(domains, pools, strict=True)], axis=0
    )

    def regret(value):
        """Of the candidate with the highest value (draws, candidates); ties are averaged."""
        highest = value >= value.max(axis=1, keepdims=True) - 1e-9
        chosen = (held_out * highest).sum(axis=1) / highest.sum(axis=1)
        return 100 * (held_out.max(axis=1) - chosen)

    found = {
        ANY: regret(np.zeros(held_out.shape)),
        BEST_ID: regret(np.tile(id_accuracy, (draws, 1))),
        ALL: regret(sum(of.accuracy(pool) for of, pool in zip(domains, pools, strict=True))),
    }
    for rule in RULES:
        steps = label(rule, domains, pools, max(BUDGETS), rng)
        for budget in BUDGETS:
            value = np.zeros(held_out.shape)
            for turn, (of, pool) in enumerate(zip(domains, pools, strict=True)):
                eligible = pool if rule == RANDOM else pool & of.differ
                until = len(range(turn, budget, len(domains)))
                value += estimates(of, eligible, pool, *(part[:, :until] for part in steps[turn]))
            found[rule, budget] = regret(value)
    return found


def gather(id_domain, path):
    """A row for each image of a file of `record_curves --predictions`, with all predictions."""
    recorded = pd.read_parquet(path).query("seed == 0").sort_values("configuration")
    for domain, of in recorded.groupby("domain", sort=False):
        labels, predicted = np.stack(of["label"]), np.stack(of["predicted"])
        assert (labels == labels[0]).all()
        for image in zip(labels[0], predicted.T, strict=True):
            yield dict(zip(SCHEMA.names, (id_domain, domain, *image), strict=True))


def read(path):
    """Images of each domain, by ID domain and domain."""
    found = dict[str, dict[str, Images]]()
    for name, of in pd.read_parquet(path).groupby(["id_domain", "domain"], sort=False):
        images = Images(of["label"].to_numpy(), np.stack(of["predicted"]).T)
        found.setdefault(name[0], {})[name[1]] = images
    return found


def enough(values):
    """Number of labels at which the mean of regrets (budgets, values) falls to ENOUGH."""
    falling = np.minimum.accumulate(values.mean(axis=1))
    if falling[-1] > ENOUGH:
        return f"> {BUDGETS[-1]}"
    return f"{np.exp(np.interp(-ENOUGH, -falling, np.log(BUDGETS))):.0f}"


def cells(of):
    """A row of each table, of one domain or of several: all budgets, and 50 labels.

    The last cells are the numbers of labels for a regret of ENOUGH, and for one that is as much
    above that of all labels of the pool.
    """

    def at(*key):
        return of[0][key] if len(of) == 1 else np.array([found[key].mean() for found in of])

    def shown(values):
        found = estimate([float(value) for value in values])
        return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"

    every = {rule: np.array([at(rule, budget) for budget in BUDGETS]) for rule in RULES}
    anchors = [f"{at(*key).mean():.2f}" for key in (ANY, BEST_ID, ALL)]
    means = [" / ".join(f"{mean:.2f}" for mean in every[rule].mean(axis=1)) for rule in RULES]
    fifty = [at(rule, 50) for rule in RULES]
    compared = [*fifty, *(of_rule - fifty[0] for of_rule in fifty[1:])]
    needed = [" / ".join(enough(every[rule] - floor) for rule in RULES) for floor in (0, at(*ALL))]
    return [*anchors[:2], *means, anchors[2]], [*map(shown, compared), *needed]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gather", nargs="+", metavar="ID_DOMAIN=FILE", help="write the file")
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.gather:
        rows = [row for one in arguments.gather for row in gather(*one.split("="))]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), arguments.file, compression="zstd")
        return
    rows = dict[tuple[str, str], list]()
    for id_domain, domains in read(arguments.file).items():
        id_accuracy = domains.pop(id_domain).correct.mean(axis=1)
        for ood, of in (
            *((name, [of]) for name, of in domains.items()),
            (MEAN, [*domains.values()]),
        ):
            found = replay(of, id_accuracy, arguments.draws)
            rows[id_domain, ood] = [found]
            if ood != MEAN:
                rows.setdefault((id_domain, EACH), []).append(found)
                if id_domain != PHOTOGRAPHS:  # its sketches are of another data set
                    rows.setdefault((EACH, ood), []).append(found)
    for number, head in enumerate(HEADS):
        print(head, "|---" * (head.count("|") - 1) + "|", sep="\n")
        for name, of in sorted(rows.items()):
            if EACH in name and len(of) == 1:
                continue
            print("| " + " | ".join([*name, *cells(of)[number]]) + " |")


if __name__ == "__main__":
    main()
