"""The measures of a classifier in NumPy, image by image, in float64."""

import numpy as np

BINS = 15


def probabilities(logits):
    scaled = logits.astype(np.float64)
    p = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def binned_error(correct, confidence):
    """The calibration error in percent of predictions, right or wrong, with a confidence each."""
    error = 0.0
    for n in range(BINS):
        inside = (confidence >= n / BINS) & (confidence < (n + 1) / BINS)
        if n == BINS - 1:
            inside |= confidence == 1
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return float(100 * error)


def measures(logits, labels):
    p = probabilities(logits)
    right = p.argmax(axis=1) == labels
    of_classes = [right[labels == label].mean() for label in np.unique(labels)]
    return {
        "acc": float(100 * right.mean()),
        "class_acc": float(100 * np.mean(of_classes)),
        "nll": float(-np.log(p[np.arange(len(labels)), labels]).mean()),
        "ece": binned_error(right, p.max(axis=1)),
    }
