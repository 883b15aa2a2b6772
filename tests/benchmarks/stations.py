"""Which functions does a value pass through? `python -m tests.benchmarks.stations`

Runs a search of one short trial in this process, with real training and without Ray. It follows
`method.reg_weight` from the YAML file to the loss, and `ood_val/mean_acc` from the sums over a
batch to the journal. The value is recognised by what it is, as no other number equals it.

A function *holds* the value if it is anywhere in its arguments or its result, be it within another
object. A *station* hands it on in an object that it did not get, such as a new record; the others
pass objects through. A station is *on the road* if what it made was known to the next one on the
road, up to the last one: a journal or a dashboard that gets the weight is a side road.
"""

import sys
import tempfile
from collections import deque
from pathlib import Path
from unittest.mock import patch

import yaml
from rich.console import Console

from tests.conftest import CLASSES
from tests.tuning.databases import with_database
from tests.tuning.execution.inline_tuner import without_ray
from tests.tuning.execution.real_searches import PLAIN, configuration
from trainers.config import TrialConfig
from trainers.embedded_benchmark.build import ImageCounts, build
from trainers.evaluation.domain_sums import DomainSums
from trainers.fine_tune import fine_tune
from trainers.overrides import nest
from trainers.ray_trainer import _next_answer
from tuning.config.validation import load_config
from tuning.run import load_run
from tuning.search import SearchOptions, start_search

ROOT = Path(__file__).parents[2]
PACKAGES = ("search_spaces", "trainers", "tuning")
FILES = (__file__, *(f"{ROOT / package}/" for package in PACKAGES))
WEIGHT = 0.123456789
LOG = {"type": "float", "low": 0.01, "high": 10, "log": True}
SPACE = {
    "parameters": {"method.reg_weight": LOG},
    "initial_points": [{"method.reg_weight": WEIGHT}],
}
SHORT = PLAIN | {
    "trial.steps": 3,
    "search.budget.trials": 1,
    "search.space": {"name": None, **SPACE},
}


class InProcess:
    """In place of `KeptWorkers`, `Exchange`, `serve` and `train`: only `serve` is a station."""

    def __init__(self, hang_after_s, options):
        self._reports = None

    def ask(self, request):
        if self._reports is None:
            self._reports = fine_tune(TrialConfig.model_validate_json(request.trial), device="cpu")
        return _next_answer(self._reports)


class Follower:
    """A profiler that follows a value, or objects that become it, until a function gets it."""

    def __init__(self, value, last, earlier=()):
        self._value, self._text, self._last, self._earlier = value, repr(value), last, earlier
        self._stack = []  # of functions, each with the holders that it knows, by their identity
        self._makers = {}  # of holders: the function, and the holders that it knew then
        self._goals, self._kept = [], []  # what is kept does not pass its identity on
        self.holds, self.stations, self.is_over = {}, {}, False

    def __call__(self, frame, event, result):
        code = frame.f_code
        is_ours = code.co_filename.startswith(FILES) and not code.co_name.startswith("<")
        if self.is_over or not is_ours or event not in ("call", "return"):
            return
        found, seen, name = {}, set(), code.co_qualname.split(".<locals>")[0]
        function = f"{Path(code.co_filename).relative_to(ROOT)}: {name}"
        if event == "call":
            # Arguments come first among the variables; two flags mark *args and **kwargs.
            number = code.co_argcount + code.co_kwonlyargcount + (code.co_flags & 12).bit_count()
            arguments = [frame.f_locals.get(name) for name in code.co_varnames[:number]]
            is_held = sum(self._find(one, found, seen) for one in arguments) > 0
            if self._stack:
                self._hand_on(*self._stack[-1], found)
            self._stack.append((function, found))
            self.is_over = is_held and name == self._last
            self._goals += found if self.is_over else ()
        else:
            _, known = self._stack.pop()
            if is_held := self._find(result, found, seen):
                self._hand_on(function, known, found)
                if self._stack:
                    self._stack[-1][1].update(found)
        if is_held:
            self.holds.setdefault(function)

    def _find(self, thing, found, seen):
        """Add the holders in an object to `found`; whether it is one itself."""
        if id(thing) in seen:
            return id(thing) in found
        seen.add(id(thing))
        inner, is_held = (), isinstance(thing, self._earlier)
        self._goals += [id(thing)] if is_held else []
        match thing:
            case float():
                is_held = thing == self._value
            case str() | bytes():
                is_held = self._text in str(thing)
            case dict():
                inner = thing.values()
            case list() | tuple() | set() | deque():
                inner = thing
            case _ if type(thing).__module__.startswith(PACKAGES):
                inner = getattr(thing, "__dict__", {}).values()
        if is_held := sum(self._find(one, found, seen) for one in [*inner]) > 0 or is_held:
            found[id(thing)] = thing
            self._kept.append(thing)
        return is_held

    def _hand_on(self, function, known, found):
        for one in found.keys() - known.keys() - self._makers.keys():
            self._makers[one] = function, [*known]
            self.stations.setdefault(function)
        known.update(found)

    def road(self):
        left, seen, makers = self._goals, set(), set()
        while left:
            if (one := left.pop()) not in seen:
                seen.add(one)
                maker, inputs = self._makers.get(one, ("", ()))
                makers.add(maker)
                left += inputs
        return [station for station in self.stations if station in makers]


def search(config, follower):
    with without_ray(mlflow=False), patch("tuning.execution.trainable.KeptWorkers", InProcess):
        sys.setprofile(follower)
        run = start_search(load_config(config), SearchOptions(console=Console(quiet=True)))
        sys.setprofile(None)
    assert follower.is_over, "the value did not arrive"
    return load_run(run.folder)


def main():
    with tempfile.TemporaryDirectory(prefix="stations-") as folder:
        images, config = Path(folder) / "images", Path(folder) / "small.yaml"
        build(images, classes=CLASSES, images=ImageCounts(6, 3, 2), workers=1, progress=False)
        values = configuration(images, with_database(Path(folder) / "runs"))
        config.write_text(yaml.safe_dump(nest(SHORT, values)))
        weight = Follower(WEIGHT, "Loss.total")
        (record,) = search(config, weight).history.records
        accuracy = Follower(record.metrics["ood_val/mean_acc"], "append_synced", DomainSums)
        search(config, accuracy)  # the same trial
    for name, follower in {"method.reg_weight": weight, "ood_val/mean_acc": accuracy}.items():
        road, (held, stations) = follower.road(), map(len, (follower.holds, follower.stations))
        print(f"{name}: held by {held} functions, {stations} stations, {len(road)} on the road (*)")
        print(*(f"{'*' if one in road else ' '} {one}" for one in follower.stations), sep="\n")


if __name__ == "__main__":
    main()
