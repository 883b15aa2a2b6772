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
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch
import yaml
from rich.console import Console

from trainers.config import TrialConfig, with_overrides
from trainers.data.prepare import Options, prepare
from trainers.data.roots import without_split
from trainers.data.sources import Source
from trainers.data.store import open_store
from trainers.errors import ConfigError, MayContinue, quoted
from trainers.evaluation.metrics import ID_ACC
from trainers.folders import private_lock
from trainers.models.clip import check_model, skeleton
from trainers.overrides import flat, nest
from trainers.process_state import restored_state
from trainers.yaml_text import read_yaml
from tuning.config.loading import files_of, is_ready
from tuning.config.schema import SearchFile
from tuning.config.validation import check_settings, first_rate, line_remark, load_config, rate_line
from tuning.confirmation.confirm import confirm
from tuning.execution.ray_session import runs_folder
from tuning.log.paths import JOURNAL_FILE, page_path
from tuning.log.resume import earlier_run
from tuning.planning.plan import CONFIRM_SEEDS, Plan, plan_search
from tuning.planning.plan import render as render_plan
from tuning.prepare import render, sources_of
from tuning.results.budget import used_hours
from tuning.results.estimates import FT
from tuning.run import load_run
from tuning.search import search_or_resume
from tuning.views import leaderboard
from tuning.views.formatting import format_hours, show_phase
from tuning.weights.export import ABOUT, export_weights
from tuning.weights.sources import why_chosen
from tuning.zero_shot import Row, measure, zero_shot_table

EPOCHS: Final = 10
"""Of a trial on one's own images, as in Lipsum-FT's experiments on DomainNet."""
MOST_STEPS, LEAST_STEPS = 5000, 60
MOST_TRIALS, LEAST_TRIALS = 40, 6
EVALUATIONS: Final = 3
"""Of a trial."""
BENCHMARK_HOURS: Final = 0.2
"""For the built-in benchmark."""
RULE: Final = "objective"
PREPARED: Final = "prepared"
"""Folder of prepared images, in the current one. Not `data`, where the images themselves may be."""
_FIRST: Final = "# "
"""Before the command, in the first line of its configuration."""
_TRIALS: Final = "search.budget.trials"
"""The key that the configuration gets last."""


@dataclass
class Asked:
    """What a call asks for."""

    images: Path | None
    """A folder; None for the built-in benchmark."""
    domains: dict[str, Source]
    """Of that folder, the ID domain first."""
    name: str
    base: str
    """The configuration that is extended."""
    own: dict[str, Any]
    """What the user's own files give there, by dotted keys."""
    values: dict[str, Any]
    """What is changed there, by dotted keys. The steps add theirs."""
    unit: Literal["hours", "gpu_hours"]
    limit: float
    """In that unit, for everything."""
    address: str | None
    """Of a Ray cluster."""
    command: str
    """With these options again."""
    console: Console
    began: float = field(default_factory=time.monotonic)

    @property
    def option(self) -> str:
        """That of the limit."""
        return f"--{self.unit.replace('_', '-')}"

    @property
    def prepared(self) -> Path:
        """The folder of prepared images."""
        return Path(PREPARED, self.name).absolute()

    @property
    def config(self) -> Path:
        """The configuration of the search."""
        return runs_folder(self.file.search.storage) / f"{self.name}.yaml"

    @property
    def file(self) -> SearchFile:
        """The configuration as far as it is known, not checked."""
        values = [f"{key}={json.dumps(value)}" for key, value in self.values.items()]
        return load_config(self.base, values, check=False)

    def write(self) -> None:
        """Write the configuration, in one piece."""
        given = {"extends": self.base, **nest(self.values)}
        yaml_text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
        with open_store(self.config.parent).write(self.config.name) as stream:
            stream.write(f"{_FIRST}{self.command}\n{yaml_text}".encode())

    def announce(self, step: str, *words: object) -> None:
        """Print a step with the command that does it alone."""
        here = f"{Path.cwd()}{os.sep}"
        command = _command(*(str(word).removeprefix(here) for word in words))
        show_phase(self.console, step, command)

    def spent(self) -> float:
        """Hours since the begin of this call."""
        return (time.monotonic() - self.began) / 3600


