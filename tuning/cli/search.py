"""Commands that run, continue, plan and confirm searches, and `auto`, which does all of it."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from trainers.errors import ConfigError
from tuning.cli.options import Address, Config, Run, Set, app, names, shortest, show, warn

if TYPE_CHECKING:
    from tuning.config.schema import SearchFile
    from tuning.results.conclusion import Conclusion
    from tuning.search import SearchResult


@app.command()
def search(
    config: Config,
    set_: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run of this name and configuration, if there is one."
        ),
    ] = False,
    allow_failed_trials: Annotated[
        bool,
        typer.Option(
            "--allow-failed-trials",
            help="Exit with status 0 despite failed trials, if any trial has finished.",
        ),
    ] = False,
    address: Address = None,
) -> None:
    """Run a search.

    Example: lipsum-tune search quickstart --set search.budget.trials=20
    """
    from trainers.evaluation.metrics import MetricKey
    from tuning.config.validation import load_config, rate_line
    from tuning.views.formatting import short_names

    overrides = [*(set_ or ()), *([f"search.name={json.dumps(name)}"] if name else ())]
    written = load_config(config, overrides, check=False)
    _announce("Search", written)
    file = load_config(config, overrides)
    space, *others = file.spaces.values()
    if not others:  # else each method has its own
        shown = zip(short_names([*space.parameters]), space.parameters.values(), strict=True)
        show("Space", ", ".join(f"{short} {values}" for short, values in shown))
    if line := rate_line(file, by_rule="lr" not in written.trial.optim.model_fields_set):
        show("Rate", line)
    # The whole key, since there may be several objectives, or one with another mode.
    avoided = " (--set 'search.objective={metric: id_val/acc}' avoids that)"
    read = [("Objective", o.metric, avoided) for o in file.objectives]
    read += [("Constraint", c.metric, "") for c in file.constraints()]
    for what, metric, hint in read:
        key = MetricKey.parse(metric)
        if key is not None and key.uses_ood:
            show(what, f"{metric} uses OOD validation data{hint}")
    _say_what_data_lack(file)
    # Imported after the check, since Ray and MLflow take seconds to import.
    from tuning.search import run_search, search_or_resume

    with _stopped():
        run = search_or_resume if resume else run_search
        result = run(file, address=address)
    _show(result, allow_failed_trials)


@app.command("resume")
def resume_run(
    run: Run,
    trials: Annotated[
        str | None, typer.Option(help="Number of trials: `30`, or `+8` for eight more.")
    ] = None,
    hours: Annotated[
        str | None, typer.Option(help="Hours of wall clock in all: `4`, or `+1` for one more.")
    ] = None,
    gpu_hours: Annotated[str | None, typer.Option(help="GPU-hours in all, likewise.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key, e.g. `search.sampler.name=tpe`. Repeatable."),
    ] = None,
    address: Address = None,
) -> None:
    """Continue a search that was interrupted, or with more trials, hours or another sampler.

    Example: lipsum-tune resume quickstart --trials +8
    """
    from tuning.log.folder import word_for
    from tuning.results.budget import larger_budget
    from tuning.run import load_file, load_run

    loaded = load_run(run, whole=True)
    budgets = larger_budget(loaded, trials=trials, hours=hours, gpu_hours=gpu_hours)
    file, _ = load_file(loaded.folder, [*(set_ or ()), *budgets])
    _announce("Resume", file)
    from tuning.search import resume_search

    with _stopped(f"`lipsum-tune resume {word_for(run)}` continues it"):
        result = resume_search(
            run, set_ or (), trials=trials, hours=hours, gpu_hours=gpu_hours, address=address
        )
    _show(result)


@app.command()
def plan(
    config: Config,
    set_: Set = None,
    address: Address = None,
    on: Annotated[
        str | None,
        typer.Option(
            help="Predict memory and hours on GPUs that are not here: names, such as "
            "`A100-80GB,L4`. Needs neither weights nor images."
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="With --on: training images, if there are no data.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=2, help="With --on: classes, if there are no data.")
    ] = None,
) -> None:
    """Estimate what a search will cost, from a short measurement on this cluster.

    Example: lipsum-tune plan vit_b16 --on A100-80GB,L4
    """
    from tuning.config.validation import load_config, load_settings

    if on is None and (images or classes):
        raise ConfigError("is for --on", key="--images" if images else "--classes")
    if on is not None:
        if not names(on):
            raise ConfigError("names no GPU, such as L4", key="--on", value=on)
        file = load_settings(config, set_ or ())
        from tuning.planning.cards import plan_on
        from tuning.planning.cards import render as render_cards

        data, plans = plan_on(file, names(on), images=images, classes=classes)
        Console().print(render_cards(file, data, plans))
        return
    _announce("Plan", load_config(config, set_ or (), check=False))
    file = load_config(config, set_ or ())
    _say_what_data_lack(file)
    from tuning.planning.plan import plan_search, render

    with _stopped("nothing of a plan is kept"):
        planned = plan_search(file, address=address)
    Console().print(render(planned))


@app.command()
def confirm(
    run: Run,
    top: Annotated[int, typer.Option(help="Number of trials of the rule `objective`.")] = 1,
    seeds: Annotated[int, typer.Option(help="Number of fresh seeds, the same for all trials.")] = 5,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="objective, by_method, id_val, ood_val, leave_one_domain_out, pareto, or first, "
            "the trial that the search began with; may be repeated. Default: all but pareto."
        ),
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Confirm other trials than those whose test accuracies are known, and build the "
            "model anew. Reports, model cards and MLflow count that.",
        ),
    ] = False,
    address: Address = None,
) -> None:
    """Train the chosen trials again with fresh seeds, build the model, and test both, once.

    Each chosen trial and plain fine-tuning is trained with every seed. The model is the best set of
    weights by the whole validation splits: one that the search or `confirm` has trained and kept, a
    mean of these, or the zero-shot model. `export` writes it.

    Example: lipsum-tune confirm quickstart --rule objective --seeds 3
    """
    from tuning.log.folder import word_for
    from tuning.run import load_run

    load_run(run)  # reports mistakes before torch and Ray are imported
    from tuning.confirmation.confirm import confirm as confirm_choices
    from tuning.views.confirmation_table import confirmed_tables

    with _stopped("the results so far are kept, and the same command goes on from them"):
        found = confirm_choices(
            run, top=top, seeds=seeds, rules=rule or (), again=again, address=address
        )
    console, loaded = Console(), load_run(run)
    for table in confirmed_tables(found, loaded.models, console.width):
        console.print(table)
    show("Result", *loaded.conclusion.lines)
    _show_next(loaded.conclusion, word_for(loaded.folder))
    if found.failed:
        raise typer.Exit(1)


@app.command()
def auto(
    data: Annotated[
        str | None,
        typer.Argument(
            help="A folder of images, as for `prepare folders`. Default: the built-in benchmark."
        ),
    ] = None,
    id_: Annotated[str | None, typer.Option("--id", help="The domain to fine-tune on.")] = None,
    ood: Annotated[
        str | None, typer.Option(help="The other domains, comma-separated. Default: all but --id.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A ready configuration or YAML file to extend. Default: vit_b32."),
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="Wall-clock time of everything. Default without DATA: 0.2.")
    ] = None,
    gpu_hours: Annotated[
        float | None, typer.Option(help="GPU-hours of the search and `confirm`.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run folder. Default: that of DATA.")
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Confirm another trial than before, for instance a better one after `resume`.",
        ),
    ] = False,
    address: Address = None,
) -> None:
    """From a folder of images to a confirmed, exported model; run it again after a kill.

    Prepares the images, runs a search that fits the hours, confirms it, and exports the model.

    Example: lipsum-tune auto /data/shop --id studio --ood street,sketch --gpu-hours 24
    """
    # Imported here, since torch, Ray and MLflow take seconds to import.
    from tuning import auto as walk
    from tuning.log.errors import resumable

    with _stopped("the same command goes on"), resumable("the same command goes on"):
        asked = walk.answers(
            data, id_domain=id_, ood=names(ood), model=model, hours=hours,
            gpu_hours=gpu_hours, name=name, address=address,
        )  # fmt: skip
        walk.auto(asked, again=again)


@contextmanager
def _stopped(
    how: str = "`lipsum-tune report` lists the runs, `lipsum-tune resume RUN` continues one",
) -> Iterator[None]:
    """After Ctrl-C in the block, state how to go on, and exit with status 130.

    If the trials of a search are interrupted, the search returns their results.
    """
    try:
        yield
    except KeyboardInterrupt:
        warn(f"stopped; {how}")
        raise typer.Exit(130) from None


def _announce(label: str, file: SearchFile) -> None:
    """Print a first line at once, before the checks import torch and Ray."""
    trial, search = file.trial, file.search
    compared = len(search.space.methods)
    method = f"{compared} methods" if compared else trial.method.name
    where = f"{method} of {trial.model.name} on {trial.data.root}"
    show(label, f"{search.name}: {search.budget.trials} trials of {trial.steps} steps, {where}")
    show("Checking", "model, data and the bounds of the space")


def _say_what_data_lack(file: SearchFile) -> None:
    """Say before hours of search what `confirm` would refuse after them, and what is odd."""
    from trainers.data.roots import remarks, without_split
    from tuning.config.validation import line_remark

    data = file.trial.data
    if lacking := without_split(data.root, data.domains, "test"):
        made = "`prepare` makes one with --test-fraction"
        warn(f"no test split, which `confirm` needs: {', '.join(lacking)} ({made})")
    if of_the_line := line_remark(file.trial):
        warn(f"{of_the_line} (`trial.eval.line: off` keeps the end of a training)")
    for line in remarks(data.root, data.trial_parts):
        print(f"! {line}", file=sys.stderr)


def _show(result: SearchResult, allow_failed_trials: bool = False) -> None:
    """Print the results of a search, and exit with a status for how it ended."""
    from trainers.errors import MAY_CONTINUE
    from trainers.redact import redact
    from tuning.log.folder import word_for
    from tuning.log.paths import page_path
    from tuning.results.budget import more_of
    from tuning.results.ranking import finished_trials, on_bounds
    from tuning.views.leaderboard import SHOWN
    from tuning.views.leaderboard import report as full_report
    from tuning.views.mlflow.client import default_tracking_uri

    console = Console()
    run = result.run
    table = full_report(run, console.width, SHOWN, seconds=run.history.seconds)
    console.print(table, highlight=False)
    if result.ended_by:
        show("Ended by", result.ended_by)
    show("At bounds", *on_bounds(run.file.spaces, run.records))
    show("Report", shortest(page_path(run.folder)))
    is_local = result.tracking_uri == default_tracking_uri(run.folder.parent)
    word = word_for(run.folder)
    show("MLflow", f"lipsum-tune ui {word}" if is_local else redact(result.tracking_uri))
    finished = finished_trials(run.records)
    if result.outcome == "finished" and result.ended_by and not finished:
        raise ConfigError(
            f"no trial has finished ({result.ended_by})",
            source=word,
            hint=f"`lipsum-tune resume {word}` with a larger budget continues it",
        )
    if run.history.ended_by.startswith("search.budget."):
        show("Go on with", f"lipsum-tune resume {word} {more_of(run)}")
    if result.outcome == "stopped":
        show("Go on with", f"lipsum-tune resume {word}")
        raise typer.Exit(MAY_CONTINUE if result.ended_by else 130)
    _show_next(run.conclusion, word)
    if result.failed:
        print(f"{len(result.failed)} trial(s) failed", file=sys.stderr)
        if not (allow_failed_trials and finished):
            raise typer.Exit(1)


def _show_next(found: Conclusion, run: str) -> None:
    commands = found.commands(run)
    show("Next", *commands)
    activate = Path(sys.executable).with_name("activate")
    if commands and shutil.which("lipsum-tune") is None and activate.is_file():
        show("", f"source {shlex.quote(str(activate))}   # first, for the command lipsum-tune")
