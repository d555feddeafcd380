"""The evaluator against figures computed by hand, one image at a time."""

import json

import numpy as np
import pytest
import torch
from tiny import NAMES, tiny_dataset, tiny_teacher

from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.evaluation import evaluator
from hf_reinforce.evaluation.evaluator import EvaluationSettings, best_label, evaluate_task, sentence, summarise
from hf_reinforce.evaluation.results import Corruption, DatasetResult, Evaluation
from hf_reinforce.evaluation.suites import SuiteEntry, corruption_summary
from hf_reinforce.evaluation.tasks import open_task
from hf_reinforce.metrics import ALEXNET_ERRORS, ReliabilityDiagram, measure, score
from hf_reinforce.replay.views import AugmentedDataset

C, ROWS = 5, 11
SETTINGS = EvaluationSettings(batch_size=4, num_workers=0, progress=False)


@pytest.fixture(scope="module")
def model():
    return tiny_teacher(C)


@pytest.fixture(scope="module")
def answers(model):
    """Log-probabilities of the model for each image."""
    dataset = AugmentedDataset(
        open_task(tiny_dataset(ROWS), SuiteEntry("pets"), NAMES[:C], C).source, evaluation_policy(16)
    )
    return torch.cat([model(dataset[row]["pixel_values"][None]) for row in range(ROWS)])


def test_figures_and_predictions_by_hand(model, answers):
    task = open_task(tiny_dataset(ROWS), SuiteEntry("pets"), NAMES[:C], C)
    predictions = evaluate_task(model, task, SETTINGS)
    labels = torch.arange(ROWS) % C
    np.testing.assert_array_equal(predictions.prediction, answers.argmax(-1))
    np.testing.assert_allclose(predictions.confidence, answers.exp().amax(-1), rtol=1e-5)
    np.testing.assert_allclose(predictions.nll, -answers[torch.arange(ROWS), labels], rtol=1e-4)
    result = summarise(SuiteEntry("pets"), "pets", task, predictions)
    assert result.metrics == pytest.approx(measure(score(answers, labels)), rel=1e-5)
    for label, name in enumerate(NAMES[:C]):
        own = predictions.correct[labels == label]
        assert result.per_class_accuracy[name] == pytest.approx(own.mean())
    assert sum(result.reliability.count) == ROWS and result.metrics["accuracy"] == predictions.correct.mean()


def test_restricted_and_full_scoring(model, answers):
    rows = tiny_dataset(ROWS, labels=2)  # ants and bees only
    for scoring, columns in (("restricted", slice(2)), ("full", slice(C))):
        task = open_task(rows, SuiteEntry("pets", scoring=scoring), NAMES[:C], C)
        predictions = evaluate_task(model, task, SETTINGS)
        dataset = AugmentedDataset(task.source, evaluation_policy(16))
        own = torch.cat([model(dataset[row]["pixel_values"][None]) for row in range(ROWS)])[:, columns]
        np.testing.assert_array_equal(predictions.prediction, own.argmax(-1))
        np.testing.assert_allclose(predictions.confidence, own.softmax(-1).amax(-1), rtol=1e-4)


def test_any_of_several_labels_is_right():
    answers = torch.tensor([[0.1, 0.6, 0.3], [0.1, 0.6, 0.3], [0.5, 0.2, 0.3]]).log()
    labels = torch.tensor([[0, 2, 1], [2, 0, -1], [1, -1, -1]])
    assert best_label(answers, labels).tolist() == [1, 2, 1]


def test_processes_share_the_images(model, monkeypatch):
    """Three processes, one after the other: each has its images, and what they gather is what one process finds."""
    task = open_task(tiny_dataset(2), SuiteEntry("pets"), NAMES[:C], C)
    expected = evaluate_task(model, task, SETTINGS)
    batches = []
    for rank in (1, 2, 0):
        monkeypatch.setenv("RANK", str(rank))
        batches += evaluator._evaluate_part(model, task, SETTINGS, "", 3)
    assert [batch.row.tolist() for batch in batches] == [[1], [0]], "the third process has no image"
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: batches)
    predictions = evaluate_task(model, task, SETTINGS)
    np.testing.assert_array_equal(predictions.label, expected.label)
    np.testing.assert_allclose(predictions.nll, expected.nll, rtol=1e-5)
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [*own, ValueError("the other's image")])
    with pytest.raises(ValueError, match="the other's image"):
        evaluate_task(model, task, SETTINGS)


