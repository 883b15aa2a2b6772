"""A confirmation in MLflow: a run for each configuration, below that of the search."""

from __future__ import annotations

from dataclasses import replace

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, MetricKey
from tuning.confirmation.results import END, FT, SPLIT, Confirmation
from tuning.views.mlflow.results import log_result
from tuning.views.page import REPORT_FILE, REPORT_FOLDER

COSTS = ("cost/seconds", "cost/gpu_seconds", "cost/cpu_seconds")


def log_confirmation(uri: str, experiment: str, found: Confirmation) -> None:
    """Write means over all seeds so far and their paired differences, and upload the report.

    MLflow shows the value of the highest step, which would stay that of an earlier call with more
    seeds.
    """
    stored = sorted({seed for _, seed in found.results if seed is not None})
    found = replace(found, seeds=tuple(stored))
    report = found.run_folder / REPORT_FOLDER / REPORT_FILE
    search = found.search
    shown = {ID_ACC, OOD_MEAN_ACC, "line/a", *COSTS}
    shown |= {o.metric for o in search.objectives} | {c.metric for c in search.constraints}
    for configuration in found.configurations:
        name, metrics = configuration.trial_id, dict[str, float]()
        seeds = [str(seed) for seed in stored if (name, seed) in found.results]
        for metric in found.means(name):
            key = MetricKey.parse(metric.removeprefix(END))
            if metric not in shown and (key is None or key.split != SPLIT):
                continue
            own = found.estimate(name, metric)
            estimates = {"vs_zero_shot": found.against_zero_shot(name, metric)}
            if name != FT:
                estimates["vs_ft"] = found.against(FT, name, metric)
            if own is not None:
                metrics |= {metric: own.mean, f"sd/{metric}": own.sd}
                metrics |= {f"{against}/{metric}": e.mean for against, e in estimates.items() if e}
        tags = {
            "kind": "confirm",
            "confirms": name,
            "labels": ", ".join(configuration.labels),
            "seeds": ", ".join(seeds),
            "looks_at_ood": str(configuration.looks_at_ood).lower(),
            "method": configuration.method or "",
        }
        if metrics:
            log_result(
                uri,
                experiment,
                found.search,
                f"confirm {name}",
                tags=tags,
                metrics=metrics,
                step=len(seeds),
                params={key: v for key, v in configuration.params.items() if key != "seed"},
                files=[report] if report.is_file() else [],
            )
