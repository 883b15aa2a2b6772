"""Mistakes in a configuration: one line each with source, key and value, before anything starts."""

import pytest
import yaml

from trainers.errors import ConfigError, validate
from trainers.overrides import nest
from tuning.config.schema import SearchFile
from tuning.config.validation import check_search, load_config

BOTH = [{"metric": "id_val/acc"}, {"metric": "ood_val/mean_acc"}]
LR = {"type": "float", "low": 1e-5, "high": 1e-3, "log": True}
SPACE, PRIOR = "search.space", "search.prior"
ONLY_LR = {SPACE: {"name": None, "parameters": {"optim.lr": LR}}}
PARAMETERS = f"{SPACE}.parameters"


def lipsum(**settings):
    return {"trial.method": {"name": "lipsum_ft", **settings}}


def compared(*methods, **space):
    return {SPACE: {"methods": [*methods], **space}}


def search(**sections):
    return {f"search.{name}": section for name, section in sections.items()}


def batches(**searched):
    """A searched size of the batch, of which two workers get a share each."""
    sizes = {PARAMETERS: {"optim.batch_size": searched}}
    return {f"{SPACE}.name": None, "search.resources": {"workers": 2}, **sizes}


# The keys that are given, the key that the message names, and words of the message.
MISTAKES = [
    # The trial: unknown keys, types, ranges, and what its data and model do not have.
    ({"serch": {}}, "serch", "did you mean 'search'"),
    ({"trial.optim.lrr": 1}, "trial.optim.lrr", r"unknown key \(did you mean 'lr'\?\)"),
    ({"trial.method": {"name": "lipsum"}}, "trial.method.name", "did you mean 'lipsum_ft'"),
    ({"trial.method": {"name": "ft", "reg_weight": 1}}, "trial.method.reg_weight", "unknown key"),
    ({"trial.method": {"text_count": 9}}, "trial.method.name", "missing"),
    (lipsum(text_length=31) | ONLY_LR, "method.text_length", "31"),
    ({"trial.data.root": "/no/such/folder"}, "", "no such folder"),
    ({"trial.data.suite": "imagnet"}, "", "no suite is called 'imagnet'"),
    ({"trial.data.suite": {"id_domain": "a", "template": "x"}}, "trial.data.suite", "template"),
    ({"trial.data.ood_domains": ["skech"]}, "", r"did you mean 'sketch'"),
    ({"trial.data.ood_domains": ["real"]}, "trial.data", "'real' is named twice"),
    ({"trial.data.id_domain": "real/../real"}, "trial.data", "is not the name of a folder"),
    ({"trial.data.crop_area": [0.5, 0.2]}, "trial.data.crop_area", "least <= greatest"),
    ({"trial.model.name": "tiny-klip"}, "", "did you mean 'tiny-clip'"),
    ({"trial.eval.line": [True]}, "trial.eval", r"line = \[True\]: expected a num"),
    ({"trial.optim.lr": False}, "trial.optim", "lr = False: expected a number"),
    ({"trial.eval.line": "on"}, "trial.eval.line", "expected auto, off, a number above 0"),
    ({"trial.eval.line": [0.5, 1, 0.5]}, "trial.eval.line", "0.5 is named twice"),
    ({"trial.eval.line_goal": {"objectives": [["id_val/acuracy", "max"]]}}, "trial",
     r"'id_val/acuracy': is no metric of the validation splits \(did"),
    ({"search.name": "MLFLOW.DB-wal"}, "search.name", "has a file of this name"),
    ({"search.name": "journal.lock"}, "search.name", "has a file of this name"),
    # What is optimised.
    ({"search.objective.metric": "ood_val/acc"}, "search.objective.metric", ".ood_val/mean_acc."),
    ({"search.objective.metric": "id_val"}, "search.objective.metric", "did you mean .id_val/acc."),
    ({"search.objective.metric": "id_test/acc"}, "search.objective.metric", "no trial reports it"),
    ({"search.objective": [{"metric": "id_vl/acc"}]}, "search.objective.metric", "'id_val/acc'"),
    ({"search.objective.mode": "up"}, "search.objective.0.mode", "known: max, min"),
    ({"search.objective": [*BOTH, BOTH[0]]}, "search.objective", "given twice"),
    ({"search.objective.metric": "cost/seconds"}, "search.objective.mode", "more or less"),
    ({"search.objective": {"metric": "id_val/nll", "mode": "max"}}, "search.objective.mode",
     "less of id_val/nll is better"),
    ({"search.constraints": "id_val/acc >= 101"}, "search.constraints", "between 0 and 100"),
    ({"search.constraints": ["id_test/acc >= 50"]}, "search.constraints", "'id_test/acc'"),
    # The search space.
    ({SPACE: {"name": None}}, PARAMETERS, "empty"),
    ({SPACE: "lipsum_ft"}, SPACE, "lipsum_ft"),
    ({f"{SPACE}.name": "lipsum_ft"}, f"{SPACE}.name", "known: auto"),
    ({PARAMETERS: {"optim.lrr": LR}}, "optim.lrr", "did you mean 'lr'"),
    ({PARAMETERS: {"optim.lr": {**LR, "low": 2}}}, f"{PARAMETERS}.optim.lr", "low=2"),
    ({PARAMETERS: {"optim.lr": {"low": 2}}}, f"{PARAMETERS}.optim.lr", "low=2"),
    ({PARAMETERS: {"optim.lr": {**LR, "type": "fload"}}}, f"{PARAMETERS}.optim.lr", "float, int o"),
    ({PARAMETERS: {"optim.lr": {"lwo": 2}}}, f"{PARAMETERS}.optim.lr.lwo", "mean 'low'"),
    ({PARAMETERS: {"optim.lr": {"choices": [1.0]}}}, f"{PARAMETERS}.optim.lr", "'choices'"),
    ({PARAMETERS: {"method.reg_wight": {"low": 1}}}, f"{PARAMETERS}.method.reg_wight",
     "needs a `type` .*did you mean 'method.reg_weight'"),
    (lipsum() | {"trial.method": {"name": "ft"},
      PARAMETERS: {"method.text_length": {"high": 9}, "method.reg_weight": {"low": 1}}},
     f"{PARAMETERS}.method.", r"another method: remove method\.\w+, method\.\w+\)$"),
    (lipsum() | {"trial.method": {"name": "ft"}, PARAMETERS: {"method.reg_weight": LR}},
     f"{PARAMETERS}.method.reg_weight", "unknown key .of another method: remove this parameter"),
    ({PARAMETERS: {"method.text_length": {"high": 31}}}, f"{PARAMETERS}.method.text_length.high",
     "at most 30"),
    ({PARAMETERS: {"steps": {"type": "int", "low": 2, "high": 6}}}, f"{PARAMETERS}.steps",
     "cannot be searched"),
    ({PARAMETERS: {"method.name": {"type": "categorical", "choices": ["ft"]}}}, PARAMETERS,
     r"write `search.space.methods: \["),
    ({f"{SPACE}.initial_points": [{"optim.lr": 1e-5}]}, f"{SPACE}.initial_points",
     "needs method.reg_weight"),
    # Several methods.
    (compared("ft", "lipsumft"), f"{SPACE}.methods", r"did you mean 'lipsum_ft'"),
    (compared("ft", "ft"), f"{SPACE}.methods", "given twice"),
    (compared("ft", by_method={"lipsumft": {}}), f"{SPACE}.by_method", "'lipsum_ft'"),
    (compared("ft", by_method={"ft": {"parameters": {"optim.lr": {"low": 1}}}}),
     f"{SPACE}.by_method.ft.parameters.optim.lr", "low=1.0"),
    (compared("ft", by_method={"ft": {"parameters": {"method.reg_weight": LR}}}),
     f"{SPACE}.by_method.ft.parameters.method.reg_weight", "unknown key"),
    (compared("ft", initial_points=[{"method.name": "kd"}]), f"{SPACE}.initial_points", "none of"),
    (compared("ft", "kd") | {"search.budget.trials": 1}, "search.budget.trials", "fewer than"),
    # The prior.
    ({f"{PRIOR}.center": {"optim.lr": 1}}, f"{PRIOR}.center.optim.lr", "outside 1e-06 .. 0.0001"),
    ({f"{PRIOR}.center": {"optim.lr": [1]}}, f"{PRIOR}.center.optim.lr", "float"),
    ({f"{PRIOR}.center": {"optim.lrr": 1}}, f"{PRIOR}.center.optim.lrr", "did you mean 'optim.lr'"),
    (compared("ft", by_method={"ft": {"center": {"method.reg_weight": 3}}}),
     f"{SPACE}.by_method.ft.center.method.reg_weight", "is not searched"),
    # Budgets, resources and the rest.
    ({"search.budget.gpu_hours": 2}, "search.budget.gpu_hours", r"no GPU .*search\.budget\.hours"),
    (search(objective=BOTH, scheduler={"name": "asha"}), "search.scheduler.name", "several obj"),
    (search(resources={"workers": 3}), "trial.optim.batch_size", r"evenly \(255 or 258\)"),
    (batches(type="int", low=32, high=256), f"{PARAMETERS}.optim.batch_size",
     r"= '32 to 256': 2 workers .* \(search multiples of 2: by `choices`, or by `low`"),
    (batches(type="int", low=33, high=257, step=2), f"{PARAMETERS}.optim.batch_size", "evenly"),
    (batches(type="categorical", choices=[16, 33, 64]), f"{PARAMETERS}.optim.batch_size", "evenly"),
    (search(resources={"workers": 2}) | compared("kd", by_method={"kd": {
        "parameters": {"optim.batch_size": {"type": "int", "low": 1, "high": 9}}}}),
     f"{SPACE}.by_method.kd.parameters.optim.batch_size", "multiples of 2"),
    ({"trial.method": {"name": "flyp"}, f"{SPACE}.name": None, PARAMETERS: {
        "optim.batch_size": {"type": "int", "low": 16, "high": 64}}},
     f"{PARAMETERS}.optim.batch_size.high", r"= 64: of 48 .* flyp would .*write 48 or less"),
    ({"search.checkpoints.storage": "here"}, "search.checkpoints.storage", "absolute path"),
    (search(scheduler={"name": "asha", "grace_steps": 7}), "search.scheduler.grace_steps",
     "more than trial.steps = 6 .*null"),
    ({"search.sampler.name": "tpf"}, "search.sampler.name", "did you mean 'tpe'"),
    ({"search.resources": {"workers": 2, "gpus_per_worker": 0.5}}, "search.resources", "NCCL"),
    ({"search.resources.gpus_per_worker": 2}, "gpus_per_worker", "one GPU; write workers: 2"),
    ({PARAMETERS: {"weight_decay": {"low": 0, "high": 1}}}, PARAMETERS, "too: optim.weight_decay"),
    ({"search.objective.metric": "accuracy"}, "search.objective.metric", "known: ood_"),
    ({"search.name": "a/b"}, "search.name", "pattern"),
]  # fmt: skip


def enter(entrance, given, good, path):
    """Give the keys as a file, as `--set` or from Python."""
    if entrance == "python":
        check_search(validate(SearchFile, nest(given, good), "arguments"))
    if entrance == "file":
        path.write_text(yaml.safe_dump(nest(given, good)))
    text = {
        k: yaml.safe_dump({"x": v}, default_flow_style=True, width=1e6) for k, v in given.items()
    }
    load_config(path, [f"{k}={v[4:-2]}" for k, v in text.items()] if entrance == "--set" else ())


CASES = [("file", *mistake) for mistake in MISTAKES]
CASES += [(entrance, *mistake) for entrance in ("--set", "python") for mistake in MISTAKES[::20]]


@pytest.mark.parametrize(("entrance", "given", "key", "words"), CASES)
def test_a_mistake_is_one_line_with_its_key(good, path, entrance, given, key, words):
    with pytest.raises(ConfigError, match=words) as caught:
        enter(entrance, given, good, path)
    assert key in str(caught.value)
    starts = {"file": f"{path}: ", "--set": ("--set", f"{path} with --set"), "python": ""}
    assert str(caught.value).startswith(starts[entrance])
    assert len(str(caught.value).splitlines()) == 1
