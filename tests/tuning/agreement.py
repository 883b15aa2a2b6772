"""Whether journal, Optuna study, MLflow and tables of a finished search say the same."""

import json
from collections import Counter

import optuna
import pyarrow.parquet as pq
from mlflow.tracking import MlflowClient

from tuning.algorithms.studies import STATES, TRIAL_ID
from tuning.log.paths import JOURNAL_FILE
from tuning.results.ranking import best_trial, finished_trials, pareto_front
from tuning.run import load_run
from tuning.views.dashboard import open_storage
from tuning.views.mlflow.client import default_tracking_uri
from tuning.views.mlflow.shared_view import main_metrics

STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


def disagreements(folder):
    """What journal, study, MLflow and tables of a finished search do not agree about."""
    run = load_run(folder)
    trials = {record.trial_id: record for record in run.history.records}
    found = [
        f"{record.trial_id} is {record.outcome}"
        for record in trials.values()
        if record.outcome not in STATUS
    ]
    proposed = {name for name, record in trials.items() if record.kind == "trial"}
    expected = {f"trial-{n:03d}" for n in range(run.file.search.budget.trials)}
    if proposed != expected or trials.keys() - proposed != set(run.file.search.references):
        found.append(f"the trials are {sorted(trials)}")
    every = run.file.trial.eval.every
    for name, record in trials.items():
        trained = [point["step"] for point in train_points(folder, name)]
        if trained != sorted(set(trained)) or trained[-1:] != [record.step] * bool(record.curve):
            found.append(f"{name} has a training curve at {trained}")
        steps = [int(point["step"]) for point in record.curve]
        if steps != list(range(every, record.step + 1, every)):
            found.append(f"{name} has reports at {steps}")
    return [
        *found,
        *_study(run, trials),
        *_mlflow(run, trials),
        *_tables(run, trials),
        *_repeated_steps(run),
    ]


def _study(run, trials):
    """The study of the dashboard against the journal; of several objectives, it has no curves."""
    study = optuna.load_study(study_name=None, storage=open_storage(run.folder, None))
    metrics = [objective.metric for objective in run.goal.objectives]
    has = {
        trial.user_attrs[TRIAL_ID]: (
            trial.state.name,
            trial.params,
            trial.values,
            trial.intermediate_values,
        )
        for trial in study.trials
    }
    wanted = {
        name: (
            STATES[record.outcome].name,
            record.params,
            [record.metrics[m] for m in metrics] if record.outcome == "finished" else None,
            {int(p["step"]): p[m] for p in record.curve for m in metrics if len(metrics) == 1},
        )
        for name, record in trials.items()
        if record.kind == "trial"
    }
    found = [] if has == wanted else [f"Optuna has {has}, the journal {wanted}"]
    best = best_trial(run.goal, finished_trials(trials.values()))
    if best and not run.goal.constraints:
        of_optuna = {trial.user_attrs[TRIAL_ID] for trial in study.best_trials}
        front = pareto_front(run.goal, trials.values()) if len(metrics) > 1 else [best]
        if best.trial_id not in of_optuna or {r.trial_id for r in front} - of_optuna:
            found.append(f"Optuna's best are {of_optuna}, not {[r.trial_id for r in front]}")
    return found


def _mlflow(run, trials):
    client = MlflowClient(default_tracking_uri(run.folder.parent))
    experiments = [e.experiment_id for e in client.search_experiments() if e.name == "lipsum-tune"]
    runs = client.search_runs(experiments, max_results=1000)
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if r not in parents and r.data.tags["kind"] != "zero_shot"]
    found = [] if len(parents) == 1 else [f"MLflow has {len(parents)} parent runs"]
    has = Counter((r.data.tags["trial_id"], r.info.status) for r in children)
    wanted = Counter((name, STATUS.get(record.outcome, "")) for name, record in trials.items())
    if has != wanted:
        found.append(f"MLflow has {has}, the journal {wanted}")
    for child in children:
        trial = trials[child.data.tags["trial_id"]]
        # Of one step, the latter count.
        curve = (*trial.curve, *train_points(run.folder, trial.trial_id))
        shown = {key for point in curve for key in point} & {*main_metrics(run)}
        for name in sorted(shown):
            # In the order of time: of a step that was repeated, the later value counts.
            history = client.get_metric_history(child.info.run_id, name)
            logged = {metric.step: metric.value for metric in history}
            reported = {int(point["step"]): point[name] for point in curve if name in point}
            if logged != reported:
                found.append(f"MLflow has {name} {logged} of {child.info.run_name}, not {reported}")
    return found


def _tables(run, trials):
    table = pq.read_table(run.folder / "trials.parquet").to_pylist()
    curves = pq.read_table(run.folder / "curves.parquet").to_pylist()
    rows = Counter((row["trial_id"], row["outcome"]) for row in table if row["kind"] != "zero_shot")
    found = []
    wanted_rows = Counter((name, record.outcome) for name, record in trials.items())
    if rows != wanted_rows:
        found.append(f"trials.parquet has {rows}, the journal {wanted_rows}")
    has = {
        (row["trial_id"], row["step"]): {k: v for k, v in row.items() if "/" in k and v is not None}
        for row in curves
        if row["kind"] != "zero_shot"
    }
    wanted = {
        (name, int(point["step"])): {k: v for k, v in point.items() if k != "step"}
        for name, record in trials.items()
        for point in record.curve
    }
    for key in sorted(has.keys() | wanted.keys()):
        if has.get(key) != wanted.get(key):
            found.append(f"curves.parquet has {has.get(key)} of {key}, not {wanted.get(key)}")
    return found


def _repeated_steps(run):
    """Attempts that began more than one evaluation before what the trial had reported."""
    found, last, resumed = [], dict[str, int](), dict[str, bool]()
    for event in journal_events(run.folder):
        if event["event"] == "started":
            resumed[event["trial"]] = event["trial"] in last
        elif event["event"] == "report":
            name, step = event["trial"], int(event["report"]["step"])
            if resumed.get(name) and step < last[name]:
                found.append(f"{name} was at step {last[name]} and reported {step} again")
            resumed[name], last[name] = False, step
    return found


def journal_events(folder):
    """The whole lines of a journal; none before it is created."""
    path = folder / JOURNAL_FILE
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def train_points(folder, trial_id):
    """The training curve of a trial point by point, each with its `step`."""
    parts = []
    for event in journal_events(folder):
        if event["event"] == "report" and event["trial"] == trial_id:
            parts = [part for part in parts if part["step"][-1] < event["report"]["step"]]
            parts += [event["train_curve"]] if "train_curve" in event else []
    for part in parts:
        for values in zip(*part.values(), strict=True):
            yield dict(zip(part, values, strict=True))
