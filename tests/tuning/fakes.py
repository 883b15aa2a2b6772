"""A search as it could have been, written by hand: 14 trials, plain fine-tuning, two failures."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainers.overrides import nest
from tuning.config.objectives import Constraint, Objective
from tuning.config.schema import SearchFile
from tuning.log.history import History
from tuning.log.records import TrialRecord
from tuning.results.goal import Goal
from tuning.run import Run, read_confirmed

DOMAINS = ("painting", "clipart", "infograph", "sketch")
TOTAL_STEPS = 240


@dataclass(frozen=True)
class Search:
    """A search whose trials are given later, see `run`."""

    folder: Path = Path("domainnet-vit-b32")
    objectives: tuple[Objective, ...] = (Objective(metric="val/mean_acc"),)
    constraints: tuple[Constraint, ...] = ()
    id_domain: str = "real"
    ood_domains: tuple[str, ...] = DOMAINS
    nll: Objective | None = None
    zero_shot: Mapping[str, float] = field(default_factory=lambda: report(0, 82.4, 61.0))
    spaces: Mapping = field(default_factory=dict)
    config: Mapping = field(default_factory=dict)
    """Dotted keys of the configuration."""
    history: History = field(default_factory=History)
    """Without trials."""

    @property
    def goal(self):
        return Goal(
            self.objectives, self.constraints, self.zero_shot, self.ood_domains, self.nll,
            chooses_points=bool(self.file.trial.eval.line_points),
            used_ood=self.history.used_ood,
        )  # fmt: skip

    @property
    def file(self):
        values = {
            "trial.steps": TOTAL_STEPS,
            "trial.eval.line": "off",
            "trial.data.id_domain": self.id_domain,
            "trial.data.ood_domains": list(self.ood_domains),
            "search.budget.trials": 16,
            "search.objective": [{"metric": o.metric, "mode": o.mode} for o in self.objectives],
            "search.constraints": [constraint.text for constraint in self.constraints],
        }
        file = SearchFile.model_validate(nest(values | dict(self.config)))
        vars(file)["spaces"] = dict(self.spaces)
        return file

    def run(self, records=(), **changes):
        """What its folder contains with these trials."""
        history = replace(
            self.history,
            records=tuple(records),
            zero_shot=self.zero_shot,
            run_id=self.history.run_id or self.folder.name,
        )
        confirmed = read_confirmed(self.folder)
        made = Run(self.folder, self.file, history, confirmed, **changes)
        vars(made)["goal"] = self.goal
        return made


def report(step, id_acc, ood_acc, **extra):
    offsets = dict(zip(DOMAINS, (4.0, 9.0, -14.0, 1.0), strict=True))
    metrics = {f"ood_val/{name}/acc": ood_acc + offset for name, offset in offsets.items()}
    return {
        "step": step,
        "id_val/acc": id_acc,
        "ood_val/mean_acc": ood_acc,
        "val/mean_acc": (id_acc + ood_acc) / 2,
        "id_val/nll": 10 - id_acc / 10,
        "val/mean_nll": 10 - (id_acc + ood_acc) / 20,
        "train/loss": 2.5 * math.exp(-step / 150),
        "cost/seconds": 1.5 * step,
        **metrics,
        **extra,
    }


def trial(number, id_acc=85.0, ood_acc=62.0, **changes):
    """A finished trial that ends at these accuracies, with changes."""
    curve = tuple(
        report(step, 82.4 + (id_acc - 82.4) * step / 240, 61.0 + (ood_acc - 61.0) * step / 240)
        for step in range(40, TOTAL_STEPS + 1, 40)
    )
    record = TrialRecord(
        trial_id=f"trial-{number:03d}",
        number=number,
        kind="trial",
        params={"method.reg_weight": 1.0, "method.text_length": 8, "optim.lr": 1e-5},
        outcome="finished",
        curve=curve,
        started_at=1_700_000_000.0 + 400 * number,
        ended_at=1_700_000_360.0 + 400 * number,
    )
    return replace(record, **changes)


def measured(number, id_acc, ood_accs, **changes):
    """A finished trial with these accuracies at its last step, their means as reports have them."""
    mean = sum(ood_accs.values()) / len(ood_accs) if ood_accs else math.nan
    report = {
        "step": TOTAL_STEPS,
        "id_val/acc": id_acc,
        "ood_val/mean_acc": mean,
        "val/mean_acc": (id_acc + mean) / 2,
        **{f"ood_val/{domain}/acc": acc for domain, acc in ood_accs.items()},
    }
    return trial(number, **{"curve": (report,), **changes})


def reference(**changes):
    """Plain fine-tuning: better on its own domain, worse on the others."""
    fields = {"trial_id": "ft", "kind": "reference", "params": {}}
    return trial(0, 88.6, 56.8, **(fields | changes))


METHODS = {
    "ft": {},
    "kd": {"method.reg_weight": 1.2},
    "lipsum_ft": {"method.reg_weight": 0.7, "method.text_length": 8},
    "carot": {"method.orthogonality_weight": 0.2, "method.distillation_weight": 1.5},
}
"""Some of those that a search may compare, with what it varies of each but the learning rate."""


def compared_methods():
    """Two trials of each of `METHODS`, in turn; a later method or trial of it is the better."""
    records = [reference()]
    for number in range(2 * len(METHODS)):
        round_, index = divmod(number, len(METHODS))
        name, own = list(METHODS.items())[index]
        id_acc, ood_acc = 88.0 - index + 0.1 * round_, 58.0 + 2 * index + 0.1 * round_
        record = trial(
            number,
            params={"method.name": name, "optim.lr": 1e-5 * (1 + round_), **own},
            curve=(report(120, 80.0, 60.0), report(TOTAL_STEPS, id_acc, ood_acc)),
        )
        records.append(record)
    return records


def finished_search():
    """All that a search of 14 trials leaves behind."""
    rng = random.Random(0)
    records = [reference()]
    for number in range(14):
        log_weight = rng.uniform(-2, 2) if number else 0.0
        pull = 1 / (1 + math.exp(-2 * (log_weight + 0.4)))
        id_acc = 88.6 - 3.0 * pull**2 + rng.gauss(0, 0.35)
        ood_acc = 56.8 + 7.4 * pull - 2.2 * pull**4 + rng.gauss(0, 0.5)
        record = trial(
            number,
            id_acc,
            ood_acc,
            params={
                "method.reg_weight": 10**log_weight,
                "method.text_length": rng.randint(2, 24),
                "optim.lr": 10 ** rng.uniform(-5.5, -4.5),
            },
        )
        if number in (4, 7, 9, 11):
            record = replace(record, outcome="pruned", curve=record.curve[: 1 + number % 3])
        records.append(record)
    records[6] = replace(
        records[6],
        outcome="failed",
        error="OutOfMemoryError: CUDA out of memory.\n  ...",
        curve=records[6].curve[:1],
    )
    return records
