from pathlib import Path

import evaluate
import pytest
import torch

import hf_reinforce
from hf_reinforce.metrics import ClassificationMetrics

MODULE = Path(hf_reinforce.__file__).parent / "evaluate_module" / "classification_calibration.py"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("options", [{}, {"num_bins": 4}])
def test_accuracy_and_calibration(options):
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 7), torch.randint(6, (40,))
    module = evaluate.load(str(MODULE))
    for start in range(0, 40, 16):
        module.add_batch(
            predictions=logits[start : start + 16].tolist(), references=labels[start : start + 16].tolist()
        )
    found = module.compute(**options)
    expected = ClassificationMetrics(**options)
    expected.update(logits, labels)
    assert found == pytest.approx(expected.compute(), abs=1e-6)
    assert found["num_samples"] == 40
