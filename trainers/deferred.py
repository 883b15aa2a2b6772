"""OOD domains, evaluated by other processes from the weights that a run has left for them.

The figures are those that the run itself would have found: on a device of the same kind, to the
last bit, if the run has one worker and is not compiled.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from trainers.checkpoint import load_weights
from trainers.config import TrialConfig
from trainers.data.pictures import Pictures
from trainers.errors import ConfigError
from trainers.evaluator import TEXT, evaluated, evaluator, hold
from trainers.pending import SPLIT, Evaluated
from trainers.run import Run, open_pictures


def evaluate_domain(
    config: TrialConfig,
    folder: Path,
    domain: str,
    temperature: float,
    *,
    device: torch.device | str | None = None,
) -> Evaluated:
    """Measure one OOD domain under the weights that a run left.

    Model, zero-shot features and decoded pictures stay in this process, for the next evaluation of
    any run with the same model and data.

    Args:
        config: of the run.
        folder: with the weights, on this machine.
        domain: whose validation split is read.
        temperature: that the run found on the ID domain, for `ece_scaled`.
        device: where; by default a GPU if there is one.

    Raises:
        ConfigError: no such weights, or the data have other classes than they were trained on.
    """
    began, cpu = time.perf_counter(), time.process_time()
    weights, class_names = load_weights(folder)
    trains_text = any(name.startswith(TEXT) for name in weights)
    warm = _warm(evaluated(config, trains_text).model_dump_json(), trains_text, device)
    if warm.run.class_names != class_names:
        raise ConfigError(f"{folder}: trained on other classes than the data have now")
    hold(warm.run, weights)
    sums = warm.run.sums({domain: warm.open(domain)})[domain]
    on_gpu = warm.run.device.type == "cuda"
    return Evaluated(
        measures=sums.measures(temperature),
        cpu_seconds=time.process_time() - cpu,
        gpu_seconds=time.perf_counter() - began if on_gpu else 0.0,
    )


@dataclass(frozen=True)
class _Warm:
    """What the evaluations of a process have in common."""

    run: Run
    pictures: dict[str, Pictures]

    def open(self, domain: str) -> Pictures:
        if domain not in self.pictures:
            self.pictures[domain] = open_pictures(self.run.config.data, domain, SPLIT)
        return self.pictures[domain]


@lru_cache(maxsize=1)
def _warm(config: str, trains_text: bool, device: torch.device | str | None) -> _Warm:
    return _Warm(evaluator(TrialConfig.model_validate_json(config), trains_text, device), {})
