"""What a search will cost, before it starts: `lipsum-tune plan CONFIG`.

Two to four short trials run in the slots of a search, in a run folder that is deleted afterwards.
What the later ones report of their time is multiplied up. References and all proposals are priced
like the base trial, whatever method or number of random texts they have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import fmean

from rich.console import Console, Group, RenderableType
from rich.text import Text

from trainers.checkpoints.format import WEIGHTS
from trainers.config import TrialConfig, with_overrides
from trainers.data.config import DataConfig
from trainers.data.roots import image_counts
from trainers.data.store import Store, url_of
from trainers.errors import ConfigError
from trainers.folders import temporary_folder
from trainers.weights.means import most_evaluations
from tuning.algorithms.samplers import LEAST_FINISHED
from tuning.checkpoints import DISK_BYTES, kept_checkpoint, remove_folder
from tuning.config.schema import SearchFile
from tuning.execution.ray_session import runs_folder
from tuning.log.history import History
from tuning.log.records import SECONDS, TrialRecord
from tuning.session import SearchOptions, fixed_only, open_session
from tuning.views.formatting import format_hours, format_seconds, show_phase
from tuning.views.result_table import borderless_table

EVERY = 10
SHORT = {"steps": 2 * EVERY, "eval.every": EVERY}
"""What a timed trial changes of the base trial: two intervals, the second of which is measured."""
AT_ONCE = 2
"""Most slots that are timed, with two trials each: the first one of a slot starts its workers."""
CONFIRM_SEEDS = 5
CONFIRMED = 2
"""Configurations that are trained with them: the best trial's, and plain fine-tuning."""


@dataclass(frozen=True)
class Price:
    """Hours of wall clock that trials take, and GPUs (else CPUs) that they reserve times hours."""

    what: str
    hours: float
    device_hours: float

    def of(self, budget: str) -> float:
        """The part that `hours` or `gpu_hours` of a search's budget limits."""
        return self.hours if budget == "hours" else self.device_hours


