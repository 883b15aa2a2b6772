"""The measures of a classifier in NumPy, image by image, in float64."""

import numpy as np

BINS = 15


def probabilities(logits):
    scaled = logits.astype(np.float64)
    p = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def nll(logits, labels):
    p = probabilities(logits)
    return float(-np.log(p[np.arange(len(labels)), labels]).mean())


def ece(logits, labels):
    """In percent."""
    p = probabilities(logits)
    return binned_error(p.argmax(axis=1) == labels, p.max(axis=1))


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


def class_acc(logits, labels):
    """In percent, over the classes that occur."""
    right = logits.argmax(axis=1) == labels
    return float(100 * np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def measures(logits, labels):
    return {
        "acc": float(100 * (logits.argmax(axis=1) == labels).mean()),
        "class_acc": class_acc(logits, labels),
        "nll": nll(logits, labels),
        "ece": ece(logits, labels),
    }
