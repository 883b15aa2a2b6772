"""How often the intervals of `confirm` contain the true accuracy, on new seeds and new images.

`python -m tests.benchmarks.coverage` draws test images and trainings of two models again and again.
An image is classified correctly if the sum of its difficulty (for both models), its difficulty for
one model and the noise of one training is below a threshold, which gives the model's accuracy. All
are normal; `--shares` has their variances. From seed to seed the threshold moves such that the true
accuracy has the given deviation; half of that variance is common to both models.
"""

import argparse
from collections import defaultdict

import numpy as np
from scipy.special import ndtr, ndtri

from tuning.runs.confirmation import estimate

ACCURACIES = np.array([[90.0, 92.0], [60.0, 62.0], [60.0, 62.0]])
"""True accuracies of both models: on the ID domain, and on two OOD domains."""
SEEDS, DEVIATIONS = (2, 3, 5), (0.3, 1.0, 3.0)
SHOWN = ("ID", "mean OOD", "ID difference", "OOD difference")


def draw(rng, images, shares):
    """Right and wrong (2 models, seeds, images) on each domain, and the true accuracies.

    One pair for each of `DEVIATIONS`, with as many seeds as the most of `SEEDS`.
    """
    seeds, at = max(SEEDS), ndtri(ACCURACIES / 100)
    shift = np.sqrt(0.5) * (rng.standard_normal((1, seeds)) + rng.standard_normal((2, seeds)))
    hard = []
    for _ in at:
        parts = [
            share**0.5 * rng.standard_normal((*shape, images), np.float32)
            for share, shape in zip(shares, [(1, 1), (2, 1), (2, seeds)], strict=True)
        ]
        hard.append(sum(parts))
    for deviation in DEVIATIONS:
        # The slope of the accuracy is that of the normal distribution at the threshold.
        moves = deviation / 100 * np.sqrt(2 * np.pi) * np.exp(at**2 / 2)
        lines = at[..., None] + moves[..., None] * shift
        right = [(h < line[..., None]).view(np.int8) for h, line in zip(hard, lines, strict=True)]
        yield right, 100 * ndtr(at / np.sqrt(1 + moves**2))


def covered(right, truths):
    """For each of `SHOWN`: whether the interval has the truth, and so the one over seeds alone."""
    found = []
    for of_model in (lambda both: both[0], lambda both: both[1] - both[0]):
        for domains in (slice(0, 1), slice(1, 3)):
            of_domains = [of_model(both) for both in right[domains]]
            truth = np.mean([of_model(both) for both in truths[domains]])
            share = 100 / len(of_domains)
            values = (share * sum(of.mean(axis=1) for of in of_domains)).tolist()
            both = estimate(values, [(share, of) for of in of_domains]), estimate(values)
            found.append([one.low <= truth <= one.high for one in both])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--shares", type=float, nargs=3, default=[0.7, 0.15, 0.15])
    arguments = parser.parse_args()
    print(f"| images | seeds | deviation | {' | '.join(SHOWN)} |\n|{'---|' * (3 + len(SHOWN))}")
    lowest, highest = 100.0, 0.0
    for images in arguments.images:
        rng, hits = np.random.default_rng(images), defaultdict(list)
        for _ in range(arguments.draws):
            drawn = draw(rng, images, arguments.shares)
            for deviation, (right, truths) in zip(DEVIATIONS, drawn, strict=True):
                for seeds in SEEDS:
                    some = [both[:, :seeds] for both in right]
                    hits[seeds, deviation].append(covered(some, truths))
        for (seeds, deviation), found in sorted(hits.items()):
            shares = 100 * np.mean(found, axis=0)
            cells = [f"{ours:.1f} ({alone:.1f})" for ours, alone in shares]
            print("| " + " | ".join([*map(str, (images, seeds, deviation)), *cells]) + " |")
            lowest, highest = min(lowest, shares[:, 0].min()), max(highest, shares[:, 0].max())
    print(f"{lowest:.1f} to {highest:.1f} % (in brackets: over seeds alone)")


if __name__ == "__main__":
    main()
