"""Accuracy of each class as an `evaluate` module: `evaluate.load(path of this file)`."""

from typing import Any

import datasets
import evaluate
import torch

from hf_reinforce.metrics import PerClassAccuracy

_DESCRIPTION = "Top-1 accuracy of each class."
_INPUTS = """
Args:
    predictions: log-probabilities or logits, one list of C floats for each sample.
    references: class indices.
Returns:
    per_class_accuracy: C values in [0, 1], nan for a class without samples.
"""


class PerClass(evaluate.Metric):  # type: ignore[misc]
    """`PerClassAccuracy` behind the interface of `evaluate`."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, list[float]]:
        logits = torch.as_tensor(predictions)
        accuracy = PerClassAccuracy(logits.shape[-1])
        accuracy.update(logits, torch.as_tensor(references))
        return {"per_class_accuracy": accuracy.compute().tolist()}
