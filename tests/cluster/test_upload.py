"""What goes along with a job, as Ray itself packs it."""

from __future__ import annotations

import logging
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.packaging import create_package

from cluster.upload import check_data_root, config_within, excludes
from trainers.errors import ConfigError
from tuning.config import SearchFile
from tuning.config_layers import read_layers


def search_file(root: str, storage: str = "runs") -> SearchFile:
    values = {"trial": {"data": {"root": root}}, "search": {"storage": storage}}
    return SearchFile.model_validate(values)


def packed(folder: Path, patterns: list[str], archive: Path) -> set[str]:
    create_package(
        str(folder),
        archive,
        include_gitignore=True,
        include_parent_dir=False,
        excludes=patterns,
        logger=logging.getLogger("ray"),
    )
    with ZipFile(archive) as file:
        return {name for name in file.namelist() if not name.endswith("/")}


def test_code_and_configurations_go_along_and_nothing_heavy_or_secret(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    taken = {
        ".gitignore",
        "search.yaml",
        "trainers/data/views.py",
        "tuning/data.py",
        "texts/words.txt",
    }
    left = {
        ".git/config", "env/pyvenv.cfg", "env/lib/python3.12/site.py", "tools/conda/conda-meta/x",
        "data/real/train/part-00000.parquet", "pictures/shop/cat.png", "results/a/journal.jsonl",
        "runs/old/journal.jsonl", "mlruns/0/meta.yaml", "trainers/__pycache__/x.pyc", ".env",
        ".mypy_cache/x", "mlflow.db", "ignored.txt",
    }  # fmt: skip
    for name in taken | left:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (folder / ".gitignore").write_text("ignored.txt\n")
    file = search_file(str(folder / "pictures"), storage=str(folder / "results"))
    names = packed(folder, excludes(folder, file), tmp_path / "package.zip")
    assert names == taken


def test_storage_that_is_the_working_directory_itself_or_elsewhere_hides_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.py").write_text("x")
    for storage in (str(tmp_path), "/shared/runs", "s3://bucket/runs"):
        patterns = excludes(tmp_path, search_file("s3://bucket/data", storage))
        assert packed(tmp_path, patterns, tmp_path.parent / "package.zip") >= {"a.py"}


def test_a_configuration_is_named_as_the_job_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work" / "searches").mkdir(parents=True)
    config = tmp_path / "work" / "searches" / "mine.yaml"
    config.write_text("extends: quickstart\nvariants: {fast: {trial.steps: 10}}\n")
    monkeypatch.chdir(config.parent)
    assert config_within(tmp_path / "work", "mine.yaml") == "searches/mine.yaml"
    assert config_within(tmp_path / "work", "mine.yaml:fast") == "searches/mine.yaml:fast"
    assert config_within(tmp_path / "work", "quickstart") == "quickstart"
    assert config_within(tmp_path / "work", "imagenet_vit_b16:runlocal").endswith(":runlocal")
    with pytest.raises(ConfigError, match=r"mine.yaml: it is not in the job's working directory"):
        config_within(config.parent.parent.parent / "elsewhere", "mine.yaml")
    with pytest.raises(ConfigError, match=r"quickstar: no such file.*did you mean 'quickstart'"):
        config_within(tmp_path, "quickstar")


def test_data_that_would_be_looked_for_in_the_jobs_copy_are_refused() -> None:
    def check(root: str) -> None:
        check_data_root(read_layers("quickstart", [f"trial.data.root={root}"])[1])

    for root in ("data/mine", "mine"):
        with pytest.raises(ConfigError, match=rf"trial.data.root = '{root}': data do not go along"):
            check(root)
    for root in ("/shared/data", "s3://bucket/data", "openmoji", "~/data"):
        check(root)
    check_data_root({})
