from textwrap import dedent
from typing import Literal

import pytest
import torch

from trainers.config import TrialConfig, with_overrides
from trainers.errors import ConfigError, validate
from trainers.methods import register_method
from trainers.methods.base import Loss, Method
from trainers.methods.ft import FineTuning
from trainers.methods.registry import (
    _LOADED,
    _TEXTS,
    ENTRY_POINTS,
    METHODS,
    SEARCH_SPACES,
    _load_entry_points,
    is_available,
    load_plugins,
    texts_of,
    use_texts,
)

SPACE = {"parameters": {"method.strength": {"type": "float", "low": 0, "high": 1}}}


@pytest.fixture
def plugin(tmp_path, request):
    """A module outside of the package that registers the method `mine`."""
    path = tmp_path / f"plugin_of_{request.node.name}.py"
    path.write_text(
        dedent(f"""
            from __future__ import annotations
            from typing import Literal
            from trainers.methods import register_method
            from trainers.methods.base import Method

            @register_method("mine", search_space={SPACE!r})
            class Mine(Method):
                name: Literal["mine"] = "mine"
                strength: float = 0.5
            """)
    )
    return path


def test_a_plugin_file_adds_a_method(plugin):
    values = {"plugins": [str(plugin)], "method": {"name": "mine", "strength": 0.25}}
    trial = validate(TrialConfig, values, "trial")
    assert trial.model_dump(mode="json")["method"] == {"name": "mine", "strength": 0.25}
    assert SEARCH_SPACES["mine"] == SPACE
    assert with_overrides(trial, {"method.strength": 1.0}, "test").method != trial.method
    with pytest.raises(ConfigError) as error:
        with_overrides(trial, {"method.strngth": 1.0}, "test")
    assert (error.value.key, error.value.hint) == ("method.strngth", "did you mean 'strength'?")


def test_a_plugin_file_is_read_as_python_reads_it(plugin):
    text = plugin.read_text().replace("from __future__ import annotations\n", "")
    plugin.write_text(text, encoding="utf-8-sig")
    load_plugins([str(plugin)])
    assert METHODS["mine"].__annotations__["strength"] is float


def test_a_plugin_that_is_edited_stays_what_it_was(plugin):
    values = {"plugins": [str(plugin)], "method": {"name": "mine", "strength": 0.25}}
    texts = texts_of(TrialConfig.model_validate(values).plugins)
    assert texts == {str(plugin): plugin.read_text()}
    plugin.write_text("1 / 0")
    _LOADED.clear()  # as in a process that starts later
    _TEXTS.clear()
    METHODS.pop("mine")
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        TrialConfig.model_validate(values)
    use_texts(texts)
    assert TrialConfig.model_validate(values).method.strength == 0.25


def test_an_installed_package_adds_a_method(plugin, tmp_path, monkeypatch):
    record, content = tmp_path / "other-1.0.dist-info", plugin.read_text()
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nmine = {plugin.stem}\n")
    monkeypatch.syspath_prepend(tmp_path)
    _load_entry_points.cache_clear()
    plugin.write_text("1 / 0")
    with pytest.raises(ConfigError, match=f"{plugin.stem}' of {ENTRY_POINTS}.*ZeroDivisionError"):
        load_plugins()
    plugin.write_text(content)
    trial = TrialConfig.model_validate({"method": {"name": "mine"}})
    assert type(trial.method).__module__ == plugin.stem


@pytest.mark.parametrize("mistake", ["1 / 0", None], ids=["broken", "missing"])
def test_a_plugin_that_cannot_be_imported_is_named_until_corrected(mistake, plugin):
    content = plugin.read_text()
    plugin.unlink()
    if mistake is not None:
        plugin.write_text(f"{content}\n{mistake}\n")
    with pytest.raises(ConfigError) as error:
        load_plugins([str(plugin)])
    assert (error.value.key, error.value.value) == ("plugins", str(plugin))
    assert (error.value.hint is None) == plugin.exists()
    plugin.write_text(content)
    load_plugins([str(plugin)])
    assert METHODS["mine"].model_fields["strength"].default == 0.5


def test_two_classes_cannot_share_a_name():
    with pytest.raises(ValueError, match="already registered"):

        @register_method("ft")
        class Other(Method):
            name: Literal["ft"] = "ft"


def test_the_name_field_must_agree_with_the_registered_name():
    with pytest.raises(ValueError, match="Literal"):
        register_method("other")(FineTuning)


def test_a_property_without_its_decorator_is_refused():
    with pytest.raises(ValueError, match="must be a property"):
        register_method("ft")(type("Plain", (FineTuning,), {"per_image": lambda self: False}))


def test_versions_of_a_method_are_read_in_turn_but_not_in_one_configuration(plugin):
    other = plugin.parent / "other" / plugin.name
    other.parent.mkdir()
    other.write_text(plugin.read_text().replace("class Mine", "class Other"))
    for path, name in ((plugin, "Mine"), (other, "Other"), (plugin, "Mine")):
        load_plugins([str(path)])
        assert METHODS["mine"].__name__ == name
        assert is_available("mine", [str(path)])
    assert not is_available("mine", [str(other)])
    with pytest.raises(ConfigError, match=f"{other}.*has the method 'mine', as {plugin} has"):
        load_plugins([str(plugin), str(other)])


def test_a_loss_that_is_no_scalar_is_refused():
    with pytest.raises(ValueError, match=r"reg of the Loss has shape \(4,\)"):
        Loss(torch.zeros(()), torch.zeros(4))