def answers(
    source: str | None = None,
    *,
    id_domain: str | None = None,
    ood: Sequence[str] = (),
    model: str | None = None,
    hours: float | None = None,
    gpu_hours: float | None = None,
    name: str | None = None,
    address: str | None = None,
) -> Asked:
    """What the options of the command ask for, checked before anything is written."""
    if source is None and hours is None and gpu_hours is None:
        hours = BENCHMARK_HOURS
    limit = hours if gpu_hours is None else gpu_hours
    if limit is None or (hours is not None and gpu_hours is not None):
        raise ConfigError("give one of --hours (wall clock) and --gpu-hours")
    images = _folder_of_images(source)
    if images is None and (id_domain or ood):
        raise ConfigError("--id and --ood need a folder of images")
    if not name:
        of_folder = "" if images is None else re.sub(r"[^A-Za-z0-9._-]+", "-", images.name)
        name = of_folder.lstrip("._-") or "auto"
    base = model or ("vit_b32" if images else "quickstart")
    if Path(base).is_file():
        base = str(Path(base).absolute())
    values: dict[str, Any] = {"search.name": name}
    values |= {"search.budget.hours": hours, "search.budget.gpu_hours": gpu_hours}
    asked = Asked(
        images=images,
        domains={},
        name=name,
        base=base,
        own=_own_values(base),
        values=values,
        unit="hours" if gpu_hours is None else "gpu_hours",
        limit=limit,
        address=address or os.environ.get("RAY_ADDRESS") or None,
        command="",
        console=Console(),
    )
    words = {"--id": id_domain or "", "--ood": ",".join(ood), "--model": model or ""}
    words |= {"--name": name, asked.option: f"{limit:g}"}
    asked.command = _command("auto", *([images] if images else []), *_options(words))
    if images is not None:
        asked.domains = sources_of(Source(path=str(images)), id_domain=id_domain, ood=ood)
        first, *others = asked.domains
        if id_domain is None and others:
            raise ConfigError(f"choose one of {quoted(asked.domains)}", key="--id")
        values["trial.data.root"] = str(asked.prepared)
        values |= {"trial.data.id_domain": first, "trial.data.ood_domains": others}
        if not _has(asked.own, "trial.data.suite"):
            values["trial.data.suite"] = None  # a ready one is for other images
        if "trial.steps" not in asked.own:
            values["trial.steps"] = MOST_STEPS  # until the images are counted
        if not others and not _has(asked.own, "search.objective"):
            values["search.objective"] = {"metric": ID_ACC}
    resources = asked.file.search.resources
    if asked.address is None and resources.gpus_per_worker and not torch.cuda.is_available():
        if gpu_hours is not None:
            hint = "give --hours, or --address of a cluster"
            raise ConfigError("this machine has no GPU", key="--gpu-hours", hint=hint)
        cpus = min(resources.cpus_per_worker, os.cpu_count() or 1)
        without_gpu = {"workers": 1, "cpus_per_worker": cpus, "gpus_per_worker": 0}
        values |= {f"search.resources.{key}": value for key, value in without_gpu.items()}
    check_settings(asked.file)
    return asked


