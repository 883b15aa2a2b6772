import re
from collections import Counter
from xml.etree import ElementTree

import pytest

from tests.tuning import fakes
from tests.tuning.views.test_html_report import SEARCH, page_of
from tuning.views.linked_figures import MAX_LINKED, trial_title


def linked(page):
    """How often each trial is marked in each figure of the page."""
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    return [Counter(re.findall('<g data-trial="(.*?)"', figure)) for figure in figures]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The page of a finished search."""
    return page_of(fakes.finished_search(), tmp_path_factory.mktemp("report"))


def test_every_trial_is_marked_in_its_row_and_in_both_figures(finished, tmp_path):
    compared = fakes.compared_methods()
    pages = [(fakes.finished_search(), finished), (compared, page_of(compared, tmp_path))]
    for records, page in pages:
        names = {record.trial_id for record in records}
        failed = {record.trial_id for record in records if record.outcome == "failed"}
        assert set(re.findall('<tr[^>]* data-trial="(.*?)"', page)) == names
        accuracies, curves = linked(page)
        assert set(accuracies) == names - failed
        assert curves == Counter(names)
        assert "<script>" in page


def test_the_page_loads_nothing_and_takes_no_name_for_markup(finished):
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", finished)
    assert "<mine>" not in finished
    assert "&lt;mine&gt;" in finished


def test_ids_of_the_page_are_unique_and_references_lead_to_them(finished):
    ids = re.findall(r'\bid="(.*?)"', finished)
    assert len(ids) > 100
    assert len(ids) == len(set(ids))
    references = re.findall(r"(?:href=\"|url\()#(.*?)[\")]", finished)
    assert len(references) > 100
    assert set(references) <= set(ids)


def test_a_trial_has_its_figures_beside_the_pointer(tmp_path):
    record = fakes.trial(7, 85.25, 62.0)
    expected = [
        "trial-007, finished",
        "reg_weight=1 text_length=8 lr=1e-05",
        "ID 85.2",
        "mean OOD 62.0",
        "val/mean_acc 73.6",
    ]
    assert trial_title(SEARCH, record).split("\n") == expected
    figure, _ = re.findall(r"<svg.*?</svg>", page_of([record], tmp_path), re.DOTALL)
    mark = ElementTree.fromstring(figure).find(".//*[@data-trial='trial-007']")
    assert mark is not None
    assert mark[0].text == "\n".join(expected)


def test_names_and_parameters_are_no_markup(tmp_path):
    odd = """</title><script>alert("1")</script>'&"""
    record = fakes.trial(0, trial_id=odd, params={"method.name": odd})
    page = page_of([record, fakes.trial(1)], tmp_path)
    assert page.count("<script") == 1
    accuracies, curves = linked(page)
    assert len(accuracies) == len(curves) == 2


def test_many_trials_are_drawn_but_not_linked(tmp_path):
    page = page_of([fakes.trial(number) for number in range(MAX_LINKED + 1)], tmp_path)
    assert "<svg" not in page
    assert "<script" not in page
