"""The metrics, each a function of stored predictions and of a weight for each image, and each written once."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_reinforce.metrics.predictions import Predictions

NUM_BINS = 15

Array = NDArray[np.float64]


def mean(values: ArrayLike, weights: Array) -> Array:
    """Weighted mean of values [N]; float64 [...] for weights [..., N]."""
    found: Array = weights @ np.asarray(values, np.float64) / weights.sum(-1)
    return found


def expected_calibration_error(predictions: Predictions, weights: Array, num_bins: int = NUM_BINS) -> Array:
    """Mean over images of |accuracy - confidence| of their bin (Guo et al., ICML 2017), in [0, 1].

    Args:
        predictions: of N images.
        weights: float64 [..., N], >= 0.
        num_bins: M bins of equal width; bin m holds confidences in (m / M, (m + 1) / M].

    Returns:
        float64 [...].
    """
    by_bin = np.zeros((len(predictions), num_bins))
    by_bin[np.arange(len(predictions)), _bins(predictions, num_bins)] = _excess(predictions)
    found: Array = np.abs(weights @ by_bin).sum(-1) / weights.sum(-1)
    return found


def adaptive_calibration_error(predictions: Predictions, weights: Array, num_bins: int = NUM_BINS) -> Array:
    """The calibration error over bins of equal mass (Nguyen and O'Connor, EMNLP 2015), in [0, 1].

    The images, sorted by confidence, are cut into groups whose sizes differ by at most one, larger ones first, as
    `numpy.array_split` does it. Images of equal confidence that a cut divides are shared out in proportion, so the
    order of the images does not matter. Arguments and result as `expected_calibration_error`.
    """
    order = np.argsort(predictions.confidence, kind="stable")
    excess = _excess(predictions)[order]
    ends = np.append(np.flatnonzero(np.diff(predictions.confidence[order])), len(order) - 1)  # of equal confidences
    size, larger = divmod(len(order), num_bins)
    cuts = np.arange(num_bins + 1) * size + np.minimum(np.arange(num_bins + 1), larger)

    def error(own: Array) -> float:
        mass = np.append(0.0, np.cumsum(own[order])[ends])
        summed = np.append(0.0, np.cumsum(own[order] * excess)[ends])
        gaps = np.diff(np.interp(cuts * (mass[-1] / len(order)), mass, summed))
        return float(np.abs(gaps).sum() / mass[-1])

    return np.apply_along_axis(error, -1, weights)


@dataclass(frozen=True)
class Metric:
    """A figure of a classifier.

    Attributes:
        function: of predictions of N images and weights float64 [..., N]; returns float64 [...].
        heading: of its column in tables.
        largest: its largest value; the smallest is 0.
        higher_is_better: whether more is better.
    """

    function: Callable[[Predictions, Array], Array]
    heading: str
    largest: float = 1.0
    higher_is_better: bool = False


METRICS: dict[str, Metric] = {
    "accuracy": Metric(lambda found, weights: mean(found.correct, weights), "top-1 (%)", higher_is_better=True),
    "accuracy_top5": Metric(
        lambda found, weights: mean(found.correct_top5, weights), "top-5 (%)", higher_is_better=True
    ),
    "nll": Metric(lambda found, weights: mean(found.nll, weights), "NLL", np.inf),
    "brier": Metric(lambda found, weights: mean(found.brier, weights), "Brier", 2.0),
    "ece": Metric(expected_calibration_error, "ECE"),
    "ece_adaptive": Metric(adaptive_calibration_error, "adaptive ECE"),
}
"""Metrics by name. A function and a line here add one; the Trainer, the evaluation, its report, the bootstrap and
recipes/compare.py measure whatever stands here."""


def measure(predictions: Predictions, weights: Array | None = None) -> dict[str, float]:
    """The metrics of a dataset.

    Args:
        predictions: of N images, N >= 1.
        weights: float64 [N], how much each image counts, >= 0; None: all the same.

    Returns:
        For each of `METRICS`: `accuracy`, `accuracy_top5` (top min(5, C)), `ece` and `ece_adaptive` in [0, 1], `nll`
        in nats, `brier` in [0, 2].

    Raises:
        ValueError: if there is no image.
    """
    if not len(predictions):
        raise ValueError("Metrics need at least one image, and there is none; name a dataset or a split with rows.")
    weights = np.ones(len(predictions)) if weights is None else weights
    return {name: float(metric.function(predictions, weights)) for name, metric in METRICS.items()}


@dataclass(frozen=True)
class ReliabilityDiagram:
    """Accuracy against confidence, in M bins of the top-1 confidence.

    Attributes:
        confidence: mean confidence of each bin in [0, 1], None where the bin is empty.
        accuracy: share of right predictions of each bin in [0, 1], None where the bin is empty.
        count: images of each bin.
    """

    confidence: list[float | None]
    accuracy: list[float | None]
    count: list[int]


def reliability(predictions: Predictions, num_bins: int = NUM_BINS) -> ReliabilityDiagram:
    """The reliability diagram of predictions, with the bins of `expected_calibration_error`."""
    bins = _bins(predictions, num_bins)
    return ReliabilityDiagram(
        group_means(predictions.confidence, bins, num_bins),
        group_means(predictions.correct, bins, num_bins),
        np.bincount(bins, minlength=num_bins).tolist(),
    )


def group_means(values: ArrayLike, groups: NDArray[np.int64], num_groups: int) -> list[float | None]:
    """The mean of the values [N] of each group; None for a group without any.

    Args:
        values: numbers or bool [N].
        groups: [N], group of each value, in [0, num_groups).
        num_groups: how many there are.
    """
    count = np.bincount(groups, minlength=num_groups)
    total = np.bincount(groups, np.asarray(values, np.float64), minlength=num_groups)
    return [float(own / size) if size else None for own, size in zip(total, count, strict=True)]


def _excess(predictions: Predictions) -> Array:
    """Confidence minus correctness of each image, [N]."""
    return predictions.confidence.astype(np.float64) - predictions.correct


def _bins(predictions: Predictions, num_bins: int) -> NDArray[np.int64]:
    # The edges have the precision of the confidences, so that a float32 1/3 lies on the edge 5/15 and not above it.
    precision = predictions.confidence.dtype.type
    return np.searchsorted(np.arange(1, num_bins, dtype=precision) / precision(num_bins), predictions.confidence)
