"""AutoFT's nine losses against sums written out, each alone and all together."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainers.methods.by_hand import (
    assert_gradient,
    at,
    contrastive,
    cross_entropy,
    log_softmax,
)
from trainers.methods.autoft import AutoFineTuning
from trainers.methods.base import Batch
from trainers.models.student import Outputs

TERMS = ("hinge", "contrastive", "entropy", "mistakes", "l1_norm", "l2_norm", "l1_distance",
         "l2_distance")  # fmt: skip
WEIGHTS = {f"{term}_weight": 0.1 + 0.2 * index for index, term in enumerate(TERMS)}
LABELS = [0, 2, 1, 2]


def by_hand(scores, f, texts, s, now, before, labels):
    """Each loss of logits (B, K), features and texts (B, D) and weights, by its name."""
    found = dict.fromkeys(TERMS, 0.0)
    for row, label in zip(scores, labels, strict=True):
        log_p = log_softmax(row)
        others = [max(0, 1 - row[label] + z) for k, z in enumerate(row) if k != label]
        found["hinge"] += sum(others) / len(labels)
        entropy = -sum(np.exp(a) * a for a in log_p) / len(labels)
        found["entropy"] += entropy
        found["mistakes"] += entropy * (max(row) > row[label])
    found["contrastive"] = contrastive(s * f @ texts.T)
    moved, n = [a - b for a, b in zip(now, before, strict=True)], sum(one.size for one in now)
    for kind, values in (("norm", now), ("distance", moved)):
        found[f"l1_{kind}"] = sum(np.abs(value).sum() for value in values) / n
        found[f"l2_{kind}"] = sum((value**2).sum() for value in values) / n
    return found


@pytest.mark.parametrize("term", [*TERMS, None], ids=str)
def test_losses_and_their_gradients_equal_sums_written_out(term, zero_shot):
    """Each alone, and all with different weights."""
    rng = np.random.default_rng(0)
    f, scores, now, before = (rng.standard_normal(s) for s in ((4, 16), (4, 3), (2, 5), (2, 5)))
    scores[:2] += 3 * np.eye(3)[LABELS[:2]]  # two are right
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    texts = zero_shot.head[LABELS].double().numpy()
    chosen = {k: v if term in (None, k[:-7]) else 0 for k, v in WEIGHTS.items()}
    method = AutoFineTuning(**chosen)
    leaves = [torch.tensor(value, requires_grad=True) for value in (f, scores)]
    weight = nn.Parameter(torch.tensor(now))
    step = at(zero_shot, 1)
    none = leaves[0].new_zeros(0, 4, 16)
    outputs = Outputs(*leaves, none, torch.tensor(7.0, dtype=torch.float64))
    loss = method.loss(Batch(torch.tensor(LABELS), outputs), step)
    loss.total.backward()
    weight.grad = torch.zeros_like(weight)
    with torch.no_grad():
        reg, reg_weight = method.add_penalty([weight.grad], [weight], [torch.tensor(before)])
    total = loss.total.item() + reg_weight * reg.item()

    def of(f, scores, now):
        terms = by_hand(scores, f, texts, 7.0, [now], [before], LABELS)
        weighted = [chosen[f"{term}_weight"] * value for term, value in terms.items()]
        return cross_entropy(scores, LABELS) + sum(weighted)

    assert total == pytest.approx(of(f, scores, now), rel=1e-10)
    assert_gradient(leaves[1], lambda x: of(f, x, now), scores)
    if method.contrastive_weight:
        assert_gradient(leaves[0], lambda x: of(x, scores, now), f)
    if term is None or term.startswith("l"):
        assert_gradient(weight, lambda x: of(f, scores, x), now)
