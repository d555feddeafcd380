from pathlib import Path

import evaluate
import pytest
import torch

import hf_reinforce
from hf_reinforce.metrics import ClassificationMetrics

MODULE = Path(hf_reinforce.__file__).parent / "evaluate_module" / "classification_calibration.py"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_metrics_load_as_an_evaluate_module():
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 7), torch.randint(7, (40,))
    module = evaluate.load(str(MODULE))
    for start in range(0, 40, 16):  # accumulated in batches, as evaluate does it
        module.add_batch(
            predictions=logits[start : start + 16].tolist(), references=labels[start : start + 16].tolist()
        )
    expected = ClassificationMetrics()
    expected.update(logits, labels)
    found = module.compute()
    assert found == pytest.approx(expected.compute(), abs=1e-6)
    assert found["num_samples"] == 40
