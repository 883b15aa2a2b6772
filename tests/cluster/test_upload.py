"""Files that are uploaded with a job, packed by Ray, and paths in its configuration."""

import logging
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.packaging import create_package

from cluster.upload import check_paths, check_uploaded, config_within, excludes
from trainers.errors import ConfigError
from tuning.config.loading import read_layers
from tuning.config.schema import SearchFile


def search_file(root, storage="runs"):
    values = {"trial": {"data": {"root": root}}, "search": {"storage": storage}}
    return SearchFile.model_validate(values)


def packed(folder, patterns, archive):
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


def test_code_is_uploaded_but_no_data_and_no_secrets(tmp_path):
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


def test_storage_elsewhere_excludes_nothing(tmp_path):
    (tmp_path / "a.py").write_text("x")
    for storage in (str(tmp_path), "/shared/runs", "s3://bucket/runs"):
        patterns = excludes(tmp_path, search_file("s3://bucket/data", storage))
        assert packed(tmp_path, patterns, tmp_path.parent / "package.zip") >= {"a.py"}


def test_a_configuration_has_a_path_relative_to_the_job(tmp_path, monkeypatch):
    (tmp_path / "work" / "searches").mkdir(parents=True)
    config = tmp_path / "work" / "searches" / "mine.yaml"
    config.write_text("extends: quickstart\nvariants: {fast: {trial.steps: 10}}\n")
    monkeypatch.chdir(config.parent)
    assert config_within(tmp_path / "work", "mine.yaml") == "searches/mine.yaml"
    assert config_within(tmp_path / "work", "mine.yaml:fast") == "searches/mine.yaml:fast"
    assert config_within(tmp_path / "work", "quickstart") == "quickstart"
    assert config_within(tmp_path / "work", "imagenet_vit_b16:runlocal").endswith(":runlocal")
    with pytest.raises(ConfigError) as caught:
        config_within(config.parent.parent.parent / "elsewhere", "mine.yaml")
    assert caught.value.source == "mine.yaml"
    with pytest.raises(ConfigError, match="quickstart"):
        config_within(tmp_path, "quickstar")


@pytest.mark.parametrize(
    ("config", "content", "key"),
    [
        ("mine.yaml", "{extends: base.yaml, trial: {data: {suite: suite.yaml}}}", None),
        ("mine.yaml", "{extends: quickstart}", None),
        ("mine.yaml", "{extends: SHARED/base.yaml, trial: {data: {suite: SHARED/s.yaml}}}", None),
        ("mine.yaml", "{extends: ../base.yaml}", "extends"),
        ("mine.yaml", "{extends: runs/base.yaml}", "extends"),
        ("mine.yaml", "{extends: chained.yaml}", "extends"),
        ("mine.yaml", "{trial: {data: {suite: ../s.yaml}}}", "trial.data.suite"),
        ("mine.yaml", "{trial: {data: {suite: images/s.yaml}}}", "trial.data.suite"),
        ("mine.yaml", "{extends: odd_suite.yaml, trial: {data: {suite: suite.yaml}}}", None),
        ("mine.yaml", "{plugins: [plugin.py]}", "plugins"),
        ("mine.yaml", "{plugins: [SHARED/plugin.py], variants: {x: {plugins: [plugin.py]}}}", None),
        ("runs/mine.yaml", "{extends: quickstart}", ""),
    ],
)
def test_a_file_that_the_job_does_not_get_is_refused(config, content, key, tmp_path):
    folder = tmp_path / "work"
    suite = "{id_domain: a, ood_domains: [b]}"
    texts = {
        "base.yaml": "{}", "suite.yaml": suite, "../base.yaml": "{}", "../s.yaml": suite,
        "runs/base.yaml": "{}", "images/s.yaml": suite, "chained.yaml": "{extends: ../base.yaml}",
        "odd_suite.yaml": "{trial: {data: {suite: ../s.yaml}}}", "plugin.py": "",
        config: content.replace("SHARED", str(tmp_path)),
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    origin, _ = read_layers(folder / config)
    patterns = excludes(folder, search_file(str(folder / "images")))
    if key is None:
        check_uploaded(origin.files, folder, patterns)
        return
    with pytest.raises(ConfigError) as caught:
        check_uploaded(origin.files, folder, patterns)
    assert (caught.value.key or "") == key


def test_a_suite_that_the_job_looks_for_elsewhere_is_refused(tmp_path, monkeypatch):
    for folder in (tmp_path, tmp_path / "below"):
        folder.mkdir(exist_ok=True)
        (folder / "suite.yaml").write_text("{id_domain: a, ood_domains: [b]}")
        monkeypatch.chdir(folder)
        origin, _ = read_layers("quickstart", ["trial.data.suite=suite.yaml"])
        check_uploaded(origin.files, folder, ())
    with pytest.raises(ConfigError) as caught:
        check_uploaded(origin.files, tmp_path, ())
    assert (caught.value.key, caught.value.value) == ("trial.data.suite", "suite.yaml")


def refused(override):
    try:
        check_paths(read_layers("quickstart", [override])[1])
    except ConfigError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("trial.data.root", ["data/mine", "mine"]),
        ("search.study_storage", ["sqlite:///study.db", "mlruns"]),
        ("search.tracking.uri", ["sqlite:///study.db", "mlruns"]),
    ],
)
def test_data_and_databases_in_the_jobs_copy_are_refused(key, values):
    for value in values:
        error = refused(f"{key}={value}")
        assert error is not None
        assert (error.key, error.value) == (key, value)