def test_logits_that_are_not_finite():
    model = tiny_teacher(C)
    model.members[0].model.head.bias.data[1] = torch.nan
    task = open_task(tiny_dataset(ROWS), SuiteEntry("pets"), NAMES[:C], C)
    with pytest.raises(ValueError, match="finite logits; found nan or infinity .* Check the weights, or evaluate in"):
        evaluate_task(model, task, SETTINGS)


def with_errors(errors, clean=0.3):
    diagram = ReliabilityDiagram([], [], [])
    common = {"dataset_name": "a", "split": "test", "num_samples": 9, "class_map": "", "class_names": []}
    common |= {"reliability": diagram, "per_class_accuracy": {}, "predictions": ""}
    evaluation = Evaluation("model", "suite")
    evaluation.datasets["clean"] = DatasetResult(title="", metrics={"accuracy": 1 - clean}, **common)
    for name, own in errors.items():
        for severity, error in enumerate(own, 1):
            how = Corruption(name, severity)
            result = DatasetResult(title="", metrics={"accuracy": 1 - error}, corruption=how, **common)
            evaluation.datasets[f"corrupted-{name}-{severity}"] = result
    return evaluation


def test_mean_corruption_error_of_a_suite():
    entry = SuiteEntry("a", corruptions=("all",), clean="clean", baseline="alexnet")
    found = corruption_summary("corrupted", entry, with_errors(ALEXNET_ERRORS, clean=0.434822))
    mean = np.mean(list(ALEXNET_ERRORS.values()))
    assert found == pytest.approx({"mean_corruption_accuracy": 1 - mean, "mce": 1, "relative_mce": 1}, abs=1e-3)
    entry = SuiteEntry("a", corruptions=("all",))
    assert set(corruption_summary("corrupted", entry, with_errors(ALEXNET_ERRORS))) == {"mean_corruption_accuracy"}
    missing = {name: own for name, own in ALEXNET_ERRORS.items() if name != "fog"}
    assert corruption_summary("corrupted", entry, with_errors(missing)) == {}
    assert corruption_summary("corrupted", entry, with_errors({**ALEXNET_ERRORS, "fog": (0.5, 0.6)})) == {}


def test_mean_corruption_error_against_errors_of_ones_own(tmp_path, caplog):
    own = {"fog": (0.2, 0.4), "snow": (0.1, 0.3)}
    found = with_errors(own, clean=0.1)
    for content, mce, relative in (
        ({"fog": [0.4, 0.8], "snow": 0.4, "clean": 0.2}, (0.5 + 0.5) / 2, (0.4 / 0.8 + 0.2 / 0.4) / 2),
        ({"fog": 0.3, "snow": [0.1, 0.3], "frost": 0.9}, 1.0, None),
        ({"fog": 0.3, "snow": 0.2, "clean": 0.2}, 1.0, None),  # snow does no harm to this baseline
    ):
        (tmp_path / "errors.json").write_text(json.dumps(content))
        entry = SuiteEntry(
            "a",
            corruptions=tuple(own),
            severities=(1, 2),
            clean="clean",
            baseline=str(tmp_path / "errors.json"),
        )
        summary = corruption_summary("corrupted", entry, found)
        assert summary["mean_corruption_accuracy"] == pytest.approx(0.75) and summary["mce"] == pytest.approx(mce)
        assert summary.get("relative_mce") == (None if relative is None else pytest.approx(relative))
    assert "no relative_mce: The baseline is no worse under ['snow']" in caplog.text


def test_errors_of_workers_lose_their_traceback():
    text = (
        "Caught ImageError in DataLoader worker process 0.\nTraceback:\n  ...\nImageError: Row 3: there is no image."
    )
    assert sentence(ValueError(text)) == "Row 3: there is no image."
    assert sentence(OSError("two\nlines")) == "two lines"
