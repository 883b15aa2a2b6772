"""A method that hangs, as a plug-in: plain fine-tuning whose fifth loss may take for ever.

Only the last worker waits there. Others wait for it in a collective operation.
"""

import threading
from pathlib import Path
from typing import Literal

from trainers.distributed import world
from trainers.methods import register_method
from trainers.methods.base import Method


@register_method("hangs")
class Hangs(Method):
    """FT, whose training thread may wait for something that never happens."""

    name: Literal["hangs"] = "hangs"
    waits: Literal["never", "once", "always"] = "never"
    file: str = ""
    """Exists once a training with `once` has waited."""

    def loss(self, batch, step):
        """Cross-entropy."""
        rank, workers = world()
        if self.waits != "never" and step.number == 4 and rank == workers - 1:
            waited = Path(f"{self.file}-{self.waits}")
            if self.waits == "always" or not waited.exists():
                waited.touch()
                threading.Event().wait()
        return super().loss(batch, step)
