from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

import hf_reinforce
from hf_reinforce.metrics import expected_calibration_error, measure, score

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
    scores = score(logits, labels)
    expected = measure(scores) | {"ece": float(expected_calibration_error(scores, np.ones(40), **options))}
    assert found.pop("num_samples") == 40
    assert found.keys() == expected.keys()
    assert {**found, "ece_adaptive": 0} == pytest.approx({**expected, "ece_adaptive": 0}, abs=1e-6)
    assert (found["ece_adaptive"] == pytest.approx(expected["ece_adaptive"])) == (not options)
