"""The summary of a preparation, and the help of its command."""

from typer.testing import CliRunner

from tests.tuning.result_tables import text_of
from trainers.data.formats import LAYOUTS
from trainers.data.formats.index import Finding
from tuning.cli import app
from tuning.preparation.manifest import Found
from tuning.preparation.report import (
    DomainReport,
    PreparationReport,
    SplitReport,
    refusal,
    render,
)


def domain(name, status="done", findings=()):
    splits = {"train": SplitReport(1200, 34_500_000), "test": SplitReport(300, 500_000)}
    return DomainReport(name, f"s3://bucket/data/{name}", status, splits, findings, 1502)


def shown(report):
    return [line.rstrip() for line in text_of(render(report), 120).splitlines()]


BAD = (
    Found("train", Finding("cat/1.jpg", "truncated", "12 bytes", bad=True)),
    Found("test", Finding("cat/2.jpg", "empty", bad=True)),
)
ODD = (
    Found("train", Finding("cat/3.jpg", "CMYK")),
    Found("train", Finding("cat/4.jpg", "CMYK")),
    Found("test", Finding("dog", "missing class")),
)


def test_the_summary_counts_images_findings_and_bytes():
    report = PreparationReport(
        "s3://bucket/data", (domain("real"), domain("sketch", findings=BAD + ODD)), 3000, 60.0
    )
    lines = [" ".join(line.split()) for line in shown(report)]
    assert "real 1,200 300 35.0 MB 0 done" in lines
    assert "sketch 1,200 300 35.0 MB 2 done" in lines
    assert "CMYK 2 sketch" in lines
    assert "truncated 1 bad: sketch: 12 bytes" in lines
    assert (
        "! sketch: 2 bad images left out, 2 conversions of images, 1 other finding, "
        "listed in s3://bucket/data/sketch/findings.csv"
    ) in " ".join(lines)
    assert "Read 3,000 images in 1m 00s, 50 a second" in lines
    assert "Config trial.data.root: s3://bucket/data" in lines


def test_missing_splits_are_named_with_what_makes_them():
    studio = DomainReport(
        "studio",
        "data/studio",
        "done",
        {"train": SplitReport(9, 1), "val": SplitReport(6, 1)},
        (),
        15,
    )
    report = PreparationReport("data", (studio, domain("real")), 9, 1)
    text = " ".join(" ".join(shown(report)).split())
    assert "! No val split, which a search needs: real. --val-fraction 0.1" in text
    assert "! No test split, which `confirm` needs: studio. --test-fraction 0.2" in text
    assert "! studio: an accuracy on 6 val images is known to ± 31 points" in text
    assert "! 2 domains have a train split, and a search reads that of one" in text


def test_the_roles_of_domains_become_a_suite():
    report = PreparationReport("data", (domain("real"), domain("straße")), 9, 1, "real")
    lines = [" ".join(line.split()) for line in shown(report)]
    assert "trial.data.suite: {id_domain: real, ood_domains: [straße]}" in lines
    assert not any("have a train split" in line for line in lines)


def test_a_refusal_names_the_option_that_leaves_them_out():
    report = PreparationReport("s3://bucket/data", (domain("real", "refused", BAD),), 0, 1.0)
    assert refusal(report) == (
        "s3://bucket/data/real: 2 of 1,502 images cannot be used (truncated 1, empty 1), listed "
        "in s3://bucket/data/real/findings.csv; repair them, or leave them out with --skip-bad 2, "
        "and run the same command again"
    )
    assert not any("trial.data.root" in line for line in shown(report))


def test_the_help_lists_every_layout():
    text = CliRunner().invoke(app, ["prepare", "--help"], env={"COLUMNS": "150"}).output
    for name, layout in LAYOUTS.items():
        assert f"{name}: " in text
        assert layout.description in " ".join(text.split())
