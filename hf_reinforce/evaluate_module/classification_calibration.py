"""Accuracy and calibration as an `evaluate` module: `evaluate.load(path of this file)`."""

from typing import Any

import datasets
import evaluate
import torch

from hf_reinforce.metrics import measure, score

_INPUTS = """
Args:
    predictions: log-probabilities or logits, one list of C floats for each sample.
    references: class indices.
Returns:
    accuracy, accuracy_top5, ece, ece_adaptive in [0, 1]; nll in nats; brier in [0, 2]; num_samples.
"""


class ClassificationCalibration(evaluate.Metric):  # type: ignore[misc]
    """`hf_reinforce.metrics.measure` behind the interface of `evaluate`."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="Accuracy, likelihood, Brier score, and calibration errors over bins of equal width and mass.",
            citation="Guo et al., On Calibration of Modern Neural Networks, ICML 2017.",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        scores = score(torch.as_tensor(predictions), torch.as_tensor(references))
        return {**measure(scores), "num_samples": float(len(scores))}