@dataclass(frozen=True)
class Plan:
    """A search, and the durations of its parts in seconds."""

    file: SearchFile
    concurrent: int
    """Number of trials at a time."""
    setup_s: float
    """Ray, the zero-shot model, and workers."""
    start_s: float
    """Start of a trial in workers that are kept, and its last checkpoint."""
    step_s: float
    save_s: float
    """A checkpoint, and what else lies between two steps with a report in between."""
    rung_s: float
    """An evaluation before the last step."""
    eval_s: float
    """The evaluation after the last step, with the points of the line."""
    test_images: float = 2.0
    """Test images by validation images of all domains; as `prepare` splits by default."""
    rung_share: float = 1.0
    """Validation images that are evaluated before the last step, by all of them."""
    memory_gb: float = 0.0
    """Memory of the first worker's process, with the decoded images that it keeps for evaluations;
    without processes that decode images for training."""
    weights_gb: float = 0.0
    """A set of weights in the checkpoint root."""
    checkpoint_gb: float = 0.0
    """A checkpoint of a trial that trains, weights included."""

    @property
    def device(self) -> str:
        """Unit of the device hours: GPU, or CPU if trials take no GPU."""
        return "GPU" if self.file.search.resources.gpus_per_worker else "CPU"

    @property
    def full_s(self) -> float:
        """A trial that nothing stops, in kept workers."""
        until_last = self.until(self.file.trial.steps) - self.rung_s - self.save_s
        return until_last + self.eval_s

    def until(self, step: int) -> float:
        """A trial that is stopped at its report at this step, or at the next one."""
        evals = math.ceil(step / self.file.trial.eval.every)
        return self.start_s + step * self.step_s + evals * (self.rung_s + self.save_s)

    def price(self, what: str, full: int, stopped: int = 0, step: int = 0) -> Price:
        """The price of some trials in full, and of others that are stopped at a step."""
        resources = self.file.search.resources
        devices = resources.gpus_per_trial or resources.workers * resources.cpus_per_worker
        parts = (full, self.full_s), (stopped, self.until(step))
        wall_s = sum(math.ceil(number / self.concurrent) * each_s for number, each_s in parts)
        trial_s = sum(number * each_s for number, each_s in parts)
        return Price(what, (self.setup_s + wall_s) / 3600, trial_s * devices / 3600)

    @property
    def prices(self) -> list[Price]:
        """All trials in full, and if early stopping is on, with the fewest of them in full."""
        search = self.file.search
        trial = self.file.trial
        trials = self.file.most_trials
        least = LEAST_FINISHED * len(self.file.spaces)
        references, full = len(search.references), min(least, trials)
        found = [self.price("all trials in full", trials + references)]
        if search.scheduler.name != "none" and full < trials:
            step = search.scheduler.first_step(trial.steps, trial.eval.every)
            stopped = trials - full
            what = f"{full} in full, {stopped} to step {step}"
            found.append(self.price(what, full + references, stopped, step))
        return found

    def trials_within(self, limit: float, budget: str, most: int) -> int:
        """How many trials in full, beside the references, are within `hours` or `gpu_hours`."""
        references = len(self.file.search.references)
        prices = (self.price("", number + references) for number in range(1, most + 1))
        return sum(price.of(budget) <= limit for price in prices)

    @property
    def confirm_price(self) -> Price:
        """One trial and plain fine-tuning, again with fresh seeds and on the test splits.

        These are read again at the end of a line, if its chosen point is another one. Then follows
        the model: means of all weights that were kept, and the test.
        """
        trial = self.file.trial
        has_line = trial.method.has_line and trial.eval.line != "off"
        readings = 2 if has_line else 1
        tested = replace(self, eval_s=self.eval_s * (1 + readings * self.test_images))
        what = f"confirm --rule objective, {CONFIRM_SEEDS} seeds"
        trained = tested.price(what, CONFIRMED * CONFIRM_SEEDS)
        resources = self.file.search.resources
        devices = resources.gpus_per_worker or resources.cpus_per_worker
        ood = len(trial.data.ood_domains)
        left_out = ood if ood > 1 else 0
        rules = (ood > 0) + left_out
        means = most_evaluations(sum(self.kept), has_line=has_line, ends_alone=rules)
        # The model, that of `id_val`, and of each domain left out ID and that domain.
        tests = 1 + (ood > 0) + 2 * left_out / (1 + ood)
        evaluations = means + tests * self.test_images
        if len(self.file.objectives) > 1:
            evaluations = 0
        model_h = evaluations * self.rung_s / self.rung_share / 3600
        return Price(what, trained.hours + model_h, trained.device_hours + model_h * devices)

    @property
    def kept(self) -> tuple[int, int]:
        """The most sets of weights that the search keeps, and `confirm` besides.

        What rules choose, the first trial and references are kept in any case; others while there
        is room. Half of a disk's free space is not known here.
        """
        file = self.file
        limits = file.search.checkpoints
        domains, methods = len(file.trial.data.ood_domains), len(file.spaces)
        chosen = domains + methods + 2  # one domain left out each; ID and OOD accuracy
        first = 1
        references = len(file.search.references)
        most = math.inf if limits.most_kept is None else limits.most_kept
        limit = limits.gigabytes or (DISK_BYTES / 1e9 if limits.storage is None else math.inf)
        room = limit / self.weights_gb if self.weights_gb else math.inf

        def kept(trainings: int, in_any_case: int) -> int:
            return int(min(trainings, most + in_any_case, max(room, in_any_case)))

        searched = kept(file.most_trials + references, chosen + first + references)
        return searched, kept(CONFIRMED * CONFIRM_SEEDS, chosen)

    @property
    def disk_gb(self) -> tuple[float, float]:
        """The most that checkpoints take while a search runs, and while `confirm` does.

        A checkpoint is removed once the next one is written. `confirm` adds the model,
        and that of `id_val`.
        """
        searched, confirmed = self.kept
        training = 2 * self.concurrent * self.checkpoint_gb
        models = 1 + bool(self.file.trial.data.ood_domains)
        gb = searched * self.weights_gb + training
        return gb, gb + (confirmed + models) * self.weights_gb


def plan_search(
    file: SearchFile, *, address: str | None = None, console: Console | None = None
) -> Plan:
    """Time short trials of this configuration, and work out the price of its search.

    Args:
        address: of a Ray cluster; by default the one in `RAY_ADDRESS`, or a new local one.
        console: for progress; by default the terminal's standard error.

    Raises:
        ConfigError: too few resources, no such data, or the base trial fails in its first steps.
    """
    began, console = time.time(), console or Console(stderr=True)
    base = with_overrides(file.trial, SHORT, "trial")
    storage = runs_folder(file.search.storage)
    keep = file.search.checkpoints.storage
    options = SearchOptions(address=address, console=console)
    with ExitStack() as stack:
        try:
            storage.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(temporary_folder(".plan-", storage))
        except OSError as error:
            raise ConfigError(f"search.storage = {str(storage)!r}: {error}") from None
        root = str(folder) if keep is None else url_of(keep, folder.name)
        stack.callback(remove_folder, root)
        short = fixed_only(file.model_copy(update={"trial": base}), 2 * AT_ONCE)
        session = stack.enter_context(
            open_session(folder, short, options, "plan again", root, "plan")
        )
        wanted = file.most_trials + len(file.search.references)
        concurrent = min(session.concurrent, wanted)
        at_once = min(concurrent, AT_ONCE)
        show_phase(console, "Plan", f"timing {2 * at_once} trials of {base.steps} steps")
        short_trials = [TrialRecord(f"timing-{n}", n, "trial", {}) for n in range(2 * at_once)]
        timed = fixed_only(short, 2 * at_once)
        session = replace(session, file=timed, concurrent=at_once)
        ended, outcome = session.run(History(), [session.progress], fixed=short_trials)
        sizes = [_sizes(session.checkpoints, record.trial_id) for record in ended.records]
    if outcome == "stopped":
        raise KeyboardInterrupt
    if failed := [record for record in ended.records if record.outcome != "finished"]:
        raise ConfigError(f"a short trial of this configuration failed: {failed[0].error_line}")
    plan = plan_of(file, ended.records, concurrent, at_once, began)
    weights_gb, checkpoint_gb = max(sizes)
    return replace(plan, weights_gb=weights_gb, checkpoint_gb=checkpoint_gb)


