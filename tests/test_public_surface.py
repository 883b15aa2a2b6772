"""What users see, name by name: a change of `public_surface.yaml` belongs into CHANGELOG.md.

`python -m tests.test_public_surface` prints today's surface in the form of that file.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest
import yaml
from typer.main import get_command

import cluster
import search_spaces
import trainers
import tuning
from cluster.cli import app
from docs.build import sections
from tests.tuning import fakes
from trainers.config import TrialConfig
from trainers.evaluation.metrics import REPORTED, metric_names
from tuning.config.schema import SearchFile
from tuning.views.tables import write_tables

EXPECTED = yaml.safe_load((Path(__file__).parent / "public_surface.yaml").read_text("utf-8"))


def commands():
    """Each command with its arguments in capitals and its options."""
    found = {}
    for name, command in sorted(get_command(app).commands.items()):
        shown = [
            "/".join([*p.opts, *p.secondary_opts]) if p.opts[0].startswith("-") else p.name.upper()
            for p in command.params
        ]
        found[name] = " ".join(sorted(shown))
    return found


def configuration_keys():
    """Dotted keys; a section with a `name` has the keys of each kind, as `method[ft].x`."""
    schema = SearchFile.model_json_schema()
    models = schema["$defs"]
    keys = (
        f"{path}.{name}".removeprefix(".")
        for path, section in sections(schema, models)
        for name, field in section["properties"].items()
        if not any(sections(field, models))
    )
    return sorted({key.partition(".<key>")[0] for key in keys})


def metrics():
    """Names in the last report of a trial on the default data."""
    return sorted({*metric_names(TrialConfig().data), *REPORTED})


def tables():
    """Columns of the tables of a search over two methods, without its parameters and metrics."""
    records = fakes.compared_methods()
    with TemporaryDirectory() as folder:
        write_tables(Path(folder), fakes.Search(Path(folder)).run(records))
        return {
            path.name: [name for name in pq.read_schema(path).names if not {*"./"} & {*name}]
            for path in sorted(Path(folder).glob("*.parquet"))
        }


SURFACE = {
    "commands": commands,
    "configuration": configuration_keys,
    "metrics": metrics,
    "tables": tables,
    "python": lambda: sorted(tuning.__all__),
}


@pytest.mark.parametrize("package", [cluster, search_spaces, trainers, tuning])
def test_type_checkers_see_the_annotations_of_an_installed_package(package):
    assert (Path(package.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("part", SURFACE)
def test_nothing_that_users_see_changes_unnoticed(part):
    assert SURFACE[part]() == EXPECTED[part]


def test_every_name_of_the_python_api_can_be_imported():
    assert all(getattr(tuning, name) is not None for name in tuning.__all__)


if __name__ == "__main__":
    # `run_folder` is compared in tests/tuning/test_search.py.
    print(yaml.safe_dump({part: found() for part, found in SURFACE.items()}, width=100))