def auto(asked: Asked, *, again: bool = False) -> None:
    """Prepare images, search for as many trials as fit the hours, confirm and export what won.

    The configuration is `NAME.yaml` beside the run folder, the images are in `prepared/NAME`.

    Args:
        asked: see `answers`.
        again: of `confirm`.

    Raises:
        KeyboardInterrupt: the same call goes on.
    """
    with _alone(asked.config, asked.name):
        is_planned = _is_planned(asked)
        _fetch_weights(asked.file.trial, asked.console)
        if asked.domains:
            _prepare(asked)
        if not is_planned:
            asked.write()
            rows, image_s = _zero_shot(asked)
            _plan(asked, rows, image_s)
        run, earlier = _search(asked)
        _confirm(asked, run, again=again)
        exported = _export(asked, run)

    console = asked.console
    show_phase(console, "Result", *load_run(run).conclusion.of_model)
    took = earlier + asked.spent() if asked.unit == "hours" else _used(run)[asked.unit]
    show_phase(console, "Took", f"{format_hours(took)} of the {asked.limit:g} of {asked.option}")
    show_phase(console, "Report", str(page_path(run)))
    show_phase(console, "Model", str(exported))
    predict = shlex.join(["python", str(exported / "predict.py")])
    show_phase(console, "Try it", f"{predict} IMAGE ...")


def _prepare(asked: Asked) -> None:
    """Step 1: write the images as Parquet, and choose what follows from their number."""
    first, *others = asked.domains
    domains = _options({"--id": first, "--ood": ",".join(others)})
    made = [asked.images, asked.prepared, *domains, "--drop-duplicates"]
    asked.announce("1 Prepare", "prepare", "folders", *made)
    target = open_store(asked.prepared)
    bar = Console(stderr=True)
    found = prepare(
        asked.domains, target, Options(drop_duplicates=True), id_domain=first, console=bar
    )
    asked.console.print(render(found), soft_wrap=True)
    if lacking := without_split(str(asked.prepared), asked.domains, "test"):
        problem = f"no test split for `confirm`: {quoted(lacking)}"
        raise ConfigError(problem, source=asked.prepared)
    chosen = sizes(asked.file, found.domains[0].images.get("train", 0))
    if asked.own.keys() & {"trial.steps", "trial.epochs"}:
        asked.values.pop("trial.steps", None)
        del chosen["trial.steps"], chosen["trial.eval.every"]
    asked.values |= chosen
    if "trial.eval.line" not in asked.own and (few := line_remark(asked.file.trial)):
        show_phase(asked.console, "Line", f"off: {few}")
        asked.values["trial.eval.line"] = "off"


def _zero_shot(asked: Asked) -> tuple[list[Row], float]:
    """Step 2: evaluate the zero-shot model, and time its last domain in seconds for an image."""
    asked.announce("2 Zero-shot", "zero-shot", asked.config)
    trial = asked.file.trial
    with restored_state():  # frees the memory of the GPU, which trials need
        starts: list[float] = []
        rows = measure(trial, "val", began=lambda _: starts.append(time.monotonic()))
        image_s = (time.monotonic() - starts[-1]) / rows[-1].images
    title = f"{trial.model.name}, zero-shot, val splits"
    asked.console.print(zero_shot_table(rows, title=title, id_domain=trial.data.id_domain))
    return rows, image_s


def _plan(asked: Asked, rows: Sequence[Row], image_s: float) -> None:
    """Step 3: measure a trial, and write the configuration with as many as fit.

    Args:
        rows: of the zero-shot evaluation.
        image_s: seconds that it takes for an image, on all cores.
    """
    asked.announce("3 Plan", "plan", asked.config)
    longest = load_config(asked.config, [f"search.budget.trials={MOST_TRIALS}"])
    if asked.address is None and not longest.search.resources.gpus_per_worker:
        _check_hours(longest, asked.limit - asked.spent(), image_s, rows)
    plan = plan_search(longest, address=asked.address)
    plan = fitting(plan, asked.limit, asked.spent() if asked.unit == "hours" else 0.0)
    asked.console.print(render_plan(plan))
    trial = plan.file.trial
    budget = plan.file.search.budget
    if trial.steps < longest.trial.steps:
        fewer = f"{trial.steps} in place of {longest.trial.steps}, to fit {asked.option}"
        show_phase(asked.console, "Steps", fewer)
    values = asked.values
    values |= {"trial.steps": trial.steps, "trial.eval.every": trial.eval.every}
    values |= {_TRIALS: budget.trials, f"search.budget.{asked.unit}": getattr(budget, asked.unit)}
    by_rule = "trial.optim.lr" not in asked.own  # a ready one's is for its own steps
    if by_rule:
        values["trial.optim.lr"] = first_rate(trial)
    asked.write()
    if line := rate_line(load_config(asked.config, check=False), by_rule=by_rule):
        show_phase(asked.console, "Rate", line)


