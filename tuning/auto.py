"""From a folder of images to a confirmed, exported model: `lipsum-tune auto`.

Each step is that of a command, whose line is printed. A step that is done is recognised by what it
left (prepared domains, the configuration, the run, results of `confirm`, the exported folder), so
the same call goes on after an interruption.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from rich.console import Console

from trainers.config import with_overrides
from trainers.data.prepare import Options, prepare
from trainers.data.roots import without_split
from trainers.data.sources import Source
from trainers.data.store import open_store
from trainers.errors import ConfigError, quoted
from trainers.evaluation.metrics import ID_ACC
from trainers.overrides import flat, nest
from trainers.process_state import restored_state
from trainers.yaml_text import read_yaml
from tuning.config.loading import find_config
from tuning.config.schema import SearchFile
from tuning.config.validation import check_settings, first_rate, load_config, rate_line
from tuning.confirmation.confirm import confirm
from tuning.execution.ray_session import runs_folder
from tuning.planning.plan import CONFIRM_SEEDS, Plan, plan_search
from tuning.planning.plan import render as render_plan
from tuning.preparation.prepare import render, sources_of
from tuning.resume import earlier_run, search_or_resume
from tuning.runs.conclusion import conclusion
from tuning.runs.confirmation import FT
from tuning.runs.run_folder import load_run
from tuning.views.confirmation_table import confirmation_table
from tuning.views.formatting import format_hours, show_phase
from tuning.views.leaderboard import SHOWN
from tuning.views.leaderboard import report as leaderboard
from tuning.views.page import REPORT_FILE, REPORT_FOLDER
from tuning.views.result_table import fit_table
from tuning.weights.export import ABOUT, export_weights
from tuning.zero_shot.evaluate import Row, guesses, measure, zero_shot_table

EPOCHS: Final = 10
"""Of a trial on one's own images, as in Lipsum-FT's experiments on DomainNet."""
MOST_STEPS, LEAST_STEPS = 5000, 60
MOST_TRIALS, LEAST_TRIALS = 40, 6
EVALUATIONS: Final = 3
"""Of a trial."""
BENCHMARK_HOURS: Final = 0.2
"""For the embedded benchmark."""
RULE: Final = "objective"
PREPARED: Final = "prepared"
"""Folder of prepared images, in the current one. Not `data`, where the images themselves may be."""


def auto(
    source: str | None = None,
    *,
    id_domain: str | None = None,
    ood: Sequence[str] = (),
    model: str | None = None,
    hours: float | None = None,
    gpu_hours: float | None = None,
    name: str | None = None,
    again: bool = False,
    address: str | None = None,
    console: Console | None = None,
) -> Path:
    """Prepare images, search for as many trials as fit the hours, confirm and export what won.

    The configuration is `NAME.yaml` beside the run folder, the images are in `prepared/NAME`.

    Args:
        source: a folder of images of the layout `folders`; by default the embedded benchmark.
        id_domain: the domain to fine-tune on.
        ood: the other domains that are evaluated; by default all.
        model: a ready configuration or a YAML file to extend: `vit_b32`, or for the embedded
            benchmark `quickstart`.
        hours: of wall clock for everything from the call on.
        gpu_hours: of search and `confirm`, instead of `hours`.
        name: of the run; by default that of the folder of images, or `auto`.
        again: confirm a trial that became the best after test accuracies were known, see `confirm`.
        address: of a Ray cluster; by default the one in `RAY_ADDRESS`, or a new local one.
        console: for tables and commands; by default the standard output.

    Returns:
        The exported model, in the run folder.

    Raises:
        ConfigError: wrong arguments, before anything starts. Later: bad images, or fewer hours than
            a few short trials need.
        KeyboardInterrupt: the same call goes on.
    """
    began, console = time.monotonic(), console or Console()
    if source is None and hours is None and gpu_hours is None:
        hours = BENCHMARK_HOURS
    limit = hours if gpu_hours is None else gpu_hours
    if limit is None or (hours is not None and gpu_hours is not None):
        raise ConfigError("give one of --hours (wall clock) and --gpu-hours")
    given = None if source is None else Path(source).expanduser().absolute()
    if given is None and (id_domain or ood):
        raise ConfigError("--id and --ood need a folder of images")
    if given is not None and not given.is_dir():
        raise ConfigError("no such folder", key="DATA", value=source)
    if given is not None and Path.cwd().is_relative_to(given.resolve()):
        problem = f"`{PREPARED}` and the runs would lie among the images"
        raise ConfigError(problem, key="DATA", value=source, hint="call it from another folder")
    words = {"--id": id_domain or "", "--ood": ",".join(ood), "--model": model or ""}
    name = name or (given and re.sub(r"[^A-Za-z0-9._-]+", "-", given.name).lstrip("._-")) or "auto"
    base = model or ("vit_b32" if given else "quickstart")
    try:
        find_config(base)
    except ConfigError as error:
        raise ConfigError(error.problem, key="--model", value=base, hint=error.hint) from None
    base = str(Path(base).absolute()) if Path(base).is_file() else base
    # One of the two limits is none.
    limits = {"search.budget.hours": hours, "search.budget.gpu_hours": gpu_hours}
    values: dict[str, Any] = {"search.name": name, **limits}
    sources = dict[str, Source]()
    if given is not None:
        sources = sources_of(Source(path=str(given)), id_domain=id_domain, ood=ood)
        first, *others = sources
        if id_domain is None and others:
            raise ConfigError(f"choose one of {quoted(sources)}", key="--id")
        values["trial.data.root"] = str(Path(PREPARED, name).absolute())
        values["trial.steps"] = MOST_STEPS  # until the images are counted
        values["trial.data.suite"] = {"id_domain": first, "ood_domains": others}
        if not others:
            values["search.objective"] = {"metric": ID_ACC}
    file, address = _load(base, values), address or os.environ.get("RAY_ADDRESS") or None
    resources = file.search.resources
    if address is None and resources.gpus_per_worker and not torch.cuda.is_available():
        if gpu_hours is not None:
            hint = "give --hours, or --address of a cluster"
            raise ConfigError("this machine has no GPU", key="--gpu-hours", hint=hint)
        cpus = min(resources.cpus_per_worker, os.cpu_count() or 1)
        own = {"workers": 1, "cpus_per_worker": cpus, "gpus_per_worker": 0}
        values |= {f"search.resources.{key}": value for key, value in own.items()}
    check_settings(_load(base, values))
    config = runs_folder(file.search.storage) / f"{name}.yaml"
    unit = "hours" if gpu_hours is None else "gpu_hours"
    words |= {"--name": name, f"--{unit.replace('_', '-')}": f"{limit:g}"}
    command = _command("auto", *([given] if given else []), *_options(words))
    state = State(
        command, name, given, sources, base, values, unit, limit, again, address, console,
        config, began,
    )  # fmt: skip
    with _alone(state):
        state = replace(state, is_planned=_is_planned(config, command))
        for step in (_prepare, _zero_shot, _plan, _search, _confirm, _export):
            state = step(state)
    show_phase(console, "Report", str(state.run / REPORT_FOLDER / REPORT_FILE))
    show_phase(console, "Model", str(state.model_folder))
    return state.model_folder


@dataclass(frozen=True)
class State:
    """What a call was asked for, checked, and what its steps have found so far."""

    command: str
    """The first line of the configuration: only the same command goes on."""
    name: str
    images: Path | None
    """Folder of the user's images; None for the embedded benchmark."""
    sources: Mapping[str, Source]
    """Of each domain, the ID domain first; empty for the embedded benchmark."""
    base: str
    """The configuration that is extended."""
    values: Mapping[str, Any]
    """What is changed in it, by dotted keys."""
    unit: str
    """Of the limit: `hours` or `gpu_hours`."""
    limit: float
    again: bool
    """Whether `confirm` may confirm another trial than before."""
    address: str | None
    """Of a Ray cluster; None for a local one."""
    console: Console
    config: Path
    began: float
    is_planned: bool = False
    """Whether an earlier call has written a configuration with its trials."""
    rows: Sequence[Row] = ()
    """Of the zero-shot evaluation."""
    image_s: float = 0.0
    """Seconds of this evaluation for an image."""
    run: Path = Path()
    """The run folder, once the search has ended."""
    model_folder: Path = Path()
    """The exported model, at the end."""

    @property
    def option(self) -> str:
        """That gives the limit."""
        return f"--{self.unit.replace('_', '-')}"

    @property
    def prepared(self) -> Path:
        """Folder of the prepared images."""
        return Path(PREPARED, self.name)

    @property
    def hours_spent(self) -> float:
        """Of wall clock since the call."""
        return (time.monotonic() - self.began) / 3600

    def announce(self, step: str, *words: object) -> None:
        """Print a step with the command that does it alone."""
        here = f"{Path.cwd()}{os.sep}"
        show_phase(self.console, step, _command(*(str(w).removeprefix(here) for w in words)))


