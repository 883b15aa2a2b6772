"""LogME against a brute-force maximum of the evidence, and several models in one table."""

import numpy as np
import pytest
import yaml
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from typer.testing import CliRunner

from tests.conftest import CLASSES
from trainers.config import TrialConfig
from trainers.data.dataset import ImageDataset
from tuning.cli import app
from tuning.zero_shot.ranking import log_me, rank, train_features


def most_evidence(features, y):
    """The maximum over both precisions of the density of y, divided by its length."""
    gram, n = features @ features.T, len(y)

    def loss(logs):
        a, b = np.exp(logs)
        return -multivariate_normal.logpdf(y, np.zeros(n), gram / a + np.eye(n) / b) / n

    starts = [(0, 0), (-3, 3), (3, 1)]
    return -min(minimize(loss, start, method="Nelder-Mead").fun for start in starts)


@pytest.mark.parametrize("shape", [(40, 6), (12, 20)])
def test_log_me_is_the_highest_evidence(shape):
    rng = np.random.default_rng(0)
    features = rng.normal(size=shape)
    labels = (features[:, 0] + features[:, 1] ** 2 + 0.3 * rng.normal(size=shape[0]) > 0.5) + 2 * (
        features[:, 2] > 1
    )
    found = np.mean([most_evidence(features, labels == k) for k in np.unique(labels)])
    assert log_me(features, labels) == pytest.approx(found, abs=1e-4)


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
    assert first.log_me == last.log_me  # which asks for no names
    features, labels = train_features(right)
    images = ImageDataset(images_root, "real", "train")
    assert len(features) == len(images)
    assert (labels == images.labels).all()


def test_the_command_ranks_models_of_the_same_images(images_root, tmp_path):
    for name, data in {"a": {}, "b": {}, "other": {"ood_domains": ["clipart"]}}.items():
        text = yaml.safe_dump({"trial": trial(images_root, **data)})
        (tmp_path / f"{name}.yaml").write_text(text)
    a, b, other = (str(tmp_path / f"{name}.yaml") for name in ("a", "b", "other"))
    runner = CliRunner(env={"COLUMNS": "200"})
    shown = runner.invoke(app, ["zero-shot", a, b])
    assert shown.exit_code == 0, shown.output
    assert [a in shown.output, b in shown.output, "LogME" in shown.output] == [True] * 3
    assert "not those of" in str(runner.invoke(app, ["zero-shot", a, other]).exception)
    refused = runner.invoke(app, ["zero-shot", a, b, "--expect", "published"]).exception
    assert "one configuration" in str(refused)
