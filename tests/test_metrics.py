"""Metrics against torchmetrics, scikit-learn and NumPy, under batches and weights, and on bad input."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss
from tiny import TinyNet, tiny_dataset
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from hf_reinforce import AugmentedDataset, ImageSource, KDTrainer, KDTrainingArguments
from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.evaluation.bootstrap import resample
from hf_reinforce.evaluation.report import write_report
from hf_reinforce.metrics import (
    METRICS,
    Metric,
    Predictions,
    adaptive_calibration_error,
    expected_calibration_error,
    group_means,
    mean,
    measure,
    reliability,
    score,
)


def make_batch(samples: int, classes: int, seed: int = 0, sharpness: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits that often favour the label, so that accuracy lies well inside (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(samples, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    logits[torch.arange(samples), labels] += sharpness
    return logits, labels


def measured(logits: Tensor, labels: Tensor) -> dict[str, float]:
    return measure(score(logits, labels))


def ece(logits: Tensor, labels: Tensor, num_bins: int = 15) -> float:
    return float(expected_calibration_error(score(logits, labels), np.ones(len(labels)), num_bins))


def adaptive(confidence: np.ndarray, correct: np.ndarray, num_bins: int = 15) -> float:
    """The adaptive calibration error of images that are given by their confidences."""
    count, zeros = len(confidence), np.zeros(len(confidence))
    answers = Predictions(np.arange(count), 1 - correct, zeros.astype(int), confidence, zeros, zeros, zeros > 0)
    return float(adaptive_calibration_error(answers, np.ones(count), num_bins))


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
    }
    found = measured(logits, labels)
    assert found.keys() == expected.keys() == METRICS.keys()
    assert found == pytest.approx(expected, abs=1e-6)
    assert found["ece"] == pytest.approx(ece_reference(logits.double(), labels, 15), abs=1e-6)
    if samples > 1:  # scikit-learn needs both labels of a two-class problem
        sklearn_brier = brier_score_loss(labels.numpy(), probabilities, labels=every_class, scale_by_half=False)
        assert found["brier"] == pytest.approx(sklearn_brier, abs=1e-6)


@pytest.mark.parametrize("num_bins", [1, 2, 10, 15, 100])
def test_ece_for_other_numbers_of_bins(num_bins: int) -> None:
    logits, labels = make_batch(1500, 5, sharpness=1.0)
    assert ece(logits.double(), labels, num_bins) == pytest.approx(ece_reference(logits.double(), labels, num_bins))


@pytest.mark.parametrize("batch_size", [1, 7, 499])
def test_batches_change_nothing(batch_size: int) -> None:
    logits, labels = make_batch(500, 20)
    batches = zip(logits.split(batch_size), labels.split(batch_size), strict=True)
    split = Predictions.concatenate([score(*batch) for batch in batches])
    assert measure(split) == pytest.approx(measured(logits, labels), rel=1e-6)


def test_a_weight_counts_an_image_several_times() -> None:
    found, drawn = score(*make_batch(300, 20)), np.random.default_rng(0).integers(0, 300, (2, 300))
    weights = np.array([np.bincount(row, minlength=300) for row in drawn], float)
    for places, own in zip(drawn, weights, strict=True):
        assert measure(found, own) == pytest.approx(measure(found.select(places)))
    for metric in METRICS.values():
        assert metric.function(found, weights) == pytest.approx(
            [float(metric.function(found, own)) for own in weights]
        )


def test_scores_of_single_images() -> None:
    logits, labels = make_batch(200, 8)
    found = score(logits, labels, np.arange(200) + 7)
    probabilities = logits.double().softmax(-1).numpy()
    own = probabilities[np.arange(200), labels]
    np.testing.assert_array_equal(found.row, np.arange(7, 207))
    np.testing.assert_array_equal(found.label, labels)
    np.testing.assert_array_equal(found.prediction, probabilities.argmax(1))
    np.testing.assert_array_equal(found.correct_top5, (probabilities > own[:, None]).sum(1) < 5)
    np.testing.assert_allclose(found.confidence, probabilities.max(1), atol=1e-6)
    np.testing.assert_allclose(found.nll, -np.log(own), atol=1e-6)
    np.testing.assert_allclose(found.brier, ((probabilities - np.eye(8)[labels]) ** 2).sum(1), atol=1e-6)


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    logits, labels = torch.tensor([[200.0, 0.0]] * 3), torch.tensor([0, 0, 1])
    assert logits.softmax(-1).amax() == 1.0
    diagram = reliability(score(logits, labels))
    assert diagram.count == [0] * 14 + [3]
    assert diagram.confidence[-1] == 1.0
    assert diagram.accuracy[-1] == pytest.approx(2 / 3)
    expected = {"accuracy": 2 / 3, "accuracy_top5": 1.0, "ece": 1 / 3, "ece_adaptive": 1 / 3, "nll": 200 / 3}
    assert measured(logits, labels) == pytest.approx({**expected, "brier": 2 / 3})


def test_a_confidence_of_one_shares_its_bin_with_those_just_below() -> None:
    # One error at 1.0 and one hit at 0.95: apart they would miss by (1 + 0.05) / 2, together by |0.5 - 0.975|.
    logits = torch.tensor([[500.0, 0.0], [math.log(0.95), math.log(0.05)]], dtype=torch.float64)
    assert ece(logits, torch.tensor([1, 0]), 10) == pytest.approx(0.475)


@pytest.mark.parametrize(
    ("confidence", "num_bins", "expected"),
    [(0.5, 4, 1), (0.5, 2, 0), (0.75, 4, 2), (0.5 + 2**-20, 4, 2), (0.75 - 2**-20, 4, 2), (0.5, 15, 7)],
)
def test_a_bin_holds_its_upper_edge(confidence: float, num_bins: int, expected: int) -> None:
    logits = logits_of([[confidence, 1.0 - confidence]])
    assert np.flatnonzero(reliability(score(logits, torch.tensor([0])), num_bins).count).tolist() == [expected]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [1, 3, 5, 15])
def test_equal_logits_lie_on_an_edge_in_every_precision(classes: int, dtype: torch.dtype) -> None:
    diagram = reliability(score(torch.zeros(1, classes, dtype=dtype), torch.tensor([0])))
    assert np.flatnonzero(diagram.count).tolist() == [15 // classes - 1]


def test_the_lower_of_equal_classes_wins() -> None:
    found = score(torch.zeros(8, 8), torch.arange(8))
    assert found.correct.tolist() == [True] + [False] * 7
    assert found.correct_top5.tolist() == [True] * 5 + [False] * 3


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_top5_of_at_most_five_classes_is_always_right(classes: int) -> None:
    assert measured(*make_batch(64, classes))["accuracy_top5"] == 1.0


def test_empty_bins_are_none_and_the_others_give_the_ece() -> None:
    found = score(*make_batch(3000, 10, sharpness=1.0))
    diagram = reliability(found)
    assert diagram.confidence[0] is None and diagram.accuracy[0] is None and diagram.count[0] == 0
    filled = [bin for bin in zip(diagram.accuracy, diagram.confidence, diagram.count, strict=True) if bin[2]]
    gaps = sum(abs(accuracy - confidence) * count for accuracy, confidence, count in filled)
    assert gaps / sum(diagram.count) == pytest.approx(measure(found)["ece"])


def test_means_of_groups() -> None:
    assert group_means([1.0, 3.0, 5.0], np.array([2, 0, 2]), 4) == [3.0, None, 3.0, None]


def test_log_probabilities_and_logits_agree() -> None:
    logits, labels = make_batch(200, 6)
    expected = measured(logits.double(), labels)
    assert measured(logits.double().log_softmax(-1), labels) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, labels = make_batch(200, 6)
    assert measured(logits.to(dtype), labels) == measured(logits.to(dtype).float(), labels)


def test_takes_other_integer_labels_and_gradients_and_changes_none_of_its_inputs() -> None:
    logits, labels = make_batch(20, 6)
    copies = logits.clone(), labels.clone()
    assert measured(logits.clone().requires_grad_(), labels.to(torch.uint8)) == measured(logits, labels)
    assert torch.equal(logits, copies[0]) and torch.equal(labels, copies[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_changes_nothing() -> None:
    logits, labels = make_batch(500, 20)
    assert measured(logits.cuda(), labels) == pytest.approx(measured(logits, labels), abs=1e-6)


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
def test_refuses_a_bad_batch(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(logits, labels)


def test_refuses_to_measure_nothing() -> None:
    with pytest.raises(ValueError, match=r"at least one image, and there is none; name a dataset or a split"):
        measured(torch.zeros(0, 3), torch.zeros(0).long())


# -- the adaptive calibration error -------------------------------------------------------------------------------


def draw(samples: int, seed: int = 0, levels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences and whether they are right; with `levels`, so many distinct confidences."""
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.1, 1.0, samples)
    if levels:
        confidence = np.ceil(confidence * levels) / levels
    correct = generator.uniform(size=samples) < confidence**2
    return confidence.astype(np.float32), correct.astype(int)


