"""Bootstrap of the metrics over images: how much each would vary, had other images of the same kind been drawn.

A resample gives every image a weight, the times it was drawn, so that no resample is ever written out and a thousand
of 50,000 images take seconds.
"""

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hf_reinforce.metrics import METRICS, Predictions

_BLOCK = 5_000_000  # weights held at once, 8 bytes each


def resample(predictions: Predictions, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """The metrics of resamples of the images.

    Which images a resample holds depends on the seed and on the rows alone, so the resamples of two models that saw
    the same images are pairs, and so are those of an image's corruptions.

    Args:
        predictions: of one model for one dataset, of N images.
        num_resamples: R, >= 1.
        seed: of the random numbers.

    Returns:
        float64 [R, number of metrics], in the order of `METRICS`.
    """
    blocks = _weights(predictions.row, num_resamples, seed)
    metrics = METRICS.values()
    return np.concatenate([np.column_stack([m.function(predictions, weights) for m in metrics]) for weights in blocks])


def checksum(rows: NDArray[np.int64]) -> int:
    """A number that is the same for the same rows in the same order; 32 bits."""
    return zlib.crc32(rows.astype("<i8").tobytes())


def _weights(rows: NDArray[np.int64], num_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each image is in each resample: blocks of float64 [R', N] whose rows sum to N."""
    size = len(rows)
    rng = np.random.default_rng([seed, checksum(rows)])
    block = max(1, _BLOCK // size)
    for start in range(0, num_resamples, block):
        weights = np.empty((min(block, num_resamples - start), size))
        for row in weights:
            row[:] = np.bincount(rng.integers(0, size, size), minlength=size)
        yield weights
