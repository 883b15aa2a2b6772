"""Confirm the choices of a search: train them again with fresh seeds, then read the test splits.

The validation accuracy that chose a trial is optimistic: it is the best of many, on the images and
with the seed that chose it. A confirmation is not: rules that use validation data alone decide
before what is trained, the seeds are new and the same for all configurations and plain fine-tuning
(so that differences are paired by seed), and each training reads the test splits once, after its
last step. Apart from `zero-shot`, which selects nothing, no other command reads the test splits.

A confirmation is a run of its own, in `confirm/` below that of the search: with a journal, from
which an interrupted one continues, but without a sampler. It ends with the model of the search, see
`tuning.confirmation.model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path

from rich.console import Console

from trainers.checkpoints.format import PREDICTIONS
from trainers.checks import check_data
from trainers.data.config import DataConfig
from trainers.data.roots import split_fingerprint
from trainers.data.store import Store, open_root, open_store, url_of
from trainers.errors import ConfigError, StorageFailed, did_you_mean, quoted, system_words
from tuning.checkpoints import KeptWeights, kept_checkpoint
from tuning.config.recorded import check_followed
from tuning.confirmation.model import ModelBuilder, needs_model
from tuning.log.environment import check_same_inputs
from tuning.log.history import History
from tuning.log.paths import CONFIG_FILE, CONFIRM_FOLDER, TRAIN_FOLDER, predictions_path
from tuning.log.records import UNTUNED, ZERO_SHOT, TrialRecord
from tuning.results.estimates import (
    REFERENCE,
    SPLIT,
    Confirmation,
    Key,
    failures_of,
    results_of,
    training_name,
)
from tuning.results.model import model_goal
from tuning.results.ranking import first_trial, ranked
from tuning.results.rules import BY_METHOD, FIRST, OBJECTIVE, PARETO, RULES, choices
from tuning.run import Run, load_run
from tuning.session import SearchOptions, Session, fixed_only, open_session
from tuning.views.completion import complete_files, complete_mlflow
from tuning.views.follower import Follower
from tuning.views.formatting import show_phase
from tuning.views.tables import results_table, write_table

FIRST_FRESH_SEED = 1000
"""Added to the seed of the search's trials."""
MOST_SEEDS = 1000


def confirm(
    folder: Path,
    *,
    top: int = 1,
    seeds: int = 5,
    rules: Sequence[str] = (),
    again: bool = False,
    address: str | None = None,
    console: Console | None = None,
) -> Confirmation:
    """Train the chosen configurations of a search with fresh seeds, then build and test a model.

    Each training and the model read the test splits once, at their ends. Results of earlier calls
    are read from the run folder instead of being measured again. At the end the report of the run
    is written again, with the results of all calls.

    Args:
        top: number of trials to confirm, best first by the search's objective.
        rules: names of `tuning.results.rules` whose choices are confirmed, and `first`, the trial
            that the search began with; by default all but the Pareto front.
        again: confirm a choice of other trials after test accuracies of earlier ones were shown.
            Other seeds of the same trials do not need it. The conclusion counts both. Also build
            the model anew, which otherwise stays as it was tested.
        address: of a Ray cluster; by default the one in `RAY_ADDRESS`, or a new local one.
        console: for the display of progress; by default the standard error.

    Raises:
        ConfigError: no trial has finished, no such rule, fewer than two seeds or more than
            `MOST_SEEDS`, a domain without a test split, data that changed since the search, or
            another choice without `again`.
        StorageFailed: results or checkpoints cannot be written.
        KeyboardInterrupt: the same call continues from the checkpoints.
    """
    console = console or Console(stderr=True)
    if not 2 <= seeds <= MOST_SEEDS:
        problem = f"must be 2, for an interval, to {MOST_SEEDS}"
        raise ConfigError(problem, key="--seeds", value=seeds)
    run = load_run(folder)
    check_followed(run.unknown, run.folder / CONFIG_FILE)
    file = run.file
    trials = chosen(run, top, rules)
    before = run.settings
    readings = before.readings if before else ()
    known = dict.fromkeys(name for reading in readings for name in reading.trials)
    others = [one.trial_id for one in trials if one.trial_id not in known]
    if known and others and not again:
        problem = f"is another choice than {', '.join(known)}, whose test accuracies are known"
        hint = "--again confirms it; report, model card and MLflow say that it came after them"
        raise ConfigError(f"{', '.join(others)} {problem}", source=run.folder, hint=hint)
    configurations = (REFERENCE, *trials)
    fresh = fresh_seeds(file.trial.seed, run.records, seeds)
    # Seed by seed, so that pairs complete early.
    wanted: dict[Key, TrialRecord] = {
        (one.trial_id, seed): one for seed in fresh for one in configurations
    }
    results = before.results if before else {}
    missing = {(ZERO_SHOT, None), *wanted} - results.keys()
    builds = needs_model(run, run.confirmed.models, again)
    if missing or builds or _left(run, results.values()):
        data = file.trial.data
        parts = [*data.trial_parts, *((domain, SPLIT) for domain in data.domains)]
        check_data(data, parts)
        check_same_inputs(run.folder, file.trial)
        if missing:
            named = [f"{one.trial_id} ({', '.join(one.labels)})" for one in trials]
            what = f"{', '.join(['zero-shot', UNTUNED, *named])}; all but zero-shot are trained on"
            show_phase(console, "Confirm", f"{what} {seeds} seeds: {len(wanted)} trainings")
        if missing and not builds and len(file.objectives) == 1:
            stays = "stays as it was tested; `confirm --again` builds it anew"
            show_phase(console, "Model", stays)
        names = [one.trial_id for one in trials]
        options = SearchOptions(address=address, console=console)
        _train_and_build(run, wanted, names, again, options)
    run = load_run(folder)  # with the results, and the search may have gone on
    found = run.settings
    assert found is not None  # at least the zero-shot model was measured
    write_table(run.folder / CONFIRM_FOLDER, "results", results_table(found.results))
    failed = {key: found.failed[key] for key in wanted if key in found.failed}
    found = replace(found, seeds=fresh, configurations=configurations, failed=failed, wanted=seeds)
    for problem in complete_files(run):  # the results are stored, and the command prints them
        console.print(f"note: {problem}", soft_wrap=True)
    show_phase(console, "MLflow", complete_mlflow(run))  # uploads the page
    return found