@pytest.mark.parametrize("num_bins", [1, 2, 15, 40])
@pytest.mark.parametrize("samples", [1, 14, 15, 150, 1003])
def test_equal_groups_of_the_sorted_images(samples: int, num_bins: int) -> None:
    confidence, correct = draw(samples)
    gap = (correct - confidence.astype(float))[confidence.argsort()]
    expected = sum(abs(group.sum()) for group in np.array_split(gap, num_bins)) / samples
    assert adaptive(confidence, correct, num_bins) == pytest.approx(expected, abs=1e-12)


def test_one_image_a_bin_is_the_mean_distance() -> None:
    confidence, correct = draw(12)
    expected = np.abs(correct - confidence.astype(float)).mean()
    for num_bins in (12, 13, 100):  # the others are empty
        assert adaptive(confidence, correct, num_bins) == pytest.approx(expected)


@pytest.mark.parametrize("levels", [1, 3, 8])
def test_the_order_of_equal_confidences_does_not_matter(levels: int) -> None:
    confidence, correct = draw(500, levels=levels)
    found = adaptive(confidence, correct)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(500)
        assert adaptive(confidence[order], correct[order]) == pytest.approx(found, abs=1e-12)


def test_equal_confidences_are_shared_out_in_proportion() -> None:
    # Two bins of three images: 0.5 with one hit of one, then five at 0.9 with one hit. Each of these counts 0.2 hits.
    confidence, correct = np.array([0.5, 0.9, 0.9, 0.9, 0.9, 0.9]), np.array([1, 0, 0, 1, 0, 0])
    first, second = (1 + 0.2 * 2) - (0.5 + 2 * 0.9), 0.2 * 3 - 3 * 0.9
    assert adaptive(confidence, correct, 2) == pytest.approx((abs(first) + abs(second)) / 6)


