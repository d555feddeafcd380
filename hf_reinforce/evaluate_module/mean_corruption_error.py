"""Mean corruption error as an `evaluate` module: `evaluate.load(path of this file)`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_reinforce.metrics import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    corruption_errors,
    mean_corruption_error,
    relative_mean_corruption_error,
)

_DESCRIPTION = "Errors under corruptions, relative to those of a baseline: AlexNet on ImageNet-C unless given."
_CITATION = (
    "Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, "
    "ICLR 2019."
)
_INPUTS = """
Args:
    predictions: predicted class indices.
    references: class indices.
    corruption: name of the corruption of each sample, such as gaussian_noise.
    severity: its severity, from 1.
    clean_error: share of wrong predictions without corruption, for relative_mce.
    baseline: {corruption: [error of the baseline at severity 1, at severity 2, ...]}.
    baseline_clean: error of the baseline without corruption.
Returns:
    mce; relative_mce with a clean_error; corruption_errors: {corruption: its part of mce}. 1 is the baseline's.
"""


class MeanCorruptionError(evaluate.Metric):  # type: ignore[misc]
    """`mean_corruption_error` behind the interface of `evaluate`."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                    "corruption": datasets.Value("string"),
                    "severity": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        corruption: Any,
        severity: Any,
        clean_error: float | None = None,
        baseline: Any = ALEXNET_ERRORS,
        baseline_clean: float = ALEXNET_CLEAN_ERROR,
    ) -> dict[str, Any]:
        wrong = np.not_equal(predictions, references)
        names, levels = np.asarray(corruption), np.asarray(severity)
        errors = {}
        for name in map(str, np.unique(names)):
            found = np.unique(levels[names == name])
            if not np.array_equal(found, np.arange(1, len(found) + 1)):
                raise ValueError(f"{name!r} has severities {found.tolist()}; pass samples of each severity from 1 on.")
            errors[name] = [float(wrong[(names == name) & (levels == level)].mean()) for level in found]
        result: dict[str, Any] = {
            "mce": mean_corruption_error(errors, baseline),
            "corruption_errors": corruption_errors(errors, baseline),
        }
        if clean_error is not None:
            relative = relative_mean_corruption_error(errors, clean_error, baseline, baseline_clean)
            result["relative_mce"] = relative
        return result