@contextmanager
def _alone(state: State) -> Iterator[None]:
    """Keep other calls of this name out.

    Raises:
        ConfigError: another one runs.
    """
    state.config.parent.mkdir(parents=True, exist_ok=True)
    with state.config.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = "another `lipsum-tune auto` of this name runs"
            hint = "wait for its end, or give another name"
            raise ConfigError(problem, key="--name", value=state.name, hint=hint) from None
        yield


def _prepare(state: State) -> State:
    if state.images is None:
        return state
    first, *others = state.sources
    words = _options({"--id": first, "--ood": ",".join(others)})
    state.announce("1 Prepare", "prepare", "folders", state.images, state.prepared, *words)
    target, bar = open_store(state.prepared.absolute()), Console(stderr=True)
    prepared = prepare(state.sources, target, Options(), id_domain=first, console=bar)
    state.console.print(render(prepared), soft_wrap=True)
    if lacking := without_split(str(state.prepared), state.sources, "test"):
        problem = f"no test split for `confirm`: {quoted(lacking)}"
        raise ConfigError(problem, source=state.prepared)
    images = prepared.domains[0].images.get("train", 0)
    chosen = sizes(_load(state.base, state.values), images)
    return replace(state, values={**state.values, **chosen})


def _zero_shot(state: State) -> State:
    if state.is_planned:
        return state
    trial = _load(state.base, state.values).trial
    _write(state)
    state.announce("2 Zero-shot", "zero-shot", state.config)
    with restored_state():  # frees the memory of the GPU, which trials need
        starts: list[float] = []
        rows = measure(trial, "val", began=lambda _: starts.append(time.monotonic()))
        image_s = (time.monotonic() - starts[-1]) / rows[-1].images  # of the last domain
    title, id_domain = f"{trial.model.name}, zero-shot, val splits", trial.data.id_domain
    state.console.print(zero_shot_table(rows, title=title, id_domain=id_domain))
    for line in guesses(rows):
        state.console.print(f"! {line}", style="yellow", markup=False, soft_wrap=True)
    return replace(state, rows=rows, image_s=image_s)