def _search(asked: Asked) -> tuple[Path, float]:
    """Step 4: the run folder of the finished search, and the hours that earlier calls have used."""
    file = load_config(asked.config)
    asked.announce("4 Search", "search", asked.config, "--resume")
    run = earlier_run(file, asked.config.parent)
    earlier = 0.0
    is_searched = False
    if run is not None and (run / JOURNAL_FILE).is_file():
        earlier = _used(run)["hours"]
        is_searched = load_run(run).history.outcome == "finished"
    if run is None or not is_searched:
        result = search_or_resume(file, address=asked.address)
        run = result.run.folder
        if result.outcome == "stopped" and result.ended_by is None:
            raise KeyboardInterrupt
        if result.outcome == "stopped":
            raise MayContinue(f"{run}: {result.ended_by}; the same command goes on")
        if result.run.best is None:
            more = _command("resume", run.name, asked.option, f"+{asked.limit:g}")
            hint = f"`{more}` and then the same command go on"
            raise ConfigError(result.ended_by or "no trial has finished", source=run, hint=hint)
        if result.ended_by:
            show_phase(asked.console, "Ended by", result.ended_by)
    loaded = load_run(run)
    seconds = loaded.history.seconds
    table = leaderboard.report(loaded, asked.console.width, leaderboard.SHOWN, seconds=seconds)
    asked.console.print(table, highlight=False)
    return run, earlier


def _confirm(asked: Asked, run: Path, *, again: bool) -> None:
    """Step 5: train the best trial and plain fine-tuning with fresh seeds, and build the model."""
    rules = ("--rule", RULE, "--seeds", CONFIRM_SEEDS, *(["--again"] if again else ()))
    asked.announce("5 Confirm", "confirm", run.name, *rules)
    confirmed = confirm(run, seeds=CONFIRM_SEEDS, rules=[RULE], again=again, address=asked.address)
    loaded = load_run(run)
    has_ft = bool(confirmed.values(FT, loaded.goal.objectives[0].metric))
    if confirmed.failed and not (loaded.conclusion.seeds and has_ft):
        problem = f"{len(confirmed.failed)} trainings of `confirm` failed"
        raise ConfigError(problem, source=run, hint="the same command tries again")


def _export(asked: Asked, run: Path) -> Path:
    """Step 6: write the model for open_clip, anew if another one is the model since."""
    exported = run / "export"
    asked.announce("6 Export", "export", run.name, "--output", exported)
    about = exported / ABOUT
    if about.is_file() and json.loads(about.read_text())["chosen"] != why_chosen(load_run(run)):
        shutil.rmtree(exported)
    if not exported.is_dir():
        export_weights(run, exported)
    return exported


def _folder_of_images(source: str | None) -> Path | None:
    if source is None:
        return None
    folder = Path(source).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError("no such folder", key="DATA", value=source)
    if Path.cwd().is_relative_to(folder.resolve()):
        problem = f"`{PREPARED}` and the runs would lie among the images"
        raise ConfigError(problem, key="DATA", value=source, hint="call it from another folder")
    return folder


