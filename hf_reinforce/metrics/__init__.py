"""Accuracy, calibration and robustness of a classifier.

Pure functions, and accumulators over batches that never hold logits and add up over processes. A metric that is a mean
over samples is one line in `MEAN_METRICS`; what it needs of the logits is a field of `SampleScores`. Log-probabilities
are logits too, so an ensemble of teachers is scored by the logarithm of its mean probabilities.
"""

from hf_reinforce.metrics.calibration import (
    NUM_BINS,
    Reliability,
    adaptive_calibration_error,
    bin_confidences,
    calibration_bins,
    expected_calibration_error,
)
from hf_reinforce.metrics.classification import MEAN_METRICS, ClassificationMetrics
from hf_reinforce.metrics.corruption import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    corruption_errors,
    mean_corruption_error,
    relative_corruption_errors,
    relative_mean_corruption_error,
)
from hf_reinforce.metrics.scores import (
    SampleScores,
    brier_score,
    label_rank,
    negative_log_likelihood,
    score_samples,
    top_k_correct,
)

__all__ = [
    "ALEXNET_CLEAN_ERROR",
    "ALEXNET_ERRORS",
    "MEAN_METRICS",
    "NUM_BINS",
    "ClassificationMetrics",
    "Reliability",
    "SampleScores",
    "adaptive_calibration_error",
    "bin_confidences",
    "brier_score",
    "calibration_bins",
    "corruption_errors",
    "expected_calibration_error",
    "label_rank",
    "mean_corruption_error",
    "negative_log_likelihood",
    "relative_corruption_errors",
    "relative_mean_corruption_error",
    "score_samples",
    "top_k_correct",
]
