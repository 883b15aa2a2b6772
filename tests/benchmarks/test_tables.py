"""Pages have the results that are stored."""

import pytest

from tests.benchmarks.tables import MARKED, PAGES, RESULTS, written


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_the_stored_results(page):
    """`python -m tests.benchmarks.tables` writes them."""
    assert page.read_text(encoding="utf-8") == written(page)


def test_each_result_is_on_a_page():
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    assert {found["name"] for text in texts for found in MARKED.finditer(text)} == RESULTS.keys()