def _plan(state: State) -> State:
    """Measure what a trial costs, or take it from an earlier call; then choose how many fit."""
    if state.is_planned:
        return state
    state.announce("3 Plan", "plan", state.config)
    file = load_config(state.config, [f"search.budget.trials={MOST_TRIALS}"])
    kept = state.config.with_suffix(".plan.json")
    about = [
        file.trial.model_dump(mode="json"),
        file.search.resources.model_dump(mode="json"),
        [row.images for row in state.rows],
        [state.address, platform.node(), os.cpu_count()],
    ]
    earlier = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    if earlier.get("about") == about:
        show_phase(state.console, "Measured", f"by an earlier call, kept in {kept.name}")
        plan = Plan(file, **earlier["measured"])
    else:
        if state.address is None and not file.search.resources.gpus_per_worker:
            _check_hours(file, state.limit - state.hours_spent, state.image_s, state.rows)
        plan = plan_search(file, address=state.address)
        measured = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name != "file"}
        with open_store(kept.parent).write(kept.name) as stream:
            stream.write(json.dumps({"about": about, "measured": measured}).encode())
    plan = fitting(plan, state.limit, state.hours_spent if state.unit == "hours" else 0.0)
    state.console.print(render_plan(plan))
    trial, budget = plan.file.trial, plan.file.search.budget
    if trial.steps < file.trial.steps:
        fewer = f"{trial.steps} in place of {file.trial.steps}, to fit {state.option}"
        show_phase(state.console, "Steps", fewer)
    chosen: dict[str, Any] = {"trial.steps": trial.steps, "trial.eval.every": trial.eval.every}
    chosen |= {f"search.budget.{key}": getattr(budget, key) for key in ("trials", state.unit)}
    by_rule = not _gives_rate(state.base)
    if by_rule:
        chosen["trial.optim.lr"] = first_rate(trial)
    state = replace(state, values={**state.values, **chosen})
    _write(state)
    if line := rate_line(load_config(state.config, check=False), by_rule=by_rule):
        show_phase(state.console, "Rate", line)
    return state


