"""Per-class accuracy and the scores of single samples, against torchmetrics, scikit-learn and NumPy."""

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score
from torchmetrics.functional.classification import multiclass_accuracy

from hf_reinforce.metrics import ClassificationMetrics, PerClassAccuracy, score_samples


def make_batch(samples, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    logits[torch.arange(samples), labels] += 1
    return logits, labels


def measure(classes, *batches):
    accuracy = PerClassAccuracy(classes)
    for batch in batches:
        accuracy.update(*batch)
    return accuracy


@pytest.mark.parametrize(("samples", "classes"), [(500, 10), (300, 2), (2000, 100)])
def test_agrees_with_torchmetrics_and_scikit_learn(samples, classes):
    logits, labels = make_batch(samples, classes)
    found = measure(classes, (logits[:99], labels[:99]), (logits[99:], labels[99:])).compute()
    assert labels.unique().numel() == classes
    torchmetrics = multiclass_accuracy(logits, labels, classes, average=None)
    torch.testing.assert_close(found, torchmetrics.double(), atol=1e-6, rtol=0)
    recall = recall_score(labels, logits.argmax(1), labels=range(classes), average=None)
    np.testing.assert_allclose(found, recall, atol=1e-6)


def test_a_class_without_samples_is_nan():
    logits = torch.eye(4)[[0, 1, 3]]
    found = measure(4, (logits, torch.tensor([0, 0, 3]))).compute()
    assert found[:2].tolist() == pytest.approx([0.5, np.nan], nan_ok=True)
    assert found[2:].tolist() == pytest.approx([np.nan, 1.0], nan_ok=True)
    assert measure(3).compute().isnan().all()


def test_states_add_up():
    first, second = make_batch(30, 5), make_batch(40, 5, seed=1)
    whole = measure(5, first, second)
    summed = PerClassAccuracy.from_state(measure(5, first).state + measure(5, second).state)
    assert torch.equal(summed.compute(), whole.compute())
    assert whole.state.shape == (2, 5) and whole.state.dtype == torch.float64
    whole.state.zero_()
    assert torch.equal(summed.state, whole.state), "the state is a copy"


def test_scores_are_taken_once_for_several_accumulators():
    logits, labels = make_batch(64, 8)
    metrics, accuracy = ClassificationMetrics(), PerClassAccuracy(8)
    scores = metrics.update(logits, labels)
    accuracy.add(scores)
    assert torch.equal(accuracy.state, measure(8, (logits, labels)).state)
    again = ClassificationMetrics()
    again.add(score_samples(logits, labels))
    assert again.compute() == metrics.compute()


def test_scores_of_single_samples():
    logits, labels = make_batch(200, 8)
    scores = score_samples(logits, labels)
    probabilities = logits.double().softmax(-1).numpy()
    own = probabilities[np.arange(200), labels]
    assert torch.equal(scores.label, labels)
    np.testing.assert_array_equal(scores.prediction, probabilities.argmax(1))
    np.testing.assert_array_equal(scores.rank, (probabilities > own[:, None]).sum(1))
    np.testing.assert_allclose(scores.confidence, probabilities.max(1), atol=1e-6)
    np.testing.assert_allclose(scores.label_probability, own, atol=1e-6)
    np.testing.assert_allclose(scores.nll, -np.log(own), atol=1e-6)
    np.testing.assert_allclose(scores.brier, ((probabilities - np.eye(8)[labels]) ** 2).sum(1), atol=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 7, 1000])
def test_the_prediction_is_right_where_the_rank_is_zero(classes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(3, (300, classes), generator=generator).float()  # many ties
    labels = torch.where(torch.rand(300, generator=generator) < 0.5, logits.argmax(-1), 0)
    scores = score_samples(logits, labels)
    np.testing.assert_array_equal(scores.prediction, logits.numpy().argmax(1))  # NumPy's is the first
    assert torch.equal(scores.prediction == labels, scores.rank == 0)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.zeros(2, 4), torch.zeros(2).long()), r"samples of 3 classes; found 4\. Make PerClassAccuracy with"),
        ((torch.zeros(2, 3), torch.tensor([0, 3])), r"labels from 0 to 2.*found 3 in row 1"),
        ((torch.tensor([[0.0, np.nan, 1.0]]), torch.zeros(1).long()), r"first in row 0"),
        ((torch.zeros(3), torch.zeros(3).long()), r"Expected logits \[B, C\]"),
    ],
)
def test_refuses_a_bad_batch_and_adds_nothing(batch, message):
    accuracy = measure(3, make_batch(9, 3))
    before = accuracy.state
    with pytest.raises(ValueError, match=message):
        accuracy.update(*batch)
    assert torch.equal(accuracy.state, before)


def test_refuses_scores_of_more_classes():
    with pytest.raises(ValueError, match=r"samples of 3 classes; found 5"):
        PerClassAccuracy(3).add(score_samples(torch.zeros(1, 6), torch.tensor([4])))


def test_refuses_what_is_no_state():
    for state in (torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"float64 tensor \[2, num_classes\]; found"):
            PerClassAccuracy.from_state(state)
    with pytest.raises(ValueError, match=r"num_classes must be >= 1, not 0"):
        PerClassAccuracy(0)