@contextmanager
def _alone(config: Path, name: str) -> Iterator[None]:
    """Keep other calls of this name out."""
    config.parent.mkdir(parents=True, exist_ok=True)
    with private_lock(config.with_suffix(".lock")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = "another `lipsum-tune auto` of this name runs"
            hint = "wait for its end, or give another name"
            raise ConfigError(problem, key="--name", value=name, hint=hint) from None
        yield


def _fetch_weights(trial: TrialConfig, console: Console) -> None:
    """Say which weights are downloaded, and do that before minutes of other work."""
    model = trial.model
    if model.is_here:
        return
    what = f"{model.name}{f', {model.pretrained}' if model.pretrained else ''}"
    megabytes = sum(weight.numel() for weight in skeleton(model).parameters()) * 4e-6
    without = "`--model quickstart` needs no download"
    show_phase(console, "Weights", f"{what}: {megabytes:,.0f} MB, downloaded once; {without}")
    check_model(model)


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
    """
    resources = file.search.resources
    steps = _steps(file.trial.steps // 4)["steps"]
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
    """
    file = plan.file
    steps = file.trial.steps
    unit = "hours" if file.search.budget.gpu_hours is None else "gpu_hours"
    for parts in (1, 2, 4):
        if parts > 1:
            trial = with_overrides(file.trial, _steps(steps // parts), "auto")
            plan = replace(plan, file=file.model_copy(update={"trial": trial}))
        for trials in range(MOST_TRIALS, LEAST_TRIALS - 1, -1):
            fitted = _with_budget(plan, trials=trials)
            left = limit - spent - fitted.confirm_price.of(unit)
            needed = fitted.price("", trials + len(file.search.references)).of(unit)
            if needed <= left:
                return _with_budget(fitted, **{unit: float(f"{left:.3g}")})
    needs = limit - left + needed
    hours = f"{format_hours(needs)} {'hours' if unit == 'hours' else 'GPU-hours'}"
    problem = f"{LEAST_TRIALS} trials of {steps // 4} steps and confirm need {hours}"
    option = f"--{unit.replace('_', '-')}"
    hint = f"give {option} {format_hours(1.2 * needs)} or more"
    raise ConfigError(problem, key=option, value=limit, hint=hint)


def _with_budget(plan: Plan, **changes: float) -> Plan:
    search = plan.file.search
    budget = search.budget.model_copy(update=changes)
    search = search.model_copy(update={"budget": budget})
    return replace(plan, file=plan.file.model_copy(update={"search": search}))


def _steps(steps: int) -> dict[str, int]:
    every = max(1, math.ceil(steps / EVALUATIONS))
    return {"steps": EVALUATIONS * every, "eval.every": every}


def _own_values(base: str) -> dict[str, Any]:
    """What the user's own files give, by dotted keys, without the ready ones that they extend."""
    own: dict[str, Any] = {}
    for file, values in reversed(files_of(base)):
        if not is_ready(file):
            own |= flat(values)
    return own


def _has(own: Mapping[str, Any], section: str) -> bool:
    return any(f"{key}.".startswith(f"{section}.") for key in own)


def _used(run: Path) -> dict[str, float]:
    """What all calls have used of either limit, for the search and `confirm`."""
    loaded = load_run(run)
    parts = [used_hours(history) for history in (loaded.history, loaded.confirmed)]
    return {unit: sum(part[unit] for part in parts) for unit in ("hours", "gpu_hours")}


def _is_planned(asked: Asked) -> bool:
    """Whether the configuration, which must be of the same command, has its trials."""
    config = asked.config
    if not config.is_file():
        return False
    was, *_ = config.read_text(encoding="utf-8").splitlines() or [""]
    if not was.startswith(f"{_FIRST}{_command('auto')} "):
        hint = "give another --name"
        raise ConfigError("this file would be overwritten", source=config, hint=hint)
    if _TRIALS not in flat(read_yaml(config)):
        return False
    if (command := was.removeprefix(_FIRST)) != asked.command:
        problem = "this name is taken by another command"
        hint = f"give another --name, or run {command!r} to go on"
        raise ConfigError(problem, source=config, hint=hint)
    return True


def _options(values: Mapping[str, str]) -> list[str]:
    return [word for option, value in values.items() if value for word in (option, value)]


def _command(*words: object) -> str:
    return shlex.join(["lipsum-tune", *map(str, words)])