def _search(state: State) -> State:
    file = load_config(state.config)
    state.announce("4 Search", "search", state.config, "--resume")
    run = earlier_run(file, state.config.parent)
    if run is None or load_run(run).history.outcome != "finished":
        result = search_or_resume(file, address=state.address)
        run = result.folder
        if result.outcome == "stopped" and result.ended_by is None:
            raise KeyboardInterrupt
        if result.outcome == "stopped" or result.best is None:
            hint = "the same command goes on"
            if result.outcome == "finished":
                more = _command("resume", run.name, state.option, f"+{state.limit:g}")
                hint = f"`{more}` and then the same command go on"
            raise ConfigError(result.ended_by or "no trial has finished", source=run, hint=hint)
        if result.ended_by:
            show_phase(state.console, "Ended by", result.ended_by)
    loaded = load_run(run)
    search, records = loaded.search, loaded.history.records
    width, seconds = state.console.width, loaded.history.seconds
    table = leaderboard(search, records, width, SHOWN, seconds=seconds)
    state.console.print(table, highlight=False)
    return replace(state, run=run)


def _confirm(state: State) -> State:
    run = state.run
    words = "--rule", RULE, "--seeds", CONFIRM_SEEDS, *(["--again"] if state.again else ())
    state.announce("5 Confirm", "confirm", run.name, *words)
    found = confirm(
        run, seeds=CONFIRM_SEEDS, rules=[RULE], again=state.again, address=state.address
    )
    state.console.print(fit_table(confirmation_table(found), state.console.width, run.name))
    loaded = load_run(run)
    seeds = conclusion(loaded.search, loaded.history.records).seeds
    if found.failed and not (seeds and found.values(FT, loaded.search.objectives[0].metric)):
        problem = f"{len(found.failed)} trainings of `confirm` failed"
        raise ConfigError(problem, source=run, hint="the same command tries again")
    return state


def _export(state: State) -> State:
    run, loaded = state.run, load_run(state.run)
    found = conclusion(loaded.search, loaded.history.records)
    assert found.won is not None  # otherwise there was nothing to confirm
    model_folder = run / f"model-{found.won.trial_id}"
    state.announce("6 Export", "export", run.name, "--output", model_folder)
    about = model_folder / ABOUT
    if about.is_file() and json.loads(about.read_text())["chosen"] != " ".join(found.lines):
        shutil.rmtree(model_folder)  # `confirm` has read the test splits again since
    if not model_folder.is_dir():
        export_weights(run, model_folder)
    show_phase(state.console, "Result", *found.lines)
    return replace(state, model_folder=model_folder)


