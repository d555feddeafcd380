from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

import hf_reinforce
from hf_reinforce.metrics import (
    ALEXNET_ERRORS,
    ClassificationMetrics,
    PerClassAccuracy,
    mean_corruption_error,
    relative_mean_corruption_error,
)

FOLDER = Path(hf_reinforce.__file__).parent / "evaluate_module"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def compute(name, inputs, **options):
    """The module's answer, accumulated in batches, as evaluate does it."""
    module = evaluate.load(str(FOLDER / f"{name}.py"))
    for start in range(0, len(inputs["references"]), 16):
        module.add_batch(**{key: values[start : start + 16] for key, values in inputs.items()})
    return module.compute(**options)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(40, 7), torch.randint(6, (40,))


@pytest.mark.parametrize("num_bins", [15, 4])
def test_accuracy_and_calibration(batch, num_bins):
    logits, labels = batch
    found = compute(
        "classification_calibration",
        {"predictions": logits.tolist(), "references": labels.tolist()},
        **({} if num_bins == 15 else {"num_bins": num_bins}),
    )
    expected = ClassificationMetrics(num_bins)
    expected.update(logits, labels)
    assert found == pytest.approx(expected.compute(), abs=1e-6)
    assert found["num_samples"] == 40


def test_per_class_accuracy(batch):
    logits, labels = batch
    found = compute("per_class_accuracy", {"predictions": logits.tolist(), "references": labels.tolist()})
    expected = PerClassAccuracy(7)
    expected.update(logits, labels)
    np.testing.assert_allclose(found["per_class_accuracy"], expected.compute())


def test_mean_corruption_error():
    generator = np.random.default_rng(0)
    inputs = {"predictions": [], "references": [], "corruption": [], "severity": []}
    errors = {}
    for name in ("fog", "snow"):
        for severity in (1, 2, 3, 4, 5):
            labels, predictions = generator.integers(3, size=(2, 20))
            errors.setdefault(name, []).append(float((labels != predictions).mean()))
            inputs["predictions"] += predictions.tolist()
            inputs["references"] += labels.tolist()
            inputs["corruption"] += [name] * 20
            inputs["severity"] += [severity] * 20
    found = compute("mean_corruption_error", inputs, clean_error=0.3)
    assert found["mce"] == pytest.approx(mean_corruption_error(errors))
    assert found["relative_mce"] == pytest.approx(relative_mean_corruption_error(errors, 0.3))
    assert found["corruption_errors"]["fog"] == pytest.approx(sum(errors["fog"]) / sum(ALEXNET_ERRORS["fog"]))
    own = compute("mean_corruption_error", inputs, baseline=errors)
    assert own["mce"] == pytest.approx(1.0) and "relative_mce" not in own


def test_mean_corruption_error_without_a_severity():
    inputs = {"predictions": [0, 1], "references": [0, 0], "corruption": ["fog", "fog"], "severity": [1, 3]}
    with pytest.raises(ValueError, match=r"'fog' has severities \[1, 3\]; pass samples of each severity from 1 on"):
        compute("mean_corruption_error", inputs)
