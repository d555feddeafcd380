"""The scores of single samples, against NumPy."""

import numpy as np
import pytest
import torch

from hf_reinforce.metrics import ClassificationMetrics, score_samples


def make_batch(samples, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    logits[torch.arange(samples), labels] += 1
    return logits, labels


def test_scores_are_those_that_an_accumulator_adds():
    logits, labels = make_batch(64, 8)
    metrics, again = ClassificationMetrics(), ClassificationMetrics()
    again.add(metrics.update(logits, labels))
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
