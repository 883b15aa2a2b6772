"""Every method once, with settings under which the embedded model learns in a dozen steps."""

from trainers.config import with_overrides

FIELDS = {
    "ema": {"ema_decay": 0.5},
    "l2_sp": {"reg_weight": 0.5},
    "lipsum_ft": {"text_count": 16},
    "lp_ft": {"probe_fraction": 0.34, "probe_lr": 1e-2},
    "tpgm": {"projection_steps": 2, "projection_lr": 0.1},
    "r_adapter": {"ema_decay": 0.5},
}
"""Where the defaults are for longer runs."""

LR = {"lora": 1e-2, "r_adapter": 3e-3}
CLOCKS = ("cost/", "train/images_per_s")


def configured(trial, name, **fields):
    """The trial with a method of that name, its `FIELDS` and others."""
    method = {"name": name, **FIELDS.get(name, {}), **fields}
    lr = LR.get(name, trial.optim.lr)
    return with_overrides(trial, {"method": method, "optim.lr": lr}, "test")


def untimed(report):
    """The report's metrics but those that a clock made."""
    return {k: v for k, v in report.metrics.items() if not k.startswith(CLOCKS)}
