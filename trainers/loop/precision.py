"""Number formats of the encoders: float32, or 16 bits with weights kept in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch.amp.grad_scaler import GradScaler

from trainers.config import PrecisionName


@dataclass(frozen=True)
class Precision:
    """The configuration's `precision` on a device."""

    name: PrecisionName
    """`auto` is bfloat16 on GPUs that have it, and float32 elsewhere."""
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the encoders' matrix products."""
        if self.name == "auto":
            if self.device.type != "cuda":
                return torch.float32
            # GPUs before Ampere emulate bfloat16, which is slower than float32.
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if has_bf16 else torch.float32
        sixteen_bits = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return sixteen_bits.get(self.name, torch.float32)

    def autocast(self) -> AbstractContextManager[object]:
        """Within the block, suitable operations are computed in `dtype`."""
        lower = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if lower else None, enabled=lower)

    def scaler(self) -> GradScaler:
        """Scales losses so that gradients do not vanish in float16; without effect otherwise.

        A step whose gradients overflow is skipped, and the scale is halved.
        """
        return GradScaler(self.device.type, enabled=self.dtype == torch.float16)
