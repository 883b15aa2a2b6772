"""The command `prepare`: which domains it takes, what it prints, and how it ends."""

import fcntl
import threading
from typing import get_args

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from tests.images import file_of
from tests.tuning.result_tables import text_of
from tests.waiting import wait_until
from trainers.data.prepare import DomainReport, Report
from trainers.data.sources import Layout, Source
from trainers.errors import ConfigError
from tuning.cli import app
from tuning.prepare import render, sources_of


@pytest.fixture
def shop(tmp_path):
    for number, domain in enumerate(("studio", "street", "sketch")):
        for name in ("cup", "shoe"):
            for index in range(6):
                file = tmp_path / "shop" / domain / name / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                colour = (40 * number, 9 * index, len(name))
                file.write_bytes(file_of(Image.new("RGB", (4, 4), colour)))
    return tmp_path / "shop"


def test_the_roles_choose_folders_as_domains(shop):
    source = Source(path=str(shop))
    found = sources_of(source, id_domain="studio", ood=["sketch"])
    assert {name: each.path for name, each in found.items()} == {
        "studio": f"{shop}/studio", "sketch": f"{shop}/sketch",
    }  # fmt: skip
    assert list(sources_of(source, id_domain="street")) == ["street", "sketch", "studio"]
    one = Source(path=str(shop / "studio"))
    assert sources_of(one) == {"studio": one}
    assert sources_of(one, domain="pets") == {"pets": one}


@pytest.mark.parametrize(
    ("roles", "problem"),
    [
        ({"path": "nowhere", "id_domain": "studio"}, "nowhere: no such folder"),
        ({"id_domain": "studo"}, r"--id = 'studo': no such domain \(did you mean 'studio'"),
        ({"id_domain": "studio", "ood": ["x"]}, "--ood = 'x': no such domain"),
        ({"id_domain": "studio", "ood": ["studio"]}, "is the domain of --id"),
        ({"ood": ["studio"]}, "several domains with names"),
        ({"id_domain": "studio", "domain": "x"}, "several domains with names"),
    ],
)
def test_roles_that_do_not_fit_are_refused(roles, problem, shop):
    path = roles.pop("path", str(shop))
    with pytest.raises(ConfigError, match=problem):
        sources_of(Source(path=path), **roles)


def test_the_command_prints_counts_findings_and_the_configuration(shop, tmp_path):
    (shop / "street/cup/5.png").write_bytes((shop / "studio/cup/0.png").read_bytes())
    (shop / "sketch/cup/6.png").write_bytes(b"no image")
    command = ["prepare", "folders", str(shop), str(tmp_path / "data"), "--id", "studio"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert f"trial.data.root: {tmp_path / 'data'}" in done.output
    (line,) = (line for line in done.output.splitlines() if "trial.data.suite" in line)
    suite = yaml.safe_load(line.partition("suite: ")[2])
    assert suite == {"id_domain": "studio", "ood_domains": ["sketch", "street"]}
    again = CliRunner().invoke(app, command)
    for output in (done.output, again.output):  # also of domains that are kept
        assert "1 image is byte for byte the same" in output
    assert f"{tmp_path / 'data'}/sketch/bad.csv" in done.output


def prepared(folder, data):
    done = CliRunner().invoke(app, ["prepare", "folders", str(folder), str(data)])
    assert done.exit_code == 0, done.output
    return done.output


def test_duplicates_are_looked_for_among_all_domains_of_the_destination(shop, tmp_path):
    same = (shop / "studio/cup/0.png").read_bytes()
    (shop / "street/cup/5.png").write_bytes(same)
    data, said = tmp_path / "data", "1 image is byte for byte the same"
    assert said not in prepared(shop / "studio", data)
    assert said in prepared(shop / "street", data)
    (pair,) = (data / "duplicates.csv").read_text().splitlines()[1:]
    assert said in prepared(shop / "sketch", data)  # which has none
    assert (data / "duplicates.csv").read_text().splitlines()[1:] == [pair]
    assert {"studio", "street"} == {place.split("/")[0] for place in pair.split(",")[:2]}
    assert "0.png" in pair
    assert "5.png" in pair


def test_the_lock_of_a_preparation_is_the_owners(shop, tmp_path, caplog, monkeypatch):
    data = tmp_path / "data"
    prepared(shop / "studio", data)
    lock = data / ".prepare.lock"
    lock.chmod(0o644)  # as an earlier version left it
    prepared(shop / "studio", data)
    assert lock.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr("trainers.folders._UNSAID_WAIT_S", 0.1)
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=prepared, args=(shop / "studio", data))
        waiting.start()
        said = f"preparing images in {data} waits for another process, which holds {lock}"
        wait_until(lambda: said in caplog.text)
    waiting.join()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["{shop}/studio", "{shop}/studio/cup"], "DESTINATION = .*among the images of the source"),
        (["{shop}/studio", "s3://"], "s3://: names no bucket or folder"),
        (["{shop}/studio", ""], "names no folder"),
        (["{shop}/studio", "hf://x"], "hf://x: Repository id must be"),
        (["{shop}/studio", "x", "--val-fraction", "0.6", "--test-fraction", "0.6"], "no image to"),
    ],
)
def test_places_and_shares_that_cannot_be_are_refused(words, problem, shop):
    command = ["prepare", "folders", *(word.format(shop=shop) for word in words)]
    with pytest.raises(ConfigError, match=problem):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert not (shop / "studio/cup/studio").exists()


@pytest.mark.parametrize("text", ["", "null", "{", "[" * 100_000, "\udcff"])
def test_a_damaged_record_is_named(text, shop, tmp_path):
    (tmp_path / "data/studio").mkdir(parents=True)
    record = tmp_path / "data/studio/preparation.json"
    record.write_text(text, errors="surrogateescape")
    command = ["prepare", "folders", f"{shop}/studio", f"{tmp_path}/data"]
    with pytest.raises(ConfigError, match=r"studio/preparation.json: is damaged .remove"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_the_help_lists_every_layout():
    text = " ".join(
        CliRunner().invoke(app, ["prepare", "--help"], terminal_width=300).output.split()
    )
    assert all(f" {name} " in text for name in get_args(Layout))


def test_what_a_search_will_lack_is_said():
    domains = (
        DomainReport("studio", "done", {"train": 900, "val": 99, "test": 100}),
        DomainReport("street", "kept", {"val": 500}, left_out=3),
    )
    text = text_of(render(Report("data", domains, ["x"], "studio")))
    assert "studio: 99 val images: accuracy ± 10 points" in text
    assert "street: no test split" in text
    assert "! x" in text
    assert "street: no val" not in text
    assert "listed in data/street/bad.csv" in text
    alone = Report("data", domains[:1], [], None)
    assert "search.objective: {metric: id_val/acc}" in text_of(render(alone))
