"""Fine-tuning methods: what is trained, what is minimised, and which weights are kept.

One module for each method, named as in the configuration; `base` has the interface and `registry`
the table of all methods. Importing this package registers the shipped methods.
"""

from trainers.methods import (  # noqa: F401  to register them
    autoft,
    car_ft,
    carot,
    ema,
    flyp,
    ft,
    kd,
    l2_sp,
    lipsum_ft,
    lora,
    lp_ft,
    r_adapter,
    spd,
    star_ft,
    tpgm,
    wise_ft,
)
from trainers.methods.registry import register_method

__all__ = ["register_method"]
