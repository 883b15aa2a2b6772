"""Names that become a part of a path: each key and option refuses those that lead elsewhere."""

import json
from itertools import cycle

import pytest
from PIL import Image

from tests.tuning.run_folders import search_file, trial, write_run
from trainers.data.prepare import Options
from trainers.data.prepare import prepare as prepare_domains
from trainers.data.sources import Source
from trainers.data.store import open_store
from trainers.errors import ConfigError
from tuning.config.validation import load_config
from tuning.prepare import sources_of
from tuning.weights.sources import find_source

HOSTILE = ["", ".", "..", "../up", "a/b", "/absolute", "C:\\x", "nul\0", "x" * 300]
HOSTILE += ["line\nbreak", "right\u202eleft"]


def configured(line):
    """By `--set`, whose values are YAML."""
    return lambda name, folder: load_config("quickstart", [line.format(json.dumps(name))])


def prepare(folder, **roles):
    image = folder / "source" / "studio" / "cup" / "1.png"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(image)
    path = folder / "source" if "id_domain" in roles else folder / "source" / "studio"
    sources = sources_of(Source(path=str(path)), **roles)
    return prepare_domains(sources, open_store(folder / "data"), Options())


ENTRANCES = {
    "search.name": configured("search.name={}"),
    "id_domain": configured("trial.data.id_domain={}"),
    "ood_domains": configured("trial.data.ood_domains=[{}]"),
    "suite.id_domain": configured("trial.data.suite={{id_domain: {}}}"),
    "suite.ood_domains": configured("trial.data.suite={{id_domain: real, ood_domains: [{}]}}"),
    "prepare --domain": lambda name, folder: prepare(folder, domain=name),
    "prepare --id": lambda name, folder: prepare(folder, id_domain=name),
    "prepare --ood": lambda name, folder: prepare(folder, id_domain="studio", ood=(name,)),
}


CASES = [*zip(HOSTILE, cycle(ENTRANCES)), *(("..", entrance) for entrance in ENTRANCES)]


def shown(word):
    return json.dumps(word[:9])


@pytest.mark.parametrize(("name", "entrance"), CASES, ids=shown)
def test_it_is_refused_in_one_line(name, entrance, tmp_path):
    with pytest.raises(ConfigError) as caught:
        ENTRANCES[entrance](name, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", HOSTILE, ids=shown)
def test_nothing_is_exported_from_elsewhere(name, images_root, tmp_path):
    run = write_run(tmp_path / "run", search_file(images_root), [trial(0, 80.0, 60.0)])
    with pytest.raises(ConfigError, match="no such trial"):
        find_source(run, name)
