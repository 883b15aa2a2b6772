"""The state of a process that a training may depend on and may change, beside its own objects."""

from __future__ import annotations

import gc
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def restored_state() -> Iterator[None]:
    """After the block, the process is as it was before: the next trial starts as in a fresh one.

    Restored are the generators of Python, NumPy and PyTorch, the types and the precision of
    PyTorch, the environment and the filters of warnings. Compiled graphs and objects that nothing
    refers to are freed. Other settings, and what a plug-in keeps in its own modules, stay.
    """
    environment = dict(os.environ)
    python, of_numpy = random.getstate(), np.random.get_state()
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    # Reading a generator initialises CUDA, which takes memory on each GPU, and fails with a driver
    # that is too old, although `device_count` counts the GPUs then, too.
    gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(gpus):
            yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        random.setstate(python)
        np.random.set_state(of_numpy)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_grad_enabled(True)
        if "torch._dynamo" in sys.modules:  # otherwise nothing was compiled
            torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
