"""Six run folders and what each shows, kept to the letter in `frozen/`.

`python -m tests.tuning.frozen_runs` writes the folders, from events alone. What they show is
written by `pytest tests/tuning/test_frozen_runs.py --rewrite-screens`.
"""

import json
import shutil
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from trainers.overrides import nest

FROZEN = Path(__file__).parent / "frozen"
BEGAN = 1_700_000_000.0
DOMAINS = ("sketch", "clipart")
LR, WEIGHT = "optim.lr", "method.reg_weight"
RANGES = {
    LR: {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    WEIGHT: {"type": "float", "low": 0.01, "high": 100.0, "log": True},
}
COMMON = {
    "version": "0.3.0",
    "trial.data.root": "images",
    "trial.data.ood_domains": list(DOMAINS),
    "trial.steps": 20,
    "trial.eval.every": 10,
    "trial.eval.line": "off",
    "trial.optim.lr": 3e-5,
    "search.budget.trials": 5,
    "search.space": {"name": None, "parameters": RANGES, "initial_points": [{LR: 1e-5, WEIGHT: 1}]},
}


class Lines:
    """Events of a journal, ten seconds apart."""

    def __init__(self, **session):
        self.events = []
        self.add("created", format=3, id="0123abcd")
        self.session(**session)

    def add(self, event, **more):
        self.events.append({"time": BEGAN + 10 * len(self.events), "event": event, **more})

    def session(self, **more):
        self.add("session", id="0123abcd", fingerprints={}, **more)

    def start(self, name, number, params, kind="trial", gpus=0.5, **more):
        given = {"kind": kind, "number": number, "params": params, "gpus": gpus}
        self.add("started", trial=name, **given, **more)

    def report(self, name, step, metrics, curve=True):
        more = {}
        if curve:
            more["train_curve"] = {
                "step": [step - 5, step],
                "train/loss": [2.0 - step / 40, 2.0 - step / 20],
                "train/lr": [1e-5, 5e-6],
                "train/images_per_s": [100.0, 101.0],
            }
        seconds = {"cost/seconds": 1.5 * step}
        self.add("report", trial=name, report={"step": step, **metrics, **seconds}, **more)

    def end(self, name, outcome="finished", error=None, **more):
        self.add("ended", trial=name, outcome=outcome, error=error, **more)

    def trial(self, number, id_acc, ood_acc, outcome="finished", **more):
        """With two reports, or one if it did not finish."""
        name = more.pop("name", f"trial-{number:03d}")
        first = {"first_point": True} if number == 0 else {}
        params = more.pop("params", {LR: 1e-5 * (number + 1), WEIGHT: 2.0 * (number + 1)})
        kind = more.pop("kind", "trial")
        self.start(name, number, params, kind, **first)
        self.report(name, 10, accuracies(id_acc - 2, ood_acc - 1))
        if outcome == "finished":
            self.report(name, 20, accuracies(id_acc, ood_acc))
        self.end(name, outcome, **more)

    def reference(self):
        self.trial(-1, 88.0, 57.0, name="ft", params={}, kind="reference")

    def written(self):
        lines = []
        for number, event in enumerate(self.events, 1):
            text = json.dumps({"line": number, **event}).encode()
            lines.append(text[:-1] + b', "crc": "%08x"}\n' % crc32(text))
        return b"".join(lines)


def accuracies(id_acc, ood_acc, split="val"):
    """Metrics of a report; the two domains are ten points apart."""
    domains = {
        f"ood_{split}/{name}/acc": ood_acc + off for name, off in zip(DOMAINS, (-5, 5), strict=True)
    }
    return {
        f"id_{split}/acc": id_acc,
        f"ood_{split}/mean_acc": ood_acc,
        f"{split}/mean_acc": (id_acc + ood_acc) / 2,
        f"id_{split}/nll": (100 - id_acc) / 20,
        f"{split}/mean_nll": (200 - id_acc - ood_acc) / 40,
        **domains,
    }


def write(name, lines, *, again=None, predicted=(), **changes):
    """A run folder; `again` is the journal of its confirmation."""
    folder = FROZEN / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    values = nest(COMMON | {"search.name": name} | dotted)
    (folder / "search.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    described = {"data": {"real/val": "0" * 16}, "val_images": {"real": 40}, "model": {}}
    (folder / "environment.json").write_text(json.dumps(described) + "\n")
    content = lines if isinstance(lines, bytes) else lines.written()
    (folder / "journal.jsonl").write_bytes(content)
    if again is not None:
        (folder / "confirm" / "predictions").mkdir(parents=True)
        (folder / "confirm" / "journal.jsonl").write_bytes(again.written())
    for index, training in enumerate(predicted):
        write_predictions(folder, training, index)


def write_predictions(folder, training, index):
    """Twenty images of each domain, of which the training has some right."""
    generator = np.random.default_rng(index)
    columns = {"domain": np.repeat(["real", *DOMAINS], 20), "label": np.ones(60, int)}
    columns["predicted"] = (generator.random(60) < 0.8).astype(int)
    columns["zero_shot"] = (np.random.default_rng(99).random(60) < 0.6).astype(int)
    path = folder / "confirm" / "predictions" / f"{training}.parquet"
    pq.write_table(pa.table(columns), path)


def with_constraints():
    """One trial misses a constraint, one failed, one was pruned, one was stopped by the user."""
    lines = Lines()
    lines.add("zero_shot", metrics=accuracies(82.0, 60.0))
    lines.reference()
    lines.trial(0, 87.0, 61.5)
    lines.trial(1, 85.0, 66.0)
    lines.trial(2, 87.5, 64.0)
    lines.trial(3, 80.0, 50.0, "pruned", reason="pruned by asha")
    lines.trial(4, 80.0, 50.0, "failed", error="OutOfMemoryError: CUDA\n  at line 7")
    lines.add("control", order={"stop": "trial-003"}, name="1.json")
    lines.add("session_ended", outcome="finished")
    bounds = ["id_val/acc >= best - 0.6", "ood_val/mean_acc >= zero_shot.ood_val/mean_acc"]
    write("constraints", lines, search__constraints=bounds)


def with_objectives():
    """A budget of hours ended it."""
    lines = Lines()
    lines.add("zero_shot", metrics=accuracies(82.0, 60.0))
    lines.reference()
    for number, accs in enumerate([(87.0, 61.0), (86.0, 63.0), (85.0, 62.0), (84.0, 66.0)]):
        lines.trial(number, *accs)
    ended = "search.budget.hours = 0.1 are used up"
    lines.trial(4, 84.0, 63.0, "stopped", reason=ended)
    lines.add("session_ended", outcome="finished", reason=ended)
    objectives = [{"metric": "id_val/acc"}, {"metric": "ood_val/mean_acc"}]
    changes = {"search__objective": objectives, "search__budget__hours": 0.1}
    write("objectives", lines, **changes)


def with_methods():
    """Two methods; plain fine-tuning is better than all."""
    lines = Lines()
    lines.add("zero_shot", metrics=accuracies(82.0, 60.0))
    lines.trial(-1, 89.0, 70.0, name="ft", params={}, kind="reference")
    own = {"kd": {WEIGHT: 1.5}, "ft": {}}
    accs = [(87.0, 61.0), (88.0, 63.0), (86.5, 60.0), (87.5, 62.5), (88.5, 64.0)]
    for number, (id_acc, ood_acc) in enumerate(accs):
        method = [*own][number % 2]
        params = {"method.name": method, LR: 1e-5 * (number + 1), **own[method]}
        lines.trial(number, id_acc, ood_acc, params=params)
    lines.add("session_ended", outcome="finished")
    write("methods", lines, search__space={"methods": ["kd", "ft"]})


def damaged():
    """Two lines are damaged, one is missing and one is there twice."""
    lines = Lines()
    lines.add("zero_shot", metrics=accuracies(82.0, 60.0))
    lines.reference()
    for number in range(4):
        lines.trial(number, 85.0 + number, 61.0 - number / 2)
    whole = lines.written().splitlines(keepends=True)
    whole[5] = whole[5].replace(b"step", b"stop")
    whole[10] = whole[10][:-20] + b"\n"
    content = [*whole[:14], *whole[15:], whole[-1]]
    write("damaged", b"".join(content))


def half_confirmed():
    """Two of three seeds are trained, one training failed, and a model was tested twice."""
    lines = Lines()
    lines.add("zero_shot", metrics=accuracies(82.0, 60.0))
    lines.reference()
    for number, accs in enumerate([(86.0, 61.0), (86.5, 64.0), (87.0, 63.0)]):
        lines.trial(number, *accs)
    lines.add("session_ended", outcome="finished")
    again = Lines(chosen=["trial-001", "trial-000"], seeds=3)
    again.add("zero_shot", metrics=accuracies(81.0, 59.0, "test"))
    names = []
    number = 0
    for seed in (1000, 1001):
        for trial_id, id_acc, ood_acc in (
            ("ft", 87.0, 56.0),
            ("trial-001", 86.0, 62.5),
            ("trial-000", 86.5, 60.0),
        ):
            name = f"{trial_id}-seed-{seed}"
            off = 0.3 * (seed - 1000)
            base = {"method.name": "ft"} if trial_id == "ft" else {LR: 2e-5, WEIGHT: 4.0}
            labels = {"trial-001": ["objective #1"], "trial-000": ["first"]}.get(trial_id, [])
            again.start(name, number, {**base, "seed": seed}, labels=labels)
            number += 1
            if name == "trial-000-seed-1001":
                again.end(name, "failed", "RuntimeError: lost\n  at line 9")
                continue
            tested = accuracies(id_acc - 1 + off, ood_acc - 1, "test")
            again.report(name, 20, accuracies(id_acc + off, ood_acc - off) | tested)
            again.end(name)
            names.append(name)
    training = {"name": "trial-001", "method": "lipsum_ft", "seed": 0, "params": {LR: 2e-5}}
    fresh = {"name": "ft-seed-1000", "method": "ft", "seed": 1000, "params": {}}
    for model, of in ((1, [training | {"point": None}]), (2, [training, fresh])):
        trainings = [{**one, "point": one.get("point")} for one in of]
        kind, own = ("single", "trial-001") if model == 1 else ("soup", "soup")
        again.add(
            "model_chosen",
            number=model,
            kind=kind,
            name=own,
            metrics={"val/mean_acc": 75.0 + model},
            trainings=trainings,
            finished=2,
            notes=["the weights of trial-000 are gone"],
            candidates=[[kind, own, 0.0, 75.0 + model]],
        )
        tested = accuracies(86.0 + model, 61.0 + model, "test")
        again.add("model_tested", number=model, metrics=tested)
    predicted = ["ft-seed-1000", "ft-seed-1001", *names[1:3], "model-2"]
    write("half_confirmed", lines, again=again, predicted=predicted)


def in_a_bucket():
    """Killed after a resume: one trial repeats its last report, another one begins again."""
    lines = Lines()
    lines.add("zero_shot", metrics=accuracies(82.0, 60.0))
    lines.reference()
    lines.trial(0, 86.0, 61.0)
    lines.start("trial-001", 1, {LR: 2e-5, WEIGHT: 4.0})
    lines.report("trial-001", 10, accuracies(84.0, 62.0))
    lines.start("trial-002", 2, {LR: 3e-5, WEIGHT: 6.0})
    lines.report("trial-002", 10, accuracies(83.0, 62.5))
    lines.session(objects={"sampler": "TPESampler"})
    lines.add("used_ood")
    lines.start("trial-001", 1, {LR: 2e-5, WEIGHT: 4.0}, gpus=0.0)
    lines.start("trial-001", 1, {LR: 2e-5, WEIGHT: 4.0})
    lines.report("trial-001", 10, accuracies(84.0, 62.0), curve=False)
    lines.report("trial-001", 20, accuracies(86.5, 63.0))
    lines.end("trial-001")
    lines.start("trial-002", 2, {LR: 3e-5, WEIGHT: 6.0})
    lines.report("trial-002", 5, accuracies(82.5, 62.0))
    lines.report("trial-002", 15, accuracies(84.5, 62.5))
    lines.add("alive")
    write("bucket", lines, search__checkpoints__storage="s3://mine/searches")


RUNS = {
    "constraints": with_constraints,
    "objectives": with_objectives,
    "methods": with_methods,
    "damaged": damaged,
    "half_confirmed": half_confirmed,
    "bucket": in_a_bucket,
}

if __name__ == "__main__":
    for made in RUNS.values():
        made()
