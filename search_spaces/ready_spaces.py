"""The ready search spaces, by name: one for each fine-tuning method, and its variants.

A search starts around the trial's own values, see `tuning.config.prior`. The defaults of a
method's settings are those of its authors where they were found in their paper or code, which the
module of the method names; comments have the authors' other settings. All ranges are ours: no
author publishes the ranges that were searched.

Plain fine-tuning (regularisation weight 0) lies in no range: it runs beside each search as a
reference.
"""

from __future__ import annotations

from search_spaces.distributions import Distribution, Float, Int
from search_spaces.space import SearchSpace

# Learning rate of AdamW for all methods that train the whole image encoder. A search takes `around`
# its own `trial.optim.lr`.
LR = Float(low=1e-6, high=1e-4, log=True)
# Of what starts at zero.
LR_FROM_ZERO = Float(low=1e-5, high=1e-2, log=True)
# Share of the moving average that each step keeps. A log scale of 1 - decay would be more natural,
# but a range of the decay itself cannot have it.
EMA_DECAY = Float(low=0.9, high=0.9999)
REG_WEIGHT = Float(low=0.01, high=100.0, log=True)
ALPHA = Float(low=0.0, high=1.0)
_LOSS_WEIGHT = Float(low=1e-4, high=10.0, log=True)
_AUTOFT_TERMS = (
    *("hinge", "contrastive", "entropy", "mistakes"),
    *("l1_norm", "l2_norm", "l1_distance", "l2_distance"),
)


def around(lr: float) -> Float:
    """The range of a learning rate whose magnitude is known: a decade to both sides."""
    return Float(low=float(f"{lr / 10:.6g}"), high=float(f"{lr * 10:.6g}"), log=True)


def _space(**of_method: Distribution) -> SearchSpace:
    """The settings of a method by name, and the learning rate of what trains the image encoder."""
    settings = {f"method.{name}": parameter for name, parameter in of_method.items()}
    return SearchSpace(parameters={**settings, "optim.lr": LR})


SPACES: dict[str, SearchSpace] = {
    # The Lipsum-FT paper trains with lr 1e-5.
    "ft": _space(),
    # The authors' code trains with SGD (head: 5 epochs at 0.01, 0.03 or 0.1), which does not carry
    # over to AdamW.
    "lp_ft": _space(
        probe_fraction=Float(low=0.05, high=0.5), probe_lr=Float(low=1e-5, high=1e-1, log=True)
    ),
    # 0.999 averages over about 1,000 steps. Shorter searches need a smaller decay: until then the
    # average is close to the zero-shot model.
    "ema": _space(ema_decay=EMA_DECAY),
    # The authors train with lr 3e-5, weight decay 0.1, batches of 512, 500 warm-up steps and 10
    # epochs.
    "wise_ft": _space(alpha=ALPHA),
    # At 0.1 the radii cross their whole range in a few steps.
    "tpgm": _space(projection_lr=Float(low=1e-3, high=0.1, log=True)),
    "l2_sp": _space(reg_weight=Float(low=1e-5, high=10.0, log=True)),
    "kd": _space(reg_weight=REG_WEIGHT),
    "car_ft": _space(reg_weight=REG_WEIGHT),
    # Weight 1 and texts of 8 tokens are the paper's, as is lr 1e-5. The length is that of a random
    # text without its start and end tokens.
    "lipsum_ft": _space(reg_weight=REG_WEIGHT, text_length=Int(low=2, high=24, log=True)),
    # The authors' code on ImageNet, as that of StarFT and CaRot: lr 1e-5, weight decay 0.1, batches
    # of 512, 500 warm-up steps, 10 epochs.
    "flyp": _space(),
    "star_ft": _space(reg_weight=Float(low=0.01, high=10.0, log=True)),
    "carot": _space(
        orthogonality_weight=Float(low=0.01, high=10.0, log=True),
        distillation_weight=Float(low=0.05, high=50.0, log=True),
    ),
    "spd": _space(strength=Float(low=0.1, high=10.0, log=True)),
    # The range of the weights is that of the authors' code.
    "autoft": _space(**{f"{term}_weight": _LOSS_WEIGHT for term in _AUTOFT_TERMS}),
    # Changes of low rank start at zero, so their learning rates are larger; rank 8 and 5e-4 are
    # ours.
    "lora": SearchSpace(
        parameters={"method.rank": Int(low=1, high=64, log=True), "optim.lr": LR_FROM_ZERO},
        initial_points=[{"method.rank": 8, "optim.lr": 5e-4}],
    ),
    # The authors' code on ImageNet: drop rate 0.2, alpha 0.5, lr 5e-4, decay 0.999, weight decay 0,
    # batches of 512, 500 warm-up steps, 10 epochs. The adapters and their moving average start at
    # zero: in searches much shorter than 1,000 steps, decay 0.999 leaves the zero-shot model nearly
    # unchanged.
    "r_adapter": SearchSpace(
        parameters={
            "method.drop_rate": Float(low=0.0, high=0.5),
            "method.alpha": ALPHA,
            "optim.lr": LR_FROM_ZERO,
            "method.ema_decay": EMA_DECAY,
        },
        initial_points=[
            {
                "method.drop_rate": 0.2,
                "method.alpha": 0.5,
                "optim.lr": 5e-4,
                "method.ema_decay": 0.999,
            }
        ],
    ),
}
"""The ready space of each fine-tuning method, by the method's name."""
