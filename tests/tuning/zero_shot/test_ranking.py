"""Several models in one table, by their validation accuracy."""

import numpy as np
import yaml
from typer.testing import CliRunner

from tests.conftest import CLASSES
from trainers.config import TrialConfig
from tuning.cli import app
from tuning.zero_shot.ranking import rank


def trial(root, **data):
    return {"data": {"root": str(root), "ood_domains": ["sketch"], **data}}


def test_a_model_whose_names_are_wrong_comes_last(images_root):
    names = dict(zip(CLASSES, (*CLASSES[1:], CLASSES[0]), strict=True))
    suite = {"id_domain": "real", "ood_domains": ["sketch"], "class_names": names}
    wrong = TrialConfig.model_validate(trial(images_root, suite=suite))
    right = TrialConfig.model_validate(trial(images_root))
    first, last = rank([("wrong", wrong), ("right", right)])
    assert (first.name, last.name) == ("right", "wrong")
    assert first.acc > last.acc
    assert first.acc == np.mean([row.acc for row in first.rows])


def test_the_command_ranks_models_of_the_same_images(images_root, tmp_path):
    for name, data in {"a": {}, "b": {}, "other": {"ood_domains": ["clipart"]}}.items():
        text = yaml.safe_dump({"trial": trial(images_root, **data)})
        (tmp_path / f"{name}.yaml").write_text(text)
    a, b, other = (str(tmp_path / f"{name}.yaml") for name in ("a", "b", "other"))
    runner = CliRunner(env={"COLUMNS": "200"})
    shown = runner.invoke(app, ["zero-shot", a, b, "--split", "val"])
    assert shown.exit_code == 0, shown.output
    assert a in shown.output
    assert b in shown.output
    assert "not those of" in str(runner.invoke(app, ["zero-shot", a, other]).exception)
    for option in (["--expect", "published"], ["--split", "test"]):
        refused = runner.invoke(app, ["zero-shot", a, b, *option]).exception
        assert "for one configuration" in str(refused)
