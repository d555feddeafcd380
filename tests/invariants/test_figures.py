"""The figures of a fixed set of predictions, as literals: what measures a student today measures it the same tomorrow.

Drawn are 600 answers over 12 classes, rounded so that some logits are equal. The literals were written before
the metrics were rewritten; a change of any of them is a change of what published figures mean.
"""

import numpy as np
import pytest
import torch

from hf_reinforce.metrics import (
    ALEXNET_ERRORS,
    group_means,
    mean_corruption_error,
    measure,
    relative_mean_corruption_error,
    reliability,
    resample,
    score,
)

IMAGES, CLASSES = 600, 12
FIGURES = {
    "accuracy": 0.491666667,
    "accuracy_top5": 0.83,
    "nll": 1.750988294,
    "brier": 0.658673348,
    "ece": 0.116150812,
    "ece_adaptive": 0.119681749,
}
RELIABILITY = {
    "confidence": [
        None,
        None,
        0.189248209,
        0.247111536,
        0.304105609,
        0.365375753,
        0.438321654,
        0.496929368,
        0.570633204,
        0.632638729,
        0.699238014,
        0.770191939,
        0.830973092,
        0.904015272,
        0.970407599,
    ],
    "accuracy": [
        None,
        None,
        0.0,
        0.176470588,
        0.166666667,
        0.272727273,
        0.25,
        0.342857143,
        0.391304348,
        0.547169811,
        0.47826087,
        0.72,
        0.705882353,
        0.863636364,
        0.970149254,
    ],
    "count": [0, 0, 3, 17, 48, 66, 64, 70, 46, 53, 46, 25, 51, 44, 67],
}
PER_CLASS = [
    0.480769231,
    0.509803922,
    0.5,
    0.571428571,
    0.479166667,
    0.566666667,
    0.470588235,
    0.433962264,
    0.446808511,
    0.487804878,
    0.431818182,
    0.490196078,
]
# 200 resamples with seed 7: ends of the 95 % interval, and the first resample.
LOW = [0.45325, 0.804958333, 1.615695798, 0.618173573, 0.090932532, 0.096167961]
HIGH = [0.528375, 0.858333333, 1.865186217, 0.696162631, 0.150697217, 0.154494065]
FIRST = [0.513333333, 0.828333333, 1.717230466, 0.643243577, 0.091436202, 0.09727631]
MCE = [0.825130812, 0.83536567]
RELATIVE_MCE = [1.243287188, 0.939241019]


def drawn():
    """Logits float32 [600, 12] and labels int64 [600]."""
    rng = np.random.default_rng(2026)
    labels = rng.integers(0, CLASSES, IMAGES)
    logits = 2 * rng.standard_normal((IMAGES, CLASSES))
    logits[np.arange(IMAGES), labels] += 6 * rng.uniform(size=IMAGES)
    return torch.from_numpy(logits.round(1).astype(np.float32)), torch.from_numpy(labels)


def predictions():
    return score(*drawn())


def close(expected):
    return pytest.approx(expected, abs=1e-6, rel=0, nan_ok=True)


def test_metrics():
    assert len(predictions()) == IMAGES
    assert measure(predictions()) == close(FIGURES)


def test_reliability_diagram():
    diagram = reliability(predictions())
    for name, expected in RELIABILITY.items():
        assert getattr(diagram, name) == [None if value is None else close(value) for value in expected]


def test_accuracy_of_each_class():
    found = predictions()
    assert group_means(found.correct, found.label, CLASSES) == close(PER_CLASS)


def test_bootstrap():
    resamples = resample(predictions(), 200, seed=7)
    low, high = np.quantile(resamples, [0.025, 0.975], axis=0)
    assert (low.tolist(), high.tolist(), resamples[0].tolist()) == (close(LOW), close(HIGH), close(FIRST))


def test_corruption_errors():
    rng = np.random.default_rng(7)
    errors, baseline = (
        {name: np.sort(rng.uniform(least, 1, 5)).round(4).tolist() for name in ALEXNET_ERRORS} for least in (0.3, 0.5)
    )
    found = [mean_corruption_error(errors), mean_corruption_error(errors, baseline)]
    assert found == close(MCE)
    relative = [
        relative_mean_corruption_error(errors, 0.25),
        relative_mean_corruption_error(errors, 0.25, baseline, 0.35),
    ]
    assert relative == close(RELATIVE_MCE)
