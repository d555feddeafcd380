"""Which classes are taken for which others, and how that differs between two students."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_reinforce.evaluation.bootstrap import Array
from hf_reinforce.evaluation.results import Predictions

PAIRS = 10
"""Pairs of classes that are named."""
LEAST = 2
"""Images that a pair, or its change, must have to be named: one image is chance."""


@dataclass(frozen=True)
class ChangedPair:
    """A pair of classes that is confused more or less often than by the first group.

    Attributes:
        label: name of the right class.
        prediction: name of the class it was taken for.
        baseline: images that the first group confused so, mean over its runs.
        found: images that the other group confused so.
    """

    label: str
    prediction: str
    baseline: float
    found: float


def confusions(predictions: Predictions, num_classes: int) -> Array:
    """How many images of each class were taken for each other one; float64 [C, C], [label, prediction]."""
    places = predictions.label * num_classes + predictions.prediction
    counts = np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.float64)
    np.fill_diagonal(counts, 0)
    return counts


def largest_changes(before: Array, after: Array, names: Sequence[str], sign: int) -> list[ChangedPair]:
    """The pairs with the largest change in a direction, `LEAST` or more; of equal ones, those of the first classes."""
    change = sign * (after - before)
    places = [divmod(int(place), len(names)) for place in np.argsort(-change, axis=None, kind="stable")[:PAIRS]]
    return [
        ChangedPair(names[label], names[taken], float(before[label, taken]), float(after[label, taken]))
        for label, taken in places
        if change[label, taken] >= LEAST
    ]
