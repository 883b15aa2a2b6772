"""The ready search spaces, by name: one for each fine-tuning method, and its variants.

A search starts around the trial's own values, see `tuning.config.prior`. The defaults of a
method's settings are those of its authors where they were found in their paper or code; comments
name the source and, for reference, the authors' other settings. All ranges are ours: no author
publishes the ranges that were searched.

Plain fine-tuning (regularisation weight 0) lies in no range: it runs beside each search as a
reference.
"""

from __future__ import annotations

from search_spaces.distributions import Distribution, Float, Int
from search_spaces.space import SearchSpace

# Learning rate of AdamW for all methods that train the whole image encoder.
LR = Float(low=1e-6, high=1e-3, log=True)
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


_LIPSUM_FT: dict[str, Distribution] = {
    "method.reg_weight": REG_WEIGHT,
    # Tokens of a random text, without its start and end tokens.
    "method.text_length": Int(low=2, high=24, log=True),
    "optim.lr": LR,
}

METHODS: dict[str, SearchSpace] = {
    # Plain fine-tuning. The Lipsum-FT paper (arXiv 2404.00860) trains with lr 1e-5.
    "ft": SearchSpace(parameters={"optim.lr": LR}),
    # Kumar, Raghunathan, Jones, Ma, Liang, "Fine-Tuning can Distort Pretrained Features and
    # Underperform Out-of-Distribution", ICLR 2022, arXiv 2202.10054. The authors' code trains with
    # SGD (head: 5 epochs at 0.01, 0.03 or 0.1), which does not carry over to AdamW, so the
    # defaults are ours too.
    "lp_ft": SearchSpace(
        parameters={
            # Share of all steps in which only the head is trained, and its learning rate there.
            "method.probe_fraction": Float(low=0.05, high=0.5),
            "method.probe_lr": Float(low=1e-5, high=1e-1, log=True),
            "optim.lr": LR,
        }
    ),
    # Exponential moving average of the weights of plain fine-tuning, a baseline of the Lipsum-FT
    # paper; the decay used there was not found. 0.999 averages over about 1,000 steps. Shorter
    # searches need a smaller decay: until then the average is close to the zero-shot model.
    "ema": SearchSpace(parameters={"method.ema_decay": EMA_DECAY, "optim.lr": LR}),
    # Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv 2109.01903. The
    # authors recommend alpha 0.5 if nothing is known about the shift (0 is the zero-shot model, 1
    # plain fine-tuning). They train with lr 3e-5, weight decay 0.1, batches of 512, 500 warm-up
    # steps and 10 epochs.
    "wise_ft": SearchSpace(parameters={"method.alpha": ALPHA, "optim.lr": LR}),
    # Tian et al., "Trainable Projected Gradient Method for Robust Fine-Tuning", CVPR 2023, arXiv
    # 2303.10720. The authors' code learns the projection radii with Adam at 1e-2, in units of the
    # distance that a weight has moved; here they are shares of that distance. At 0.1 the radii
    # cross their whole range in a few steps. The learning rate used for CLIP was not found.
    "tpgm": SearchSpace(
        parameters={"method.projection_lr": Float(low=1e-3, high=0.1, log=True), "optim.lr": LR}
    ),
    # Li, Grandvalet, Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional
    # Networks", ICML 2018, arXiv 1802.01483. The code of LP-FT's authors uses 0.01 (sum of squares,
    # no factor 1/2) with other data and models; the weight used for CLIP was not found.
    "l2_sp": SearchSpace(
        parameters={"method.reg_weight": Float(low=1e-5, high=10.0, log=True), "optim.lr": LR}
    ),
    # Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, with
    # the zero-shot model as the teacher, a baseline of the Lipsum-FT paper. The weight used there
    # was not found.
    "kd": SearchSpace(parameters={"method.reg_weight": REG_WEIGHT, "optim.lr": LR}),
    # Mao et al., "Context-Aware Robust Fine-Tuning", IJCV 2024, arXiv 2211.16175. The authors' code
    # was not found; weight 1 is from a third-party implementation, not checked against the paper.
    "car_ft": SearchSpace(parameters={"method.reg_weight": REG_WEIGHT, "optim.lr": LR}),
    # Nam, Heo, Lee, "Lipsum-FT: Robust Fine-Tuning of Zero-Shot Models Using Random Text Guidance",
    # ICLR 2024, arXiv 2404.00860. Weight 1 and texts of 8 tokens are the paper's, as is lr 1e-5.
    "lipsum_ft": SearchSpace(parameters=_LIPSUM_FT),
    # Goyal, Kumar, Garg, Kolter, Raghunathan, "Finetune like you pretrain: Improved finetuning of
    # zero-shot vision models", CVPR 2023, arXiv 2212.00638. The authors' code on ImageNet: lr 1e-5,
    # weight decay 0.1, batches of 512, 500 warm-up steps, 10 epochs.
    "flyp": SearchSpace(parameters={"optim.lr": LR}),
    # Kim et al., "StarFT: Robust Fine-tuning of Zero-shot Models via Spuriosity Alignment", IJCAI
    # 2025, arXiv 2505.13232. The authors' code: weight 0.5 (falling to 0 over the run), lr 1e-5,
    # weight decay 0.1, batches of 512, 500 warm-up steps, 10 epochs.
    "star_ft": SearchSpace(
        parameters={"method.reg_weight": Float(low=0.01, high=10.0, log=True), "optim.lr": LR}
    ),
    # Oh et al., "Towards Calibrated Robust Fine-Tuning of Vision-Language Models", NeurIPS 2024,
    # arXiv 2311.01723. The authors' code: weights 0.2 and 1.5, lr 1e-5, weight decay 0.1, batches
    # of 512, 500 warm-up steps, 10 epochs.
    "carot": SearchSpace(
        parameters={
            "method.orthogonality_weight": Float(low=0.01, high=10.0, log=True),
            "method.distillation_weight": Float(low=0.05, high=50.0, log=True),
            "optim.lr": LR,
        }
    ),
    # Tian et al., "Rethinking Weight Decay for Robust Fine-Tuning of Foundation Models", NeurIPS
    # 2024, arXiv 2411.01713. Strength 1 takes back what a step has added to the distance.
    "spd": SearchSpace(
        parameters={"method.strength": Float(low=0.1, high=10.0, log=True), "optim.lr": LR}
    ),
    # Choi et al., "AutoFT: Robust Fine-Tuning by Optimizing Hyperparameters on OOD Data", 2024,
    # arXiv 2401.10220. The range of the weights is that of the authors' code.
    "autoft": SearchSpace(
        parameters={
            **{f"method.{term}_weight": _LOSS_WEIGHT for term in _AUTOFT_TERMS},
            "optim.lr": LR,
        }
    ),
    # Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685.
    # Changes of low rank start at zero, so their learning rates are larger; rank 8 and 5e-4 are
    # ours.
    "lora": SearchSpace(
        parameters={
            "method.rank": Int(low=1, high=64, log=True),
            "optim.lr": Float(low=1e-5, high=1e-2, log=True),
        },
        initial_points=[{"method.rank": 8, "optim.lr": 5e-4}],
    ),
    # Kim et al., "Efficient and Versatile Robust Fine-Tuning of Zero-shot Models", ECCV 2024, arXiv
    # 2408.05749. The authors' code on ImageNet: drop rate 0.2, alpha 0.5 (0 is the zero-shot model,
    # 1 the full adapters), lr 5e-4, decay 0.999, weight decay 0, batches of 512, 500 warm-up steps,
    # 10 epochs. Only the adapters are trained, from zero, so their learning rates are larger. Their
    # moving average is kept and starts at zero as well: in searches much shorter than 1,000 steps,
    # decay 0.999 leaves the zero-shot model nearly unchanged.
    "r_adapter": SearchSpace(
        parameters={
            "method.drop_rate": Float(low=0.0, high=0.5),
            "method.alpha": ALPHA,
            "optim.lr": Float(low=1e-5, high=1e-2, log=True),
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

SPACES: dict[str, SearchSpace] = {
    **METHODS,
    # The number of random texts in a step is searched too (80 in the paper).
    "lipsum_ft_text_count": SearchSpace(
        parameters={**_LIPSUM_FT, "method.text_count": Int(low=8, high=256, log=True)}
    ),
}
"""All ready spaces, by the name used in `search.space.name`."""
