"""Real fine-tunings of every kind of model, exported, and read by open_clip alone."""

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.curves import changed, configured
from tests.trainers.exported import open_clip_logits
from tests.trainers.tiny_models import random_model
from trainers.checkpoints.format import load_weights
from trainers.fine_tune import fine_tune
from trainers.loop.measure import classify, holding
from trainers.models.averaging import swapped_in
from trainers.models.clip import load_clip, load_tokenizer, vocabulary
from trainers.models.config import ModelConfig
from trainers.weights.export import classifier, write_open_clip

KINDS_AND_METHODS = [
    ("clip", "ft"),
    ("clip", "flyp"),
    ("clip", "r_adapter"),
    ("quick-gelu", "wise_ft"),
    ("custom-text", "flyp"),
    ("custom-text", "r_adapter"),
    ("timm", "ft"),
    ("coca", "flyp"),
    ("coca", "lipsum_ft"),
    ("roberta", "lipsum_ft"),
    ("siglip", "lipsum_ft"),
    ("siglip2", "lipsum_ft"),
    ("siglip2", "flyp"),
]


@pytest.fixture(scope="module", params=KINDS_AND_METHODS, ids=lambda both: "-".join(both))
def trained(request, trial, tmp_path_factory):
    """A run after its last step, and its checkpoint."""
    kind, method = request.param
    folder = tmp_path_factory.mktemp(kind)
    changes = {"optim__lr": 5e-2 if method == "r_adapter" else 3e-3, "precision": "fp32"}
    changes |= {"model": random_model(folder, kind), "data__ood_domains": ["sketch"], "steps": 2}
    *_, last = fine_tune(changed(configured(trial, method), **changes))
    last.save(folder / "checkpoint")
    return last, folder / "checkpoint"


def pixels(training):
    size = training.setup.zero_shot.image_input.size
    return torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(0))


def exported_logits(training, checkpoint, to, alpha=None):
    model = training.setup.config.model
    weights, class_names = load_weights(checkpoint)
    assert class_names == training.setup.class_names
    found = classifier(model, training.setup.config.data.rules.prompts(class_names), weights, alpha)
    write_open_clip(to, model, *found)
    return open_clip_logits(to, pixels(training))


def run_logits(training, weights):
    setup, student = training.setup, training.student
    with holding(setup, student, weights):
        return classify(setup, student, pixels(training))


def test_open_clip_loads_the_export_and_says_what_the_run_said(trained, tmp_path):
    last, checkpoint = trained
    training = last.training
    logits = exported_logits(training, checkpoint, tmp_path)
    torch.testing.assert_close(
        logits, run_logits(training, last.evaluated.weights), rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(logits, run_logits(training, training.initial), atol=1e-3)


def test_alpha_0_exports_zero_shot_and_alpha_1_fine_tuned(trained, tmp_path):
    last, checkpoint = trained
    training = last.training
    for alpha, weights in ((0.0, training.initial), (1.0, last.evaluated.weights)):
        logits = exported_logits(training, checkpoint, tmp_path / str(alpha), alpha)
        torch.testing.assert_close(logits, run_logits(training, weights), rtol=1e-5, atol=1e-5)


def test_wise_ft_in_between_is_the_mean_of_every_weight(trained, tmp_path):
    last, checkpoint = trained
    training = last.training
    logits = exported_logits(training, checkpoint, tmp_path, alpha=0.25)
    with swapped_in(training.student.trained, training.initial):
        before = {n: v.clone() for n, v in training.student.plain_state().items()}
    after = load_file(checkpoint / "student.safetensors")
    mean = {n: 0.75 * before[n] + 0.25 * v for n, v in after.items()}
    exported = load_file(tmp_path / "open_clip_model.safetensors")
    for name, value in mean.items():
        decoder = name.startswith("text.text_decoder.")  # which open_clip leaves uninitialised
        if name != "head" and after[name].is_floating_point() and not decoder:
            torch.testing.assert_close(exported[name.removeprefix("text.")], value)
    head = load_file(tmp_path / "head.safetensors")["head"]
    if training.student.text is None:
        torch.testing.assert_close(head, mean["head"])
    else:  # of the text encoder in between, which is not the mean of both heads
        torch.testing.assert_close(head.norm(dim=-1), torch.ones(len(head)))
        model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
        prompts = training.setup.zero_shot.prompts
        texts = training.setup.zero_shot.tokenizer(prompts.of(prompts.names[3]))
        with torch.no_grad():
            row = model.eval().encode_text(texts, normalize=True).mean(dim=0)
        torch.testing.assert_close(head[3], row / row.norm(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits, run_logits(training, last.evaluated.weights), atol=1e-3)


def test_an_exported_vocabulary_is_loaded_again(tmp_path):
    clip = load_clip(ModelConfig())
    code = write_open_clip(tmp_path, ModelConfig(), clip, torch.zeros(2, 128))
    texts = ["a photo of a cat.", "a sketch of an airplane"]
    expected = load_tokenizer(ModelConfig())(texts)
    assert torch.equal(eval(code, {"open_clip": open_clip, "folder": tmp_path})(texts), expected)
    again = ModelConfig(name=f"local-dir:{tmp_path}")
    assert torch.equal(load_tokenizer(again)(texts), expected)
    assert vocabulary(again).ids.tolist() == vocabulary(ModelConfig()).ids.tolist()
    state = load_clip(again).state_dict()
    assert all(torch.equal(state[name], value) for name, value in clip.state_dict().items())
