"""What relies on internals of Optuna: nothing else may use its private names.

Where an Optuna lacks one, the search goes on without it, and the log says once what that means.
`tests/tuning/algorithms/test_optuna_workarounds.py` takes each away.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.samplers import GPSampler

if TYPE_CHECKING:
    from optuna._gp.acqf import BaseAcquisitionFunc  # imports PyTorch

logger = logging.getLogger(__name__)

_HOOK = "_optimize_acqf"


class ObservedGPSampler(GPSampler):
    """Optuna's Gaussian process, with a look at its acquisition function (Optuna 5.0).

    It starts no optimisation outside of the space: Optuna starts at the best of all trials, which
    may lie outside where the space of a proposal is a part of the whole one.

    Args:
        observe: called with the acquisition function's logarithm at each proposal.
    """

    def __init__(self, *, observe: Callable[[float], object] | None = None, **options: object):
        super().__init__(**options)  # type: ignore[arg-type]
        self._observe = observe
        has_hook()

    def _optimize_acqf(
        self, acqf: BaseAcquisitionFunc, best_params: np.ndarray | None
    ) -> np.ndarray:
        if best_params is not None:
            numeric = best_params[:, ~acqf.search_space.is_categorical]
            best_params = best_params[(np.abs(numeric - 0.5) <= 0.5 + 1e-9).all(axis=1)]
        found = super()._optimize_acqf(acqf, best_params)
        if self._observe is not None:
            self._observe(acqf.eval_acqf_no_grad(found).item())
        return found


@cache
def has_hook() -> bool:
    """Whether the GPSampler of this Optuna has the method that `ObservedGPSampler` overrides."""
    method = getattr(GPSampler, _HOOK, None)
    found = method is not None and [*inspect.signature(method).parameters][1:] == [
        "acqf",
        "best_params",
    ]
    if not found:
        logger.warning(
            "Optuna %s has no GPSampler.%s as expected: proposals near the best trial may start "
            "outside of its region, and search.budget.worth ends no search",
            optuna.__version__,
            _HOOK,
        )
    return found
