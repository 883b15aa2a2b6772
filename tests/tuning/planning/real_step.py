"""A trial with random weights, and the memory and operations of its real steps on a CPU."""

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from trainers.config import TrialConfig
from trainers.loop.setup import Setup
from trainers.loop.training import Training
from trainers.models.zero_shot import load_zero_shot

ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *a, **_: sdpa_flop_count(
        *a[:3]
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *a, **_: (
        sdpa_backward_flop_count(*a[:4])
    ),
}
"""Kernels of CPUs that PyTorch's counter does not know."""


def trial(model, method, batch, **settings):
    """A configuration of one trial, without data."""
    return TrialConfig.model_validate(
        {
            "model": {"name": model},
            "data": {"root": "none", "suite": {"id_domain": "real", "templates": ["a {}."]}},
            "method": {"name": method},
            "optim": {"batch_size": batch},
            "precision": "fp32",
            "zero_shot_cache_gb": 0,
            "eval": {"batch_size": batch},
            **settings,
        }
    )


def measured(config, classes):
    """Peak bytes of the second of two steps, and its operations."""
    names = tuple(f"class {number}" for number in range(classes))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        zero_shot = load_zero_shot(config.model, config.data.rules.prompts(names))
        training = Training(Setup(config, zero_shot, names, torch.device("cpu")))
        size = zero_shot.image_input.size
        for number in range(2):
            views = torch.zeros(config.optim.batch_size, 3, size, size, dtype=torch.uint8)
            labels = torch.arange(len(views)) % classes
            counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
            with record_function(f"step {number}"), counter:
                training.step(views, labels)
    events = sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    live, peak, is_second = 0, 0, False
    for event in events:
        is_second |= event.name() == "step 1"
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live if is_second else 0)
    return peak, counter.get_total_flops()
