"""Accuracy, calibration and robustness of a classifier.

`score` turns the logits of a batch into `Predictions`, a few numbers for each image, and `measure` turns predictions
into figures. Log-probabilities are logits too, so an ensemble is scored by the logarithm of its mean probabilities.
"""

from hf_reinforce.metrics.corruption import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from hf_reinforce.metrics.measures import (
    METRICS,
    NUM_BINS,
    Metric,
    ReliabilityDiagram,
    adaptive_calibration_error,
    expected_calibration_error,
    group_means,
    mean,
    measure,
    reliability,
)
from hf_reinforce.metrics.predictions import Predictions, score

__all__ = [
    "ALEXNET_CLEAN_ERROR",
    "ALEXNET_ERRORS",
    "METRICS",
    "NUM_BINS",
    "Metric",
    "Predictions",
    "ReliabilityDiagram",
    "adaptive_calibration_error",
    "expected_calibration_error",
    "group_means",
    "mean",
    "mean_corruption_error",
    "measure",
    "relative_mean_corruption_error",
    "reliability",
    "score",
]
