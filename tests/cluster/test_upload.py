"""What goes along with a job, as Ray itself packs it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.packaging import create_package

from cluster.upload import check_data_root, check_databases, check_files, config_within, excludes
from trainers.errors import ConfigError
from tuning.config.loading import read_layers
from tuning.config.schema import SearchFile


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
        "trainers/data/transforms.py",
        "tuning/data.py",
        "texts/words.txt",
    }
    left = {
        ".git/config", "env/pyvenv.cfg", "env/lib/python3.12/site.py", "tools/conda/conda-meta/x",
        "data/real/train/part-00000.parquet", "images/shop/cat.png", "results/a/journal.jsonl",
        "runs/old/journal.jsonl", "mlruns/0/meta.yaml", "trainers/__pycache__/x.pyc", ".env",
        ".mypy_cache/x", "mlflow.db", "ignored.txt", ".ssh/id_ed25519", ".aws/credentials",
        ".azure/msal_token_cache.json", ".config/gcloud/credentials.db", ".docker/config.json",
        ".gnupg/trustdb.gpg", ".kube/config", ".ray/auth_token", ".netrc", "home/me/.ssh/config",
        "ray-autoscaler_us-west-2.pem",
    }  # fmt: skip
    for name in taken | left:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (folder / ".gitignore").write_text("ignored.txt\n")
    file = search_file(str(folder / "images"), storage=str(folder / "results"))
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


TEXTS = "trial.method={name: lipsum_ft, text_source: file, texts_sha256: x, texts_file: FILE}"
CHOICES = "search.space.parameters.model.pretrained={type: categorical, choices: [openai, FILE]}"


@pytest.mark.parametrize(
    ("override", "where"),
    [
        (TEXTS, "trial.method.texts_file = 'FILE'"),
        ("trial.model.pretrained=FILE.pt", "trial.model.pretrained = 'FILE.pt'"),
        ("trial.model.name=FILE.json", "trial.model.name = 'FILE.json'"),
        ("trial.model.name=local-dir:FILE", "trial.model.name = 'local-dir:FILE'"),
        (CHOICES.replace("FILE", "FILE.pt"), "parameters.model.pretrained.choices = 'FILE.pt'"),
        (
            "search.space.by_method={ft: {initial_points: [{model.name: FILE.json}]}}",
            "search.space.by_method.ft.initial_points = 'FILE.json'",
        ),
    ],
)
@pytest.mark.parametrize("path", ["mine", "weights/mine", "./mine"])
def test_a_file_that_would_be_another_in_each_jobs_copy_is_refused(
    override: str, where: str, path: str
) -> None:
    def check(path: str) -> None:
        check_files(read_layers("quickstart", [override.replace("FILE", path)])[1])

    for known in (f"/shared/{path}", f"~/{path}"):
        check(known)
    said = re.escape(where.replace("FILE", path))
    with pytest.raises(ConfigError, match=rf"{said}: .*give the absolute path under which every"):
        check(path)


@pytest.mark.parametrize(
    "override",
    [
        "trial.model.name=ViT-B-16-quickgelu", "trial.model.name=hf-hub:org/repo",
        "trial.model.pretrained=openai", "trial.model.pretrained=random",
        "trial.method.text_length=4", "search.space.initial_points=null",
        "search.space.methods=[ft, kd]",
    ],
)  # fmt: skip
def test_what_names_no_file_goes_along(override: str) -> None:
    check_files(read_layers("quickstart", [override])[1])
    check_files({})


def test_a_suite_in_a_file_is_kept_by_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text("{id_domain: a, ood_domains: [b]}")
    (tmp_path / "mine.yaml").write_text("trial: {data: {suite: suite.yaml}}")
    values = read_layers(tmp_path / "mine.yaml")[1]
    check_files(values)
    assert values["trial"]["data"]["suite"].id_domain == "a"


@pytest.mark.parametrize("key", ["search.study_storage", "search.tracking.uri"])
def test_a_database_that_would_go_with_the_jobs_copy_is_refused(key: str) -> None:
    for url in ("sqlite:///study.db", "mlruns"):
        values = read_layers("quickstart", [f"{key}={url}"])[1]
        with pytest.raises(ConfigError, match=f"{key} = '{url}': .* absolute path"):
            check_databases(values)
    for url in ("sqlite:////shared/study.db", "/shared/mlruns", "http://mlflow:5000", "null"):
        check_databases(read_layers("quickstart", [f"{key}={url}"])[1])
