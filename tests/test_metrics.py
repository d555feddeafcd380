"""Metrics against torchmetrics, scikit-learn and NumPy, and under splits, merges and bad input."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from hf_reinforce.metrics import (
    MEAN_METRICS,
    ClassificationMetrics,
    calibration_bins,
    expected_calibration_error,
    top_k_correct,
)


def make_batch(samples: int, classes: int, seed: int = 0, sharpness: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits that often favour the label, so that accuracy lies well inside (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(samples, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    logits[torch.arange(samples), labels] += sharpness
    return logits, labels


def measure(*batches: tuple[Tensor, Tensor], num_bins: int = 15) -> ClassificationMetrics:
    metrics = ClassificationMetrics(num_bins)
    for logits, labels in batches:
        metrics.update(logits, labels)
    return metrics


def logits_of(probabilities: list[list[float]]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def ece_reference(logits: Tensor, labels: Tensor, num_bins: int) -> float:
    """Guo et al. (2017), equations 2 to 5, sample by sample."""
    probabilities = logits.softmax(-1).numpy()
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels.numpy()
    total = 0.0
    for m in range(num_bins):
        inside = (confidence > m / num_bins) & (confidence <= (m + 1) / num_bins)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


def adaptive_reference(logits: Tensor, labels: Tensor, num_bins: int) -> float:
    """Equal groups of the samples, sorted by confidence; samples of equal confidence have their mean correctness."""
    probabilities = logits.softmax(-1).numpy()
    confidence, correct = probabilities.max(1).astype(np.float32), probabilities.argmax(1) == labels.numpy()
    order = confidence.argsort()
    confidence = confidence[order].astype(np.float64)
    shared = [correct[order][confidence == value].mean() for value in confidence]
    groups = zip(np.array_split(confidence, num_bins), np.array_split(np.array(shared), num_bins), strict=True)
    return sum(abs(right.sum() - sure.sum()) for sure, right in groups) / len(labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("samples", "classes"), [(2000, 10), (500, 100), (400, 2), (300, 3), (1, 7)])
def test_agrees_with_torchmetrics_scikit_learn_and_numpy(samples: int, classes: int, dtype: torch.dtype) -> None:
    logits, labels = make_batch(samples, classes)
    logits = logits.to(dtype)
    probabilities = logits.double().softmax(-1).numpy()
    one_hot = np.eye(classes)[labels.numpy()]
    every_class = list(range(classes))
    expected = {
        "accuracy": float(multiclass_accuracy(logits, labels, classes, average="micro")),
        "accuracy_top5": float(multiclass_accuracy(logits, labels, classes, "micro", top_k=min(5, classes))),
        "ece": float(multiclass_calibration_error(logits, labels, classes, n_bins=15, norm="l1")),
        "ece_adaptive": adaptive_reference(logits, labels, 15),
        "nll": log_loss(labels.numpy(), probabilities, labels=every_class),
        "brier": float(((probabilities - one_hot) ** 2).sum(1).mean()),
        "num_samples": samples,
    }
    found = measure((logits, labels)).compute()
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-6)
    assert found["ece"] == pytest.approx(ece_reference(logits.double(), labels, 15), abs=1e-6)
    if samples > 1:  # scikit-learn needs both labels of a two-class problem
        sklearn_brier = brier_score_loss(labels.numpy(), probabilities, labels=every_class, scale_by_half=False)
        assert found["brier"] == pytest.approx(sklearn_brier, abs=1e-6)


@pytest.mark.parametrize("num_bins", [1, 2, 10, 15, 100])
def test_ece_for_other_numbers_of_bins(num_bins: int) -> None:
    logits, labels = make_batch(1500, 5, sharpness=1.0)
    expected = ece_reference(logits.double(), labels, num_bins)
    assert measure((logits.double(), labels), num_bins=num_bins).compute()["ece"] == pytest.approx(expected, abs=1e-12)
    assert expected_calibration_error(calibration_bins(logits.double(), labels, num_bins)) == pytest.approx(expected)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 499])
def test_batches_change_nothing(batch_size: int) -> None:
    logits, labels = make_batch(500, 20)
    whole = measure((logits, labels))
    split = measure(*zip(logits.split(batch_size), labels.split(batch_size), strict=True))
    assert split.compute() == pytest.approx(whole.compute(), rel=1e-6)
    torch.testing.assert_close(split.state, whole.state, rtol=1e-6, atol=0)
    torch.testing.assert_close(split.confidences, whole.confidences)
    double = measure(*zip(logits.double().split(batch_size), labels.split(batch_size), strict=True))
    torch.testing.assert_close(double.state, measure((logits.double(), labels)).state, rtol=1e-12, atol=0)


def test_merges_and_summed_states_change_nothing() -> None:
    first, second, third = (make_batch(size, 12, seed) for seed, size in enumerate((100, 3, 257)))
    whole = measure(first, second, third)
    merged = measure(first)
    merged.merge(measure(second, third))
    merged.merge(ClassificationMetrics())
    parts = [measure(part) for part in (third, first, second)]
    state = torch.stack([part.state for part in parts]).sum(0)
    padding = torch.zeros(7)
    confidences = torch.cat([padding, *(part.confidences for part in parts)])
    summed = ClassificationMetrics.from_state(state, confidences)
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-12)
    assert summed.compute() == pytest.approx(whole.compute(), rel=1e-12)


def test_a_state_without_confidences_has_no_adaptive_error() -> None:
    whole = measure(make_batch(100, 12))
    summed = ClassificationMetrics.from_state(whole.state)
    assert math.isnan(summed.compute()["ece_adaptive"])
    assert summed.compute() == pytest.approx({**whole.compute(), "ece_adaptive": math.nan}, nan_ok=True)
    summed.update(*make_batch(5, 12))
    assert math.isnan(summed.compute()["ece_adaptive"]), "part of the samples is no answer"
    with pytest.raises(
        ValueError, match=r"counts 100 samples, but there are confidences of 99; pass both of the same"
    ):
        ClassificationMetrics.from_state(whole.state, whole.confidences[1:])


def test_the_state_is_a_copy_of_fixed_size() -> None:
    metrics = measure(make_batch(50, 4))
    before = metrics.compute()
    assert metrics.state.dtype == torch.float64
    assert metrics.state.shape == (len(MEAN_METRICS) + 3 * 15,)
    restored = ClassificationMetrics.from_state(metrics.state)
    metrics.state.zero_()
    metrics.confidences.zero_()
    restored.update(*make_batch(5, 4, seed=1))
    assert metrics.compute() == before
    assert measure(make_batch(5000, 4)).state.shape == metrics.state.shape


def test_many_samples_do_not_lose_precision() -> None:
    metrics = ClassificationMetrics.from_state(measure(make_batch(8, 3)).state * 2**30)  # beyond float32's integers
    metrics.update(*make_batch(1, 3, seed=1))
    assert metrics.compute()["num_samples"] == 8 * 2**30 + 1


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    labels = torch.tensor([0, 0, 1])
    logits = torch.tensor([[200.0, 0.0], [200.0, 0.0], [200.0, 0.0]])
    assert logits.softmax(-1).amax() == 1.0
    metrics = measure((logits, labels))
    reliability = metrics.reliability()
    assert reliability.count.tolist() == [0.0] * 14 + [3.0]
    assert reliability.confidence[-1] == 1.0
    assert reliability.accuracy[-1] == pytest.approx(2 / 3)
    assert metrics.compute() == pytest.approx(
        {
            "accuracy": 2 / 3,
            "accuracy_top5": 1.0,
            "ece": 1 / 3,
            "ece_adaptive": 1 / 3,
            "nll": 200 / 3,
            "brier": 2 / 3,
            "num_samples": 3.0,
        }
    )


def test_a_confidence_of_one_shares_its_bin_with_those_just_below() -> None:
    # One error at 1.0 and one hit at 0.95: apart they would miss by (1 + 0.05) / 2, together by |0.5 - 0.975|.
    logits = torch.tensor([[500.0, 0.0], [math.log(0.95), math.log(0.05)]], dtype=torch.float64)
    assert measure((logits, torch.tensor([1, 0])), num_bins=10).compute()["ece"] == pytest.approx(0.475)


@pytest.mark.parametrize(
    ("confidence", "num_bins", "expected"),
    [(0.5, 4, 1), (0.5, 2, 0), (0.75, 4, 2), (0.5 + 2**-20, 4, 2), (0.75 - 2**-20, 4, 2), (0.5, 15, 7)],
)
def test_a_bin_holds_its_upper_edge(confidence: float, num_bins: int, expected: int) -> None:
    logits = logits_of([[confidence, 1.0 - confidence]])
    count = measure((logits, torch.tensor([0])), num_bins=num_bins).reliability().count
    assert count.nonzero().flatten().tolist() == [expected]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [1, 3, 5, 15])
def test_equal_logits_lie_on_an_edge_in_every_precision(classes: int, dtype: torch.dtype) -> None:
    count = measure((torch.zeros(1, classes, dtype=dtype), torch.tensor([0]))).reliability().count
    assert count.nonzero().flatten().tolist() == [15 // classes - 1]


def test_the_lower_of_equal_classes_wins() -> None:
    logits = torch.zeros(8, 8)
    assert top_k_correct(logits, torch.arange(8), 1).tolist() == [1.0] + [0.0] * 7
    assert top_k_correct(logits, torch.arange(8), 5).tolist() == [1.0] * 5 + [0.0] * 3


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_top5_of_at_most_five_classes_is_always_right(classes: int) -> None:
    assert measure(make_batch(64, classes)).compute()["accuracy_top5"] == 1.0


def test_empty_bins_are_nan_and_count_for_nothing() -> None:
    reliability = measure((logits_of([[0.9, 0.1]]), torch.tensor([0]))).reliability()
    empty = reliability.count == 0
    assert int(empty.sum()) == 14
    assert reliability.confidence[empty].isnan().all()
    assert reliability.accuracy[empty].isnan().all()
    assert reliability.confidence[~empty].item() == pytest.approx(0.9)


def test_reliability_gives_the_ece() -> None:
    metrics = measure(make_batch(3000, 10, sharpness=1.0))
    diagram = metrics.reliability()
    gaps = ((diagram.accuracy - diagram.confidence).abs() * diagram.count).nansum() / diagram.count.sum()
    assert float(gaps) == pytest.approx(metrics.compute()["ece"])


def test_log_probabilities_and_logits_agree() -> None:
    logits, labels = make_batch(200, 6)
    expected = measure((logits.double(), labels)).compute()
    assert measure((logits.double().log_softmax(-1), labels)).compute() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, labels = make_batch(200, 6)
    assert measure((logits.to(dtype), labels)).compute() == measure((logits.to(dtype).float(), labels)).compute()


def test_takes_other_integer_labels_gradients_and_an_empty_batch() -> None:
    logits, labels = make_batch(20, 6)
    expected = measure((logits, labels)).compute()
    metrics = measure((logits.clone().requires_grad_(), labels.to(torch.uint8)), (logits[:0], labels[:0]))
    assert metrics.compute() == expected
    assert not metrics.state.requires_grad


def test_changes_none_of_its_inputs() -> None:
    logits, labels = make_batch(20, 6)
    copies = logits.clone(), labels.clone()
    measure((logits, labels))
    assert torch.equal(logits, copies[0])
    assert torch.equal(labels, copies[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_changes_nothing() -> None:
    logits, labels = make_batch(500, 20)
    metrics = measure((logits.cuda(), labels.cuda()), (logits.cuda(), labels))
    assert metrics.compute() == pytest.approx(measure((logits, labels), (logits, labels)).compute(), abs=1e-6)
    assert ClassificationMetrics.from_state(metrics.state.cuda()).compute() == metrics.compute()


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (
            torch.zeros(2, 3),
            torch.tensor([0, 3]),
            r"labels from 0 to 2, the logits having 3 classes; found 3 in row 1\. Check",
        ),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), r"3 classes; found -1 in row 0\. Check"),
        (torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), torch.zeros(2).long(), r"1 of 2 rows, first in row 1\. Check"),
        (torch.tensor([[math.inf, 1.0]]), torch.zeros(1).long(), r"finite logits; found nan or infinity in 1 of 1"),
        (torch.tensor([[0.0, -math.inf]]), torch.zeros(1).long(), r"finite logits; found nan or infinity in 1 of 1"),
        (
            torch.zeros(2, 3),
            torch.zeros(3).long(),
            r"logits \[B, C\] and labels \[B\]; found \[2, 3\] and \[3\]\. Pass",
        ),
        (torch.zeros(3), torch.zeros(3).long(), r"found \[3\] and \[3\]"),
        (torch.zeros(2, 3), torch.zeros(2, 3).long(), r"found \[2, 3\] and \[2, 3\]"),
        (torch.zeros(2, 0), torch.zeros(2).long(), r"found \[2, 0\] and \[2\]"),
        (torch.zeros(2, 3), torch.zeros(2), r"integer labels; found torch.float32 and torch.float32\. Pass"),
        (torch.zeros(2, 3), torch.zeros(2).bool(), r"found torch.float32 and torch.bool"),
        (
            torch.zeros(2, 3).long(),
            torch.zeros(2).long(),
            r"floating-point logits .* found torch.int64 and torch.int64",
        ),
    ],
)
def test_refuses_a_bad_batch_and_adds_nothing(logits: Tensor, labels: Tensor, message: str) -> None:
    metrics = measure(make_batch(10, 3))
    before = metrics.compute()
    with pytest.raises(ValueError, match=message):
        metrics.update(logits, labels)
    assert metrics.compute() == before


@pytest.mark.parametrize("metrics", [ClassificationMetrics(), measure((torch.zeros(0, 3), torch.zeros(0).long()))])
def test_refuses_to_measure_nothing(metrics: ClassificationMetrics) -> None:
    for read in (metrics.compute, metrics.reliability):
        with pytest.raises(ValueError, match=r"at least one sample, and none was seen; call update"):
            read()


def test_refuses_other_numbers_of_bins() -> None:
    with pytest.raises(ValueError, match=r"15 bins cannot take in metrics with 10; make both with the same num_bins"):
        ClassificationMetrics().merge(ClassificationMetrics(10))
    with pytest.raises(ValueError, match=r"num_bins must be >= 1, not 0"):
        ClassificationMetrics(0)


@pytest.mark.parametrize(
    "state",
    [
        torch.zeros(len(MEAN_METRICS) + 44, dtype=torch.float64),
        torch.zeros(len(MEAN_METRICS), dtype=torch.float64),
        torch.zeros(0, dtype=torch.float64),
        torch.zeros(1, len(MEAN_METRICS) + 45, dtype=torch.float64),
        torch.zeros(len(MEAN_METRICS) + 45),
    ],
)
def test_refuses_what_is_no_state(state: Tensor) -> None:
    with pytest.raises(ValueError, match=r"A state is a float64 tensor of 4 \+ 3 \* num_bins values; found"):
        ClassificationMetrics.from_state(state)
