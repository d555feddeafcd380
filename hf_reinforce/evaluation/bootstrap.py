"""Bootstrap of the metrics over images: how much each would vary, had other images of the same kind been drawn.

A resample gives every image a weight, the times it was drawn. Accuracy, log-likelihood and Brier score are then
weighted means, and the calibration errors weighted sums by bin, so that no resample is ever written out and a thousand
of 50,000 images take seconds.
"""

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hf_reinforce.evaluation.results import Predictions
from hf_reinforce.metrics import NUM_BINS

METRICS = ("accuracy", "accuracy_top5", "nll", "brier", "ece", "ece_adaptive")
HIGHER_IS_BETTER = frozenset({"accuracy", "accuracy_top5"})
LARGEST = np.array([1, 1, np.inf, 2, 1, 1])
"""The largest value of every metric; the smallest is 0."""

_BLOCK = 5_000_000  # weights held at once, 8 bytes each

Array = NDArray[np.float64]


def measure(predictions: Predictions) -> Array:
    """The metrics of the images as they are; float64 [6] in the order of `METRICS`."""
    found: Array = _Measured(predictions)(np.ones((1, len(predictions))))[0]
    return found


def resample(predictions: Predictions, num_resamples: int, seed: int) -> Array:
    """The metrics of resamples of the images.

    Which images a resample holds depends on the seed and on the rows alone, so the resamples of two models that saw
    the same images are pairs, and so are those of an image's corruptions.

    Args:
        predictions: of one model for one data set, of N images.
        num_resamples: R, >= 1.
        seed: of the random numbers.

    Returns:
        float64 [R, 6], in the order of `METRICS`.
    """
    measured = _Measured(predictions)
    return np.concatenate([measured(weights) for weights in _weights(predictions.row, num_resamples, seed)])


def checksum(rows: NDArray[np.int64]) -> int:
    """A number that is the same for the same rows in the same order; 32 bits."""
    return zlib.crc32(rows.astype("<i8").tobytes())


class _Measured:
    """The metrics of one model as functions of weights [R, N]."""

    def __init__(self, predictions: Predictions) -> None:
        correct = predictions.correct.astype(np.float64)
        excess = predictions.confidence.astype(np.float64) - correct
        # Bins are (m / M, (m + 1) / M], with edges of the precision of the confidences, as in `metrics`.
        edges = np.arange(1, NUM_BINS, dtype=np.float32) / np.float32(NUM_BINS)
        bins = np.zeros((len(predictions), NUM_BINS))
        bins[np.arange(len(predictions)), np.searchsorted(edges, predictions.confidence)] = excess
        means = (correct, predictions.correct_top5, predictions.nll, predictions.brier)
        self._columns = np.column_stack([*means, bins])
        self._order = np.argsort(predictions.confidence, kind="stable")
        self._sorted_excess = excess[self._order]
        ordered = predictions.confidence[self._order]
        # Images of equal confidence that a cut divides are shared out, so only where they end matters.
        self._ends = np.concatenate([[0], np.flatnonzero(np.append(np.diff(ordered), 1)) + 1])
        size, larger = divmod(len(predictions), NUM_BINS)
        self._cuts = np.arange(NUM_BINS + 1) * size + np.minimum(np.arange(NUM_BINS + 1), larger)

    def __call__(self, weights: Array) -> Array:
        size = weights.shape[1]
        sums = weights @ self._columns / size
        adaptive = [self._adaptive(row[self._order]) for row in weights]
        return np.column_stack([sums[:, :4], np.abs(sums[:, 4:]).sum(1), adaptive])

    def _adaptive(self, weights: Array) -> float:
        """As `metrics.adaptive_calibration_error`; the weights are in the order of the confidences."""
        drawn = np.concatenate([[0.0], np.cumsum(weights)])[self._ends]
        excess = np.concatenate([[0.0], np.cumsum(weights * self._sorted_excess)])[self._ends]
        gaps = np.diff(np.interp(self._cuts, drawn, excess))
        return float(np.abs(gaps).sum() / self._cuts[-1])


def _weights(rows: NDArray[np.int64], num_resamples: int, seed: int) -> Iterator[Array]:
    """How often each image is in each resample: blocks of float64 [R', N] whose rows sum to N."""
    size = len(rows)
    rng = np.random.default_rng([seed, checksum(rows)])
    block = max(1, _BLOCK // size)
    for start in range(0, num_resamples, block):
        weights = np.empty((min(block, num_resamples - start), size))
        for row in weights:
            row[:] = np.bincount(rng.integers(0, size, size), minlength=size)
        yield weights
