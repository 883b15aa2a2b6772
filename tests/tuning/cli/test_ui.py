"""The pages of a search in a real browser: Debian's Chromium, driven by Playwright.

No page may log an error in its console. Screenshots are kept in `build/screenshots`.
"""

import re
import signal
import socket
import subprocess
import sys
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.ports import free_ports
from tests.tuning import fakes
from tests.tuning.databases import with_database
from tests.tuning.execution.nodes import processes
from tests.tuning.run_folders import search_file, write_run
from tests.waiting import wait_until
from tuning.log.records import trial_label
from tuning.results.ranking import ranked
from tuning.run import load_run
from tuning.views.completion import complete_files, complete_mlflow

pytestmark = pytest.mark.nightly

SCREENSHOTS = Path(__file__).parents[3] / "build" / "screenshots"
TIMEOUT_MS = 180_000
"""For each wait, on a machine whose other cores run other tests."""
RECORDS = fakes.finished_search()
NUM_RUNS = len(RECORDS) + 1
"""Beside them, the zero-shot model."""
NOT_DRAWN = (
    "xpath=//*[name()='svg']//*[@*[contains(., 'NaN')] or starts-with(@height, '-')"
    " or starts-with(@width, '-')]"
)
"""Elements of figures that were drawn without a known size."""
expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def run(images_root, tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "mine", search_file(images_root), RECORDS)
    with_database(folder.parent)
    complete_files(load_run(folder))
    assert complete_mlflow(load_run(folder)).endswith("has the whole run")
    # A newer search that has nothing to show yet.
    write_run(folder.parent / "begun", search_file(images_root), zero_shot=None, outcome=None)
    return folder


@contextmanager
def served(run):
    """`ui` in the background, and what it prints by label."""
    port = free_ports(1)
    command = [sys.executable, "-m", "tuning", "ui", str(run), "--port", str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        named = ("Report", "MLflow", "Summary", "Dashboard")
        found = dict(next(server.stdout).split(maxsplit=1) for _ in named)
        assert tuple(found) == named
        wait_until(lambda: _listens(port), process=server)
        yield server, {label: text.strip() for label, text in found.items()}


@pytest.fixture(scope="module")
def links(run):
    """The addresses that `ui` prints, by name."""
    with served(run) as (server, found):
        yield found
        server.terminate()
    assert server.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_the_server_ends_with_the_command(signum, run):
    with served(run) as (server, _):
        started = processes(server.pid)
        server.send_signal(signum)
        server.wait()
        wait_until(lambda: not any(Path(f"/proc/{process}").exists() for process in started))
        assert "Aborted" not in server.stderr.read()
    assert server.returncode == {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[signum]


def test_mlflow_answers_this_machine_alone(links):
    at = urlsplit(links["MLflow"])
    for host, status in ((at.netloc, 200), ("evil.example", 403)):
        with closing(HTTPConnection("127.0.0.1", at.port)) as connection:
            connection.request(
                "GET", "/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": host}
            )
            assert connection.getresponse().status == status


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path="/usr/bin/chromium")


@pytest.fixture
def page(browser, request):
    """A page of its own for each test; the screenshot is taken at the end, also of a failure."""
    errors = []

    def note(message):
        # MLflow 3.17 asks who the user is, which a server without passwords does not know (404).
        # Chromium reports that elements were resized while they were drawn; they are drawn again.
        # MLflow 3.17 draws parallel coordinates 300 ms after the last change of their container's
        # size. On a busy machine that can be before the first size is known; they are drawn again.
        harmless = "/users/current|ResizeObserver loop completed|> attribute .*(NaN|negative)"
        text = f"{message.text} ({message.location['url']})"
        if message.type == "error" and not re.search(harmless, text):
            errors.append(text)

    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    page.set_default_timeout(TIMEOUT_MS)
    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.screenshot(path=SCREENSHOTS / f"{request.node.name}.png", full_page=True)
    expect(page.locator(NOT_DRAWN)).to_have_count(0)
    page.close()
    assert errors == []


def column(page, name):
    """The visible cells of a column of MLflow's table, from top to bottom."""
    cells = page.locator(f'[role=row] [role=gridcell][col-id="{name}"]')
    expect(cells).to_have_count(NUM_RUNS)
    for cell in cells.all():
        expect(cell).to_be_in_viewport(ratio=1)
    texts = cells.evaluate_all(
        "cells => Object.fromEntries(cells.map(cell =>"
        " [cell.closest('[role=row]').getAttribute('row-index'), cell.innerText.trim()]))"
    )
    return [texts[row] for row in sorted(texts, key=int)]


def test_the_first_page_has_id_and_ood_accuracy_of_all_trials_best_first(run, links, page):
    page.set_viewport_size({"width": 1280, "height": 1000})
    page.goto(links["MLflow"])
    page.get_by_role("link", name="trial-000").wait_for()
    best = ranked(load_run(run).goal, RECORDS)
    ends = sum(record.outcome == "finished" for record in best)
    expected = [record.trial_id for record in best]
    expected[ends:ends] = ["untuned FT", "zero-shot"]
    names = column(page, "attributes.`Run Name`")
    shown = [re.search(r"trial-\d+|untuned FT|zero-shot", name)[0] for name in names]
    assert shown == expected
    by_name = {trial_label(record): record.metrics for record in RECORDS}
    by_name["zero-shot"] = fakes.report(0, 82.4, 61.0)
    for metric in ("id_val/acc", "ood_val/mean_acc"):
        values = [float(text) for text in column(page, f"metrics.`{metric}`")]
        assert values == pytest.approx([by_name[name][metric] for name in shown], abs=1e-3)


@pytest.fixture
def report(links, page):
    page.goto(links["Report"])
    expect(page.locator(".main-svg").first).to_be_visible()
    return page


def test_rows_are_sorted_and_filtered(report):
    names = report.locator("#trials tbody tr:visible td:nth-child(2)")
    shown = names.all_inner_texts()
    report.get_by_role("columnheader", name="lr").click()
    assert sorted(names.all_inner_texts()) == sorted(shown)
    rates = [text for text in report.locator("#trials td:nth-child(8)").all_inner_texts() if text]
    assert [float(rate) for rate in rates] == sorted(float(rate) for rate in rates)
    report.get_by_role("searchbox").fill("trial-002")
    assert names.all_inner_texts() == ["trial-002"]


def test_a_row_and_its_point_are_marked_together(report):
    row = report.locator("tr[data-trial='trial-003']")
    row.hover()
    expect(row).to_have_class(re.compile("on"))
    expect(report.locator("#id_vs_ood .hovertext")).to_contain_text("trial-003")
    report.screenshot(path=SCREENSHOTS / "report_marked.png", full_page=True)


def _listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