def chosen(run: Run, top: int = 1, rules: Sequence[str] = ()) -> tuple[TrialRecord, ...]:
    """The finished trials to confirm, each once with all the rules that chose it."""
    for rule in rules:
        if rule not in (*RULES, FIRST):
            hint = did_you_mean(rule, (*RULES, FIRST))
            raise ConfigError(f"no such rule{hint}", key="--rule", value=rule)
    if top < 1:
        raise ConfigError("must be at least 1", key="--top", value=top)
    wanted = set(rules) or {*RULES, FIRST} - {PARETO}
    if top > 1 and OBJECTIVE not in wanted:
        hint = f"add --rule {OBJECTIVE}, or leave --top out"
        raise ConfigError(f"is only for the rule {OBJECTIVE}", key="--top", value=top, hint=hint)
    records = run.records
    found: dict[str, TrialRecord] = {}

    def add(rule: str, label: str, trial: TrialRecord) -> None:
        # Plain fine-tuning is trained in any case.
        if rule in wanted and trial.outcome == "finished" and trial.trial_id != REFERENCE.trial_id:
            earlier = found.get(trial.trial_id, trial)
            found[trial.trial_id] = replace(earlier, labels=(*earlier.labels, label))

    ranking = [trial for trial in ranked(run.goal, records) if run.goal.values(trial) is not None]
    for rank, trial in enumerate(ranking[:top], 1):
        add(OBJECTIVE, f"{OBJECTIVE} #{rank}", trial)
    others = [choice for choice in choices(run.goal, records) if choice.rule != OBJECTIVE]
    for choice in others:
        for trial in choice.trials:
            # The label has the methods, or the domains unless the trial was chosen for all.
            names = [key for key, one in choice.parts.items() if one.trial_id == trial.trial_id]
            named = choice.rule == BY_METHOD or 0 < len(names) < len(choice.parts)
            add(choice.rule, f"{choice.rule}/{'+'.join(names)}" if named else choice.rule, trial)
    if (first := first_trial(records)) is not None:
        add(FIRST, FIRST, first)
    if found:
        return tuple(found.values())
    if not any(r.kind == "trial" and r.outcome == "finished" for r in records):
        raise ConfigError("no finished trial to confirm", source=run.folder)
    hint = (
        "leave_one_domain_out needs two OOD domains, ood_val and pareto need one, by_method needs "
        "two methods, and first a finished first trial that no sampler proposed"
    )
    asked = ", ".join(sorted(wanted))
    raise ConfigError("chooses no finished trial", key="--rule", value=asked, hint=hint)


