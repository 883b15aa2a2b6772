"""The state of a process that a training may depend on and may change, beside its own objects."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

_FLAGS: Final = (
    (torch.backends.cudnn, "enabled"),
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    (torch.utils.deterministic, "fill_uninitialized_memory"),
    (logging.root.manager, "disable"),
)
"""Settings that are attributes."""


@contextmanager
def restored_state() -> Iterator[None]:
    """After the block, the process is as it was before: the next trial starts as in a fresh one.

    Restored are the generators of Python, NumPy and PyTorch, the settings of PyTorch, the number of
    its threads, the environment, the working folder and the filters of warnings. Compiled graphs
    and objects that nothing refers to are freed. What a plug-in keeps in its own modules stays.
    """
    restore = _recorded()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for undo in restore:
            undo()
        if "torch._dynamo" in sys.modules:  # otherwise nothing was compiled
            torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _recorded() -> list[Callable[[], Any]]:
    """Calls that restore the present state."""
    environment = dict(os.environ)

    def restore_environment() -> None:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)

    return [
        restore_environment,
        partial(os.chdir, Path.cwd()),
        partial(random.setstate, random.getstate()),
        partial(np.random.set_state, np.random.get_state()),
        partial(torch.set_rng_state, torch.get_rng_state()),
        *(
            partial(torch.cuda.set_rng_state, torch.cuda.get_rng_state(device), device)
            # Reading a generator initialises CUDA, which takes memory on each GPU, and fails with a
            # driver that is too old, although `device_count` counts the GPUs then, too.
            for device in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
        ),
        partial(torch.set_grad_enabled, torch.is_grad_enabled()),
        partial(torch.set_default_device, None),  # the workers set none
        *(
            partial(getattr(torch.backends.cuda, f"enable_{kind}_sdp"), enabled())
            for kind in ("flash", "mem_efficient", "math", "cudnn")
            for enabled in (getattr(torch.backends.cuda, f"{kind}_sdp_enabled"),)
        ),
        partial(torch.set_num_threads, torch.get_num_threads()),
        partial(torch.set_default_dtype, torch.get_default_dtype()),
        partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()),
        partial(
            torch.use_deterministic_algorithms,
            torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        *(partial(setattr, owner, name, getattr(owner, name)) for owner, name in _FLAGS),
    ]