TEXTS = "trial.method={name: lipsum_ft, text_source: file, texts_sha256: x, texts_file: FILE}"
CHOICES = "search.space.parameters.model.pretrained={type: categorical, choices: [openai, FILE]}"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        (TEXTS, "trial.method.texts_file", "FILE"),
        ("trial.model.pretrained=FILE.pt", "trial.model.pretrained", "FILE.pt"),
        ("plugins=[FILE.py]", "plugins", "FILE.py"),
        ("search.warm_start.runs=FILE", "search.warm_start.runs", "FILE"),
        ("search.warm_start.runs=[/shared/a, FILE]", "search.warm_start.runs", "FILE"),
        ("trial.plugins=[numpy, FILE.py]", "plugins", "FILE.py"),
        ("trial.model.name=local-dir:FILE", "trial.model.name", "local-dir:FILE"),
        (
            CHOICES.replace("FILE", "FILE.pt"),
            "search.space.parameters.model.pretrained.choices",
            "FILE.pt",
        ),
        (
            "search.space.by_method={ft: {initial_points: [{model.pretrained: FILE.pt}]}}",
            "search.space.by_method.ft.initial_points",
            "FILE.pt",
        ),
    ],
)
@pytest.mark.parametrize("path", ["mine", "weights/mine"])
def test_a_relative_path_of_a_file_is_refused(override, key, value, path):
    for known in (f"/shared/{path}", f"~/{path}"):
        assert refused(override.replace("FILE", known)) is None
    error = refused(override.replace("FILE", path))
    assert error is not None
    assert (error.key, error.value) == (key, value.replace("FILE", path))


@pytest.mark.parametrize(
    "override",
    [
        "trial.model.name=ViT-B-16-quickgelu", "trial.model.name=hf-hub:org/repo",
        "trial.model.pretrained=openai", "trial.model.pretrained=random",
        "trial.method.text_length=4", "search.space.initial_points=null",
        "search.space.methods=[ft, kd]", "trial.data.root=/shared/data",
        "trial.data.root=s3://bucket/data", "trial.data.root=openmoji", "trial.data.root=~/data",
        "search.study_storage=sqlite:////shared/study.db", "search.study_storage=null",
        "search.tracking.uri=/shared/mlruns", "search.tracking.uri=http://mlflow:5000",
    ],
)  # fmt: skip
def test_what_all_nodes_reach_and_values_that_name_no_file_are_accepted(override):
    assert refused(override) is None