def test_one_confidence_perfect_and_worst() -> None:
    assert adaptive(np.full(90, 0.75), (np.arange(90) < 30).astype(int)) == pytest.approx(0.75 - 1 / 3)
    assert adaptive(np.ones(20), np.ones(20, int)) == 0.0
    assert adaptive(np.ones(20), np.zeros(20, int)) == 1.0


# -- another metric -----------------------------------------------------------------------------------------------


def test_a_metric_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Seen by the Trainer, the evaluation with its report, and the bootstrap."""
    from simulated import write_evaluation

    def sure_errors(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
        return mean(~predictions.correct & (predictions.confidence > 0.3), weights)

    monkeypatch.setitem(METRICS, "sure_errors", Metric(sure_errors, "sure errors"))
    found = score(*make_batch(300, 10))
    expected = float((~found.correct & (found.confidence > 0.3)).mean())
    assert 0 < expected == measure(found)["sure_errors"]
    assert resample(found, 50, seed=0)[:, -1].mean() == pytest.approx(expected, abs=0.02)

    folder = write_evaluation(tmp_path / "student") / "evaluation"
    (result,) = json.loads((folder / "evaluation.json").read_text())["datasets"].values()
    assert f"{result['metrics']['sure_errors']:.3f} |" in write_report(folder).read_text()

    args = KDTrainingArguments(str(tmp_path / "out"), use_cpu=True, method="plain", report_to="none")
    held_out = AugmentedDataset(ImageSource.of(tiny_dataset(9)), evaluation_policy(16))
    assert 0 <= KDTrainer(TinyNet(5, 0), args, eval_dataset=held_out).evaluate()["eval_sure_errors"] <= 1
