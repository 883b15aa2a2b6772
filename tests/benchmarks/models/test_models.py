"""Tables of what a user takes home."""

from tests.benchmarks.models.table import MODEL, ONE, SETTINGS, differences, table
from tuning.results.estimates import estimate


def test_the_table_counts_id_domains():
    results = []
    for domain, own, plain in (("photo", 80.0, 70.0), ("sketch", 60.0, 58.0)):
        common = {"domain": domain, "search": 0}
        results += [
            {**common, "row": SETTINGS, "seed": seed, "id": own, "ood": own - seed}
            for seed in (0, 10)
        ]
        results.append({**common, "row": ONE, "seed": 0, "id": plain, "ood": plain})
    *_, row = table(results, [ONE, SETTINGS]).splitlines()
    # Ahead by 7.5 and -0.5. 50 / sqrt(50) of the two seeds that are ten points apart.
    half = estimate([7.5, -0.5]).high - 3.5
    cells = ["70.0", "65.0", "67.5", f"+3.5 ± {half:.1f}", "7.1", "60.0"]
    assert row == f"| {' | '.join([SETTINGS, *cells])} |"


def test_the_model_of_each_search_stands_beside_the_plain_fine_tunings_of_its_own():
    common = {"domain": "photo", "seed": 0, "ood": 40.0}
    found = [
        {**common, "search": search, "row": row, "id": accuracy}
        for search, plain, model in ((0, 50.0, 54.0), (10, 60.0, 61.0))
        for row, accuracy in ((ONE, plain), (MODEL, model))
    ]
    *_, both, first, second = differences(found, [MODEL]).splitlines()
    assert both == f"| {MODEL} | +1.2 | +1.2 |"
    assert first == f"| {MODEL}, search 1 | +2.0 | +2.0 |"
    assert second == f"| {MODEL}, search 2 | +0.5 | +0.5 |"
