"""Accuracy and calibration as an `evaluate` module: `evaluate.load(path of this file)`."""

from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from hf_reinforce.metrics import NUM_BINS, adaptive_calibration_error, expected_calibration_error, measure, score

_DESCRIPTION = (
    "Top-1 and top-5 accuracy, negative log-likelihood, Brier score, and the expected calibration error over bins of "
    "equal width and of equal mass."
)
_CITATION = "Guo et al., On Calibration of Modern Neural Networks, ICML 2017."
_INPUTS = """
Args:
    predictions: log-probabilities or logits, one list of C floats for each sample.
    references: class indices.
    num_bins: bins of the calibration errors.
Returns:
    accuracy, accuracy_top5, ece, ece_adaptive in [0, 1]; nll in nats; brier in [0, 2]; num_samples.
"""


class ClassificationCalibration(evaluate.Metric):  # type: ignore[misc]
    """`hf_reinforce.metrics.measure` behind the interface of `evaluate`."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any, num_bins: int = NUM_BINS) -> dict[str, float]:
        scores = score(torch.as_tensor(predictions), torch.as_tensor(references))
        weights, errors = np.ones(len(scores)), {}
        for name, error in (("ece", expected_calibration_error), ("ece_adaptive", adaptive_calibration_error)):
            errors[name] = float(error(scores, weights, num_bins))
        return {**measure(scores), **errors, "num_samples": float(len(scores))}
