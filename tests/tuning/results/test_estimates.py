"""Means and intervals, compared with those of scipy's tests."""

import math

import numpy as np
import pytest
import scipy.stats

from tests.tuning import fakes
from tests.tuning.confirmation.written import write_predictions, write_results
from tuning.log.paths import predictions_path
from tuning.results.estimates import CONFIDENCE, estimate, image_variance, training_name


@pytest.mark.parametrize("number", [2, 5, 30])
def test_intervals_agree_with_scipys_tests(number):
    values = np.random.default_rng(number).normal(60, 2, number)
    found = estimate(values.tolist())
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(CONFIDENCE)
    assert found.mean == pytest.approx(values.mean())
    assert found.sd == pytest.approx(values.std(ddof=1))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_only_seeds_that_both_have_are_paired(tmp_path):
    accs = {"trial-000": {1: 10.0, 2: 20.0, 3: 99.0}, "ft": {2: 18.0, 1: 9.0, 4: 0.0}}
    accs["trial-001"] = {5: 50.0}
    for name, of_seeds in accs.items():
        write_results(tmp_path, {(name, s): {"id_test/acc": acc} for s, acc in of_seeds.items()})
    found = fakes.Search(tmp_path).run().settings
    gap = found.against("ft", "trial-000", "id_test/acc")
    ours, its = [10.0, 20.0], [9.0, 18.0]
    expected = scipy.stats.ttest_rel(ours, its).confidence_interval(CONFIDENCE)
    assert (gap.low, gap.high) == pytest.approx((expected.low, expected.high))
    assert found.against("ft", "trial-001", "id_test/acc") is None


def test_one_seed_has_a_mean_and_no_interval():
    found = estimate([61.0])
    assert found.mean == 61.0
    assert all(map(math.isnan, (found.sd, found.low, found.high)))


def half(found):
    return (found.high - found.low) / 2


def test_the_interval_of_one_training_is_bonetts_and_prices():
    rng = np.random.default_rng(0)
    ours, its = rng.random((2, 300)) < [[0.7], [0.6]]
    only_ours, only_its = ((ours & ~its).sum() + 1) / 302, ((its & ~ours).sum() + 1) / 302
    expected = (only_ours + only_its - (only_ours - only_its) ** 2) / 302
    found = image_variance(ours[None].astype(int) - its)
    assert found == pytest.approx(expected, rel=0.02)


def test_images_that_differ_by_seed_alone_are_not_counted_twice():
    """The components of variance are known: images 0.04, seeds 0.01, and the rest 0.25."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        of_images, of_seeds = rng.normal(0, 0.2, 400), rng.normal(0, 0.1, (3, 1))
        found.append(image_variance(of_images + of_seeds + rng.normal(0, 0.5, (3, 400))))
    added = 2 / 402 / 400
    assert np.mean(found) - added == pytest.approx(0.04 / 400, rel=0.1)


def test_the_interval_covers_seeds_and_images():
    rng = np.random.default_rng(0)
    right = rng.random((3, 200)) < rng.random(200)
    values = 100 * right.mean(axis=1)
    found, alone = estimate([*values], [(100.0, right.astype(int))]), estimate([*values])
    assert (found.covers_images, alone.covers_images) == (True, False)
    z = scipy.stats.norm.ppf(0.975)
    expected = half(alone) ** 2 + (100 * z) ** 2 * image_variance(right.astype(int))
    assert half(found) ** 2 == pytest.approx(expected)


def test_no_interval_has_width_0_while_predictions_differ():
    """Three equal differences, always of the same three images, or of other ones."""
    for images in ([[0, 1, 2]] * 3, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]):
        differences = np.zeros((3, 330), int)
        np.put_along_axis(differences, np.array(images), 1, axis=1)
        values = (100 * differences.mean(axis=1)).tolist()
        assert half(estimate(values)) == 0
        assert half(estimate(values, [(100.0, differences)])) > 0.5


SEEDS = (1000, 1001)


def stored(folder, names):
    """Results with predictions of both seeds; the accuracies are those of the predictions."""
    search, right = fakes.Search(folder), {}
    for number, name in enumerate(names):
        for seed in SEEDS:
            rng = np.random.default_rng([number, seed])
            of = {
                column: {d: rng.random(50) < 0.6 for d in ("real", *fakes.DOMAINS)}
                for column in ("predicted", "zero_shot", "end")
            }
            means = {domain: 100 * of["predicted"][domain].mean() for domain in of["predicted"]}
            accs = {f"ood_test/{d}/acc": means[d] for d in fakes.DOMAINS}
            accs |= {"id_test/acc": means["real"], "ood_test/mean_acc": np.mean([*accs.values()])}
            write_results(folder, {(name, seed): accs})
            write_predictions(folder, (name, seed), of)
            right[name, seed] = of
    return search, right


@pytest.mark.parametrize(
    ("metric", "column", "shares"),
    [
        ("id_test/acc", "predicted", {"real": 100}),
        ("ood_test/clipart/acc", "predicted", {"clipart": 100}),
        ("ood_test/mean_acc", "predicted", dict.fromkeys(fakes.DOMAINS, 25)),
        ("test/mean_acc", "predicted", {"real": 50, **dict.fromkeys(fakes.DOMAINS, 12.5)}),
        ("line/1/ood_test/mean_acc", "end", dict.fromkeys(fakes.DOMAINS, 25)),
    ],
)
def test_an_accuracy_has_the_images_of_its_domains(metric, column, shares, tmp_path):
    search, right = stored(tmp_path, ["ft"])
    found = search.run().settings
    assert found.shares(metric) == shares
    for seed, of_seed in found.right("ft", metric).items():
        for domain in shares:
            assert np.array_equal(of_seed[domain], right["ft", seed][column][domain])
    assert found.shares("val/mean_acc") == found.shares("id_test/ece") == {}


def test_differences_are_paired_by_image(tmp_path):
    search, right = stored(tmp_path, ["ft", "trial-000"])
    found = search.run().settings
    gap = found.against("ft", "trial-000", "ood_test/mean_acc")

    def of(domain):
        ours, its = ([right[n, s]["predicted"][domain] for s in SEEDS] for n in ("trial-000", "ft"))
        return np.array(ours).astype(int) - np.array(its)

    images = [(25.0, of(domain)) for domain in fakes.DOMAINS]
    values = [sum(w * of_domain[row].mean() for w, of_domain in images) for row in range(2)]
    expected = estimate(values, images)
    assert (gap.mean, gap.low, gap.high) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    assert half(gap) > half(estimate(values))


def test_without_stored_predictions_the_interval_is_over_seeds(tmp_path):
    search, _ = stored(tmp_path, ["ft"])
    write_results(tmp_path, {("trial-000", seed): {"id_test/acc": 70.0} for seed in SEEDS})
    found = search.run().settings
    assert found.estimate("ft", "id_test/acc").covers_images
    assert not found.estimate("trial-000", "id_test/acc").covers_images
    assert not found.against("ft", "trial-000", "id_test/acc").covers_images


def test_damaged_predictions_are_named_and_left_out(tmp_path, caplog):
    search, _ = stored(tmp_path, ["ft"])
    for seed in SEEDS:
        path = predictions_path(tmp_path, training_name(("ft", seed)))
        path.write_bytes(path.read_bytes()[:-9])
    assert not search.run().settings.estimate("ft", "id_test/acc").covers_images
    assert f"{path} cannot be read" in caplog.text
