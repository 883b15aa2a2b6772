"""Trials that take no time, in a module of few imports: their actors start in a second."""

import json
import time
from pathlib import Path

from ray import tune

from tuning.log.messages import MESSAGE, Failed, Reported

HOLD = "hold"
"""A file of this name in the folder of runs lets trials wait after their first report."""
BREAK = "break"
"""A file of this name in the folder of runs lets trials fail, with its text as their error."""
STEPS, EVERY = 6, 2
METRICS = ("id_val/acc", "ood_val/mean_acc", "val/mean_acc", "train/loss", "cost/seconds")
NLLS = ("id_val/nll", "ood_val/mean_nll", "val/mean_nll")


def values(config, step):
    """The report of a trial: a function of its learning rate and the step."""
    lr = config["optim"]["lr"]
    value = 50.0 + step - 100 * lr
    nlls = dict.fromkeys(NLLS, 10 - value / 10)
    return {"step": step, "id_val/ece": 1000 * lr, **dict.fromkeys(METRICS, value), **nlls}


class InstantSlot(tune.Trainable):
    """Reports as a slot with workers does. A resumed trial repeats its last report."""

    folder: Path
    """Of the checkpoints of all trials."""
    runs: Path
    """Folder of the files `HOLD` and `BREAK`."""
    final_split: str | None

    def setup(self, config):
        self.reset_config(config)

    def reset_config(self, new_config):
        self.trial = json.loads(new_config["trial"])
        self.progress = self.folder / f"train-{new_config['trial_id']}" / "progress"
        self.progress.parent.mkdir(parents=True, exist_ok=True)
        self.next = int(self.progress.read_text()) if self.progress.exists() else EVERY
        return True

    def step(self):
        while self.next > EVERY and (self.runs / HOLD).exists():
            time.sleep(0.05)
        if (self.runs / BREAK).exists():
            return {"done": True, MESSAGE: Failed((self.runs / BREAK).read_text())}
        step, self.next = self.next, self.next + EVERY
        self.progress.write_text(str(step))
        report = values(self.trial, step)
        if self.final_split is not None and step >= self.trial["steps"]:
            report |= {f"id_{self.final_split}/acc": 40.0 + self.trial["seed"] % 100}
        curve = {"step": [step - 1, step], "train/loss": [0.5, report["train/loss"]]}
        is_last = step >= self.trial["steps"]
        return {**report, MESSAGE: Reported(report, curve, is_last), "done": is_last}