def _sizes(checkpoints: Store, trial_id: str) -> tuple[float, float]:
    """10^9 bytes of a trial's weights, and of its whole checkpoint."""
    checkpoint = kept_checkpoint(checkpoints, trial_id)
    files = [] if checkpoint is None else checkpoint.list()
    weights = sum(file.size for file in files if file.base_name == WEIGHTS)
    return weights / 1e9, sum(file.size for file in files) / 1e9


def plan_of(
    file: SearchFile, records: Sequence[TrialRecord], concurrent: int, at_once: int, began: float
) -> Plan:
    """The plan from what the short trials have reported.

    Args:
        concurrent: number of trials at a time in the search.
        at_once: number of short trials that ran at a time.
        began: Unix time at the begin of the command.
    """
    order = sorted(records, key=lambda record: record.started_at or 0.0)
    parts = []
    for record in order[at_once:]:  # those that found workers
        first, last = record.curve[0], record.curve[-1]
        rung_s = first["cost/eval_seconds"]
        eval_s = last["cost/eval_seconds"] - rung_s
        step_s = file.trial.optim.batch_size / last["train/images_per_s"]
        save_s = last[SECONDS] - first[SECONDS] - eval_s - EVERY * step_s
        start_s = (record.seconds or 0.0) - last[SECONDS]
        parts.append((start_s, step_s, max(0.0, save_s), rung_s, eval_s))
    start_s, step_s, save_s, rung_s, eval_s = map(fmean, zip(*parts, strict=True))
    one = order[0]
    workers_s = (one.seconds or 0.0) - one.metrics[SECONDS]
    setup_s = (one.started_at or began) - began + workers_s + eval_s  # of the zero-shot model
    memory_gb = max(record.curve[-1].get("cost/memory_gb", 0.0) for record in order)
    durations = (setup_s, start_s, step_s, save_s, rung_s, eval_s)
    try:
        share = rung_share(file.trial, image_counts(file.trial.data, "val").values())
    except ConfigError:
        share = 1.0
    tested = test_images(file.trial.data)
    return Plan(file, concurrent, *durations, tested, share, memory_gb)


def rung_share(trial: TrialConfig, images: Collection[int]) -> float:
    """`Plan.rung_share` for so many validation images of each domain."""
    most = trial.eval.rung_images or max(images)
    return sum(min(number, most) for number in images) / sum(images)


def test_images(data: DataConfig) -> float:
    """Test images by validation images of all domains; 2 if no test split is there."""
    try:
        test, val = (sum(image_counts(data, split).values()) for split in ("test", "val"))
        return test / val
    except ConfigError:
        return Plan.test_images


def budget_line(plan: Plan, card: str = "") -> str | None:
    """Which budget of hours ends the search before all its trials; None if none does.

    Args:
        card: a GPU that is not at hand, of which wall clock is not known.
    """
    where = f" on {card}" if card else ""
    most = plan.file.most_trials
    for name in ("gpu_hours",) if card else ("hours", "gpu_hours"):
        limit = getattr(plan.file.search.budget, name)
        if limit is not None and (fit := plan.trials_within(limit, name, most)) < most:
            trials = f"{fit} of {most} trials in full"
            return f"search.budget.{name} = {limit:g} ends the search{where} after {trials}."
    return None


def render(plan: Plan) -> RenderableType:
    """The prices, and what was measured."""
    trial = plan.file.trial
    references = ", ".join(plan.file.search.references)
    beside = f" and the reference {references}" if references else ""
    what = (
        f"{plan.file.most_trials} trials of {trial.steps} steps{beside}, {plan.concurrent} at once"
    )
    measured = (
        f"step {plan.step_s:.2g} s, evaluation {plan.rung_s:.2g} s (after the last step "
        f"{plan.eval_s:.2g} s), checkpoint {plan.save_s:.2g} s, start of a trial "
        f"{plan.start_s:.2g} s, memory of a worker {plan.memory_gb:.1f} GB"
    )
    searched, confirmed = (f"{gb:.2g} GB" for gb in plan.disk_gb)
    measured += (
        f"\nCheckpoints take at most {searched}, and {confirmed} in confirm; decoded images "
        f"{trial.data.decoded_gb:g} GB of each node"
    )
    table = borderless_table("", "wall clock", f"{plan.device}-hours")
    for price in (*plan.prices, plan.confirm_price):
        hours = format_hours(price.device_hours)
        table.add_row(price.what, format_seconds(3600 * price.hours), hours)
    text = Text(f"{plan.file.search.name}: {what}\nMeasured: {measured}")
    parts: list[RenderableType] = [text, "", table]
    if line := budget_line(plan):
        parts += ["", Text(line)]
    return Group(*parts)
