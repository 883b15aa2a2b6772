"""A GPU that fails, as a plug-in: plain fine-tuning that raises on one node of the cluster."""

from pathlib import Path
from typing import Literal

import ray
import torch

from trainers.methods import register_method
from trainers.methods.base import Method


@register_method("sick_gpu")
class SickGpu(Method):
    """FT on a cluster of which one node has a broken GPU."""

    name: Literal["sick_gpu"] = "sick_gpu"
    log: str = ""
    """File of one line for each failure: the node, which is the first one that trains."""

    def loss(self, batch, step):
        """Cross-entropy."""
        log, here = Path(self.log), ray.get_runtime_context().get_node_id()
        if not log.exists() or log.read_text().startswith(here):
            with log.open("a") as file:
                file.write(f"{here}\n")
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        return super().loss(batch, step)