def _train_and_build(
    run: Run,
    wanted: Mapping[Key, TrialRecord],
    names: Sequence[str],
    again: bool,
    options: SearchOptions,
) -> None:
    """Run the trainings that have no result yet, in the run folder of the confirmation.

    Args:
        again: build a model of all that was trained, though there is one.

    Raises:
        KeyboardInterrupt: not all have ended.
    """
    folder = run.folder / CONFIRM_FOLDER
    file = fixed_only(run.file, len(wanted))
    folder.mkdir(exist_ok=True)
    go_on = "put that right, and the same command goes on from the results so far"
    checkpoint_root = url_of(run.checkpoint_root, CONFIRM_FOLDER)
    with open_session(folder, file, options, go_on, checkpoint_root, run.name) as session:
        journal = session.journal
        history = journal.history()
        seeds = len({seed for _, seed in wanted})
        splits = same_test_splits(history, file.trial.data)
        builds = needs_model(run, history.models, again)
        number = len(run.models) + 1 if builds else 0
        journal.session_started(splits, chosen=names, seeds=seeds, model=number)
        session.zero_shot(history, SPLIT)
        was_chosen = ModelBuilder(session, run).test_chosen()
        points = trainings(history, wanted)
        wanted_names = {point.trial_id for point in points}
        earlier = [r for r in journal.history().records if r.trial_id in wanted_names]
        save = partial(keep_predictions, run.folder, session.checkpoints)
        # Weights that may become the model stay, so bounds are those of its goal.
        goal = model_goal(run) or run.goal
        limits = run.file.search.checkpoints
        weights = KeptWeights(session.checkpoints, limits, goal, save)
        if points:
            _, outcome = session.run(
                replace(journal.history(), records=tuple(earlier)),
                [Follower((), journal, weights), session.progress],
                fixed=points,
                final_split=SPLIT,
            )
            if outcome == "stopped":
                raise KeyboardInterrupt
        trained = journal.history()
        _keep_all_predictions(run.folder, session, trained.records)
        weights.update(Run(folder, file, trained))
        # A killed call with `again`, which is repeated, has chosen among the same weights.
        if needs_model(run, trained.models, again) and (points or not was_chosen):
            ModelBuilder(session, run).build()
        if not points:
            journal.session_ended("finished")


def trainings(history: History, wanted: Mapping[Key, TrialRecord]) -> list[TrialRecord]:
    """A trial for each configuration and seed without a result. One that failed gets a new name."""
    done, failures = results_of(history), failures_of(history)
    first = 1 + max((record.number for record in history.records), default=-1)
    points: list[TrialRecord] = []
    for key, one in wanted.items():
        if key not in done:
            name = training_name(key, 1 + len(failures.get(key, ())))
            params = {**one.params, "seed": key[1] or 0}
            number = first + len(points)
            points.append(TrialRecord(name, number, "trial", params, labels=one.labels))
    return points


def _left(run: Run, results: Iterable[TrialRecord]) -> bool:
    """Whether a killed call has left predictions; not if the storage cannot be reached."""
    checkpoints = open_store(url_of(run.checkpoint_root, CONFIRM_FOLDER, TRAIN_FOLDER))
    with suppress(OSError, StorageFailed):
        return any(
            kept_checkpoint(checkpoints, one.trial_id) is not None
            for one in results
            if not predictions_path(run.folder, one.trial_id).is_file()
        )
    return False


def _keep_all_predictions(
    run_folder: Path, session: Session, records: Iterable[TrialRecord]
) -> None:
    """Keep what could not be kept while trainings ran, and note what still cannot be."""
    for record in records:
        try:
            keep_predictions(run_folder, session.checkpoints, record)
        except OSError as error:
            problem = f"predictions of {record.trial_id}: {system_words(error)}"
            note = f"note: {problem}; the next call tries again"
            session.console.print(note, soft_wrap=True)


def keep_predictions(run_folder: Path, checkpoints: Store, record: TrialRecord) -> None:
    """Copy the predictions on the test splits from the last checkpoint of a finished training.

    Raises:
        OSError: they cannot be read or written.
    """
    path = predictions_path(run_folder, record.trial_id)
    if record.outcome == "finished" and not path.is_file():
        checkpoint = kept_checkpoint(checkpoints, record.trial_id)
        if checkpoint is not None:
            with open_store(path.parent).write(path.name) as file:
                file.write(checkpoint.read_bytes(PREDICTIONS))


def same_test_splits(history: History, data: DataConfig) -> dict[str, str]:
    """Fingerprints of the test splits, which are those of the results so far."""
    store = open_root(data.root)
    now = {domain: split_fingerprint(store, domain, SPLIT) for domain in data.domains}
    changed = [domain for domain in now if history.fingerprints.get(domain) != now[domain]]
    if results_of(history) and changed:
        raise ConfigError(
            f"the test split of {quoted(changed)} changed since results were measured on it",
            key="trial.data.root",
            value=data.root,
            hint=f"restore the old data, or move {CONFIRM_FOLDER}/ away to begin again",
        )
    return now


def fresh_seeds(base: int, records: Iterable[TrialRecord], number: int) -> tuple[int, ...]:
    """Seeds from base + FIRST_FRESH_SEED on that no trial of the search has used."""
    used = {record.params.get("seed") for record in records}
    fresh = (seed for seed in count(base + FIRST_FRESH_SEED) if seed not in used)
    return tuple(islice(fresh, number))