def sizes(file: SearchFile, images: int) -> dict[str, int]:
    """Batch size, steps and interval of evaluations for so many training images."""
    # A batch is at most a quarter of the images, as a power of two.
    most = 2 ** math.floor(math.log2(max(32, images) / 4))
    batch_size = min(file.trial.optim.batch_size, most)
    steps = min(MOST_STEPS, max(LEAST_STEPS, EPOCHS * images // batch_size))
    chosen = {"optim.batch_size": batch_size, **_steps(steps)}
    return {f"trial.{key}": value for key, value in chosen.items()}


def _check_hours(file: SearchFile, left: float, image_s: float, rows: Sequence[Row]) -> None:
    """Refuse hours that are too few for the shortest search on the CPUs of this machine.

    Args:
        left: hours.
        image_s: seconds that the zero-shot evaluation, on all cores, takes for an image.
        rows: of the zero-shot evaluation.

    Raises:
        ConfigError: they are below a lower bound.
    """
    resources, steps = file.search.resources, _steps(file.trial.steps // 4)["steps"]
    at_once = max(1, int((os.cpu_count() or 1) // (resources.workers * resources.cpus_per_worker)))
    trainings = LEAST_TRIALS + len(file.search.references), 2 * CONFIRM_SEEDS
    rounds = sum(math.ceil(number / at_once) for number in trainings)
    # A trial has some of the cores, and its backward pass takes at least as long as the forward.
    images = 2 * steps * file.trial.optim.batch_size + sum(row.images for row in rows)
    least = rounds * images * image_s / 3600
    if left < least:
        problem = f"{LEAST_TRIALS} trials of {steps} steps and confirm need more than"
        problem += f" {format_hours(least)} hours; {format_hours(max(0.0, left))} are left"
        raise ConfigError(problem, key="--hours", hint="give more hours")


def fitting(plan: Plan, limit: float, spent: float = 0.0) -> Plan:
    """The plan with as many trials as fit beside `confirm`, of half or a quarter of the steps if
    too few would. The budget of its search leaves the time of `confirm`.

    Args:
        limit: hours of wall clock, or GPU-hours if the budget has these.
        spent: of them, before the search.

    Raises:
        ConfigError: not even so fit enough trials.
    """
    file, steps, needs = plan.file, plan.file.trial.steps, math.inf
    unit, field, what = "hours", "hours", "hours"
    if file.search.budget.gpu_hours is not None:
        unit, field, what = "gpu_hours", "device_hours", "GPU-hours"
    references = len(file.search.references)
    for parts in (1, 2, 4):
        changes = {} if parts == 1 else _steps(steps // parts)
        trial = with_overrides(file.trial, changes, "auto")
        shorter = replace(plan, file=file.model_copy(update={"trial": trial}))
        left = limit - spent - getattr(shorter.confirm_price, field)
        prices = {
            number: getattr(shorter.price("", number + references), field)
            for number in range(LEAST_TRIALS, MOST_TRIALS + 1)
        }
        if fits := [number for number, price in prices.items() if price <= left]:
            update = {"trials": fits[-1], unit: float(f"{left:.3g}")}
            budget = file.search.budget.model_copy(update=update)
            search = file.search.model_copy(update={"budget": budget})
            return replace(shorter, file=shorter.file.model_copy(update={"search": search}))
        needs = limit - left + prices[LEAST_TRIALS]
    needed = f"{format_hours(needs)} {what}"
    problem = f"{LEAST_TRIALS} trials of {steps // 4} steps and confirm need {needed}"
    option = f"--{unit.replace('_', '-')}"
    hint = f"give {option} {format_hours(1.2 * needs)} or more"
    raise ConfigError(problem, key=option, value=limit, hint=hint)


def _steps(steps: int) -> dict[str, int]:
    every = max(1, math.ceil(steps / EVALUATIONS))
    return {"steps": EVALUATIONS * every, "eval.every": every}


def _gives_rate(base: str) -> bool:
    """Whether the user's own file gives a learning rate: a ready one's is for its own steps."""
    return Path(base).is_file() and "trial.optim.lr" in flat(read_yaml(Path(base)))


def _load(base: str, values: Mapping[str, Any]) -> SearchFile:
    return load_config(base, [f"{k}={json.dumps(v)}" for k, v in values.items()], check=False)


def _is_planned(config: Path, command: str) -> bool:
    """Whether the configuration has its trials.

    Raises:
        ConfigError: it belongs to another command.
    """
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    if text and not text.startswith("# lipsum-tune auto "):
        hint = "give another --name"
        raise ConfigError("this file would be overwritten", source=config, hint=hint)
    if not re.search(r"^ +trials:", text, re.MULTILINE):
        return False
    if (was := text.partition("\n")[0].lstrip("# ")) != command:
        problem = "this name is taken by another command"
        hint = f"give another --name, or run {was!r} to go on"
        raise ConfigError(problem, source=config, hint=hint)
    return True


def _write(state: State) -> None:
    """Write the configuration, in one piece."""
    given = {"extends": state.base, **nest(state.values)}
    text = f"# {state.command}\n{yaml.safe_dump(given, sort_keys=False, allow_unicode=True)}"
    with open_store(state.config.parent).write(state.config.name) as file:
        file.write(text.encode())


def _options(values: Mapping[str, str]) -> list[str]:
    return [word for option, value in values.items() if value for word in (option, value)]


def _command(*words: object) -> str:
    return shlex.join(["lipsum-tune", *map(str, words)])
