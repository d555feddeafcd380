"""Metrics against torchmetrics, scikit-learn, NumPy and published figures, under batches and weights, on bad input."""

import json
import math
from pathlib import Path

import evaluate
import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from simulated import write_evaluation
from sklearn.metrics import brier_score_loss, log_loss
from tiny import TinyNet, tiny_dataset
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

import hf_reinforce
from hf_reinforce import AugmentedDataset, ImageSource, KDTrainer, KDTrainingArguments
from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.evaluation.report import write_report
from hf_reinforce.metrics import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    METRICS,
    Metric,
    Predictions,
    adaptive_calibration_error,
    expected_calibration_error,
    mean,
    mean_corruption_error,
    measure,
    relative_mean_corruption_error,
    reliability,
    resample,
    score,
)

# By corruption: mean errors of AlexNet that every implementation of ImageNet-C divides by, and errors of ResNet-50 in
# the paper, in percent: its clean error is 23.9, its mCE 76.7, relative 105.0.
ALEXNET = (
    "0.886428 0.894468 0.922640 0.819880 0.826268 0.785948 0.798360 0.866816 0.826572 0.819324 0.564592 0.853204 "
    "0.646056 0.717840 0.606500"
)
RESNET50 = "80 82 83 75 89 78 80 78 75 66 57 71 85 77 77"


def make_batch(samples, classes, seed=0, sharpness=3.0):
    """Logits that often favour the label, so that accuracy lies well inside (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(samples, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    logits[torch.arange(samples), labels] += sharpness
    return logits, labels


def measured(logits, labels):
    return measure(score(logits, labels))


def of_images(confidence, correct):
    """Predictions that are given by their confidences."""
    count, zeros = len(confidence), np.zeros(len(confidence))
    return Predictions(np.arange(count), 1 - correct, zeros.astype(int), confidence, zeros, zeros, zeros > 0)


def adaptive(confidence, correct, num_bins=15):
    return float(adaptive_calibration_error(of_images(confidence, correct), np.ones(len(confidence)), num_bins))


def draw(samples, levels=0):
    """Confidences and whether they are right; with `levels`, so many distinct confidences."""
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.1, 1.0, samples)
    confidence = np.ceil(confidence * levels) / levels if levels else confidence
    return confidence.astype(np.float32), (generator.uniform(size=samples) < confidence**2).astype(int)


def adaptive_reference(confidence, correct, num_bins):
    """Equal groups of the sorted images, those of equal confidence with their mean correctness."""
    order = confidence.argsort()
    confidence, correct = confidence[order].astype(float), correct[order]
    shared = np.array([correct[confidence == value].mean() for value in confidence])
    return sum(abs(group.sum()) for group in np.array_split(shared - confidence, num_bins)) / len(confidence)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("samples", "classes"), [(2000, 10), (500, 100), (400, 2), (300, 3), (1, 7)])
def test_agrees_with_torchmetrics_scikit_learn_and_numpy(samples, classes, dtype):
    logits, labels = make_batch(samples, classes)
    logits = logits.to(dtype)
    probabilities, every_class = logits.double().softmax(-1).numpy(), list(range(classes))
    confidence, correct = probabilities.max(1).astype(np.float32), probabilities.argmax(1) == labels.numpy()
    expected = {
        "accuracy": float(multiclass_accuracy(logits, labels, classes, average="micro")),
        "accuracy_top5": float(multiclass_accuracy(logits, labels, classes, "micro", top_k=min(5, classes))),
        "ece": float(multiclass_calibration_error(logits, labels, classes, n_bins=15, norm="l1")),
        "ece_adaptive": adaptive_reference(confidence, correct, 15),
        "nll": log_loss(labels.numpy(), probabilities, labels=every_class),
        "brier": float(((probabilities - np.eye(classes)[labels.numpy()]) ** 2).sum(1).mean()),
    }
    found = measured(logits, labels)
    assert found.keys() == expected.keys() == METRICS.keys() and found == pytest.approx(expected, abs=1e-6)
    if samples > 1:  # scikit-learn needs both labels of a two-class problem
        sklearn_brier = brier_score_loss(labels.numpy(), probabilities, labels=every_class, scale_by_half=False)
        assert found["brier"] == pytest.approx(sklearn_brier, abs=1e-6)


@pytest.mark.parametrize("num_bins", [1, 2, 10, 15, 100])
def test_calibration_error_image_by_image(num_bins):
    """Guo et al. (2017), equations 2 to 5."""
    logits, labels = make_batch(1500, 5, sharpness=1.0)
    confidence, prediction = logits.double().softmax(-1).max(-1)
    correct, expected = (prediction == labels).double(), 0.0
    for m in range(num_bins):
        inside = (confidence > m / num_bins) & (confidence <= (m + 1) / num_bins)
        expected += float((correct[inside].sum() - confidence[inside].sum()).abs()) / 1500
    found = expected_calibration_error(score(logits.double(), labels), np.ones(1500), num_bins)
    assert float(found) == pytest.approx(expected)


def test_batches_weights_and_files_change_nothing(tmp_path):
    logits, labels = make_batch(300, 20)
    found = score(logits, labels)
    parts = [score(*batch) for batch in zip(logits.split(7), labels.split(7), strict=True)]
    assert measure(Predictions.concatenate(parts)) == pytest.approx(measure(found), rel=1e-6)
    found.save(tmp_path / "new" / "p.parquet")
    assert measure(Predictions.load(tmp_path / "new" / "p.parquet")) == measure(found)
    drawn = np.random.default_rng(0).integers(0, 300, (2, 300))
    weights = np.array([np.bincount(row, minlength=300) for row in drawn], float)
    for places, own in zip(drawn, weights, strict=True):
        assert measure(found, own) == pytest.approx(measure(found.select(places)))
    for metric in METRICS.values():
        each = [float(metric.function(found, own)) for own in weights]
        assert metric.function(found, weights) == pytest.approx(each)


def test_a_resample_is_what_the_drawn_images_score(monkeypatch):
    found = score(*make_batch(200, 10))
    rng = np.random.default_rng([5, 0])
    monkeypatch.setattr("hf_reinforce.metrics.checksum", lambda rows: 0)
    expected = [list(measure(found.select(rng.integers(0, 200, 200))).values()) for _ in range(3)]
    assert np.allclose(resample(found, 3, seed=5), expected, atol=1e-9)
    assert not np.allclose(resample(found, 3, seed=1), expected)
    monkeypatch.setattr("hf_reinforce.metrics._WEIGHTS_AT_ONCE", 200)
    assert np.allclose(resample(found, 3, seed=5), expected, atol=1e-9), "blocks of one resample"


def test_scores_of_single_images():
    logits, labels = make_batch(200, 8)
    found = score(logits, labels, np.arange(200) + 7)
    probabilities = logits.double().softmax(-1).numpy()
    own = probabilities[np.arange(200), labels]
    assert found.row.tolist() == list(range(7, 207)) and found.label.tolist() == labels.tolist()
    np.testing.assert_array_equal(found.prediction, probabilities.argmax(1))
    np.testing.assert_array_equal(found.correct_top5, (probabilities > own[:, None]).sum(1) < 5)
    np.testing.assert_allclose(found.confidence, probabilities.max(1), atol=1e-6)
    np.testing.assert_allclose(found.nll, -np.log(own), atol=1e-6)
    np.testing.assert_allclose(found.brier, ((probabilities - np.eye(8)[labels]) ** 2).sum(1), atol=1e-6)


def test_a_confidence_of_one_is_in_the_last_bin_with_those_just_below():
    logits, labels = torch.tensor([[200.0, 0.0]] * 3), torch.tensor([0, 0, 1])
    diagram = reliability(score(logits, labels))
    assert diagram.count == [0] * 14 + [3] and diagram.confidence[:14] == diagram.accuracy[:14] == [None] * 14
    assert (diagram.confidence[-1], diagram.accuracy[-1]) == (1.0, pytest.approx(2 / 3))
    expected = {"accuracy": 2 / 3, "accuracy_top5": 1.0, "ece": 1 / 3, "ece_adaptive": 1 / 3, "nll": 200 / 3}
    assert measured(logits, labels) == pytest.approx({**expected, "brier": 2 / 3})
    # One error at 1.0 and one hit at 0.95: apart they would miss by (1 + 0.05) / 2, together by |0.5 - 0.975|.
    logits = torch.tensor([[500.0, 0.0], [math.log(0.95), math.log(0.05)]], dtype=torch.float64)
    assert measured(logits, torch.tensor([1, 0]))["ece"] == pytest.approx(0.475)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_bin_holds_its_upper_edge(dtype):
    for classes in (1, 3, 5, 15):  # in every precision
        diagram = reliability(score(torch.zeros(1, classes, dtype=dtype), torch.tensor([0])))
        assert np.flatnonzero(diagram.count).tolist() == [15 // classes - 1]
    for confidence, num_bins, expected in ((0.5, 4, 1), (0.75, 4, 2), (0.5 + 2**-20, 4, 2), (0.5, 15, 7)):
        logits = torch.tensor([[confidence, 1 - confidence]], dtype=torch.float64).log()
        assert np.flatnonzero(reliability(score(logits, torch.tensor([0])), num_bins).count).tolist() == [expected]


def test_equal_logits_and_few_classes():
    found = score(torch.zeros(8, 8), torch.arange(8))
    assert found.correct.tolist() == [True] + [False] * 7, "the lower class wins"
    assert found.correct_top5.tolist() == [True] * 5 + [False] * 3
    assert all(measured(*make_batch(64, classes))["accuracy_top5"] == 1 for classes in (1, 2, 4, 5))


def test_types_of_logits_and_labels_change_nothing():
    logits, labels = make_batch(200, 6)
    expected = measured(logits.double(), labels)
    assert measured(logits.double().log_softmax(-1), labels) == pytest.approx(expected), "log-probabilities"
    for dtype in (torch.float16, torch.bfloat16):
        assert measured(logits.to(dtype), labels) == measured(logits.to(dtype).float(), labels)
    copies = logits.clone(), labels.clone()
    assert measured(logits.clone().requires_grad_(), labels.to(torch.uint8)) == measured(logits, labels)
    assert torch.equal(logits, copies[0]) and torch.equal(labels, copies[1])
    if torch.cuda.is_available():
        assert measured(logits.cuda(), labels) == pytest.approx(measured(logits, labels), abs=1e-6)


FINITE = r"finite logits, found nan or infinity in row 0; check the weights"


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"labels from 0 to 2, .* found 3 in row 1; check"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), r"found -1 in row 0; check"),
        (torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), torch.zeros(2).long(), r"infinity in row 1; check"),
        (torch.tensor([[math.inf, 1.0]]), torch.zeros(1).long(), FINITE),
        (torch.tensor([[0.0, -math.inf]]), torch.zeros(1).long(), FINITE),
        (
            torch.zeros(2, 3),
            torch.zeros(3).long(),
            r"\[B, C\] .* \[B\], found .* \[2, 3\] and torch.int64 \[3\]; pass",
        ),
        (torch.zeros(3), torch.zeros(3).long(), r"found .* \[3\] and"),
        (torch.zeros(2, 3), torch.zeros(2, 3).long(), r"and .* \[2, 3\]"),
        (torch.zeros(2, 0), torch.zeros(2).long(), r"found .* \[2, 0\]"),
        (torch.zeros(2, 3), torch.zeros(2), r"integer labels .* and torch.float32"),
        (torch.zeros(2, 3), torch.zeros(2).bool(), r"and torch.bool"),
        (torch.zeros(2, 3).long(), torch.zeros(2).long(), r"floating-point logits .* found torch.int64"),
        (torch.zeros(0, 3), torch.zeros(0).long(), r"at least one image, and there is none; name a dataset"),
    ],
)
def test_refuses_a_bad_batch(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        measured(logits, labels)


def test_files_that_are_no_predictions(tmp_path):
    parquet.write_table(pa.table({"row": [1]}), tmp_path / "other.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    for name in ("none", "other", "cut"):
        with pytest.raises(ValueError, match=f"{name}.parquet holds no predictions .*--output_dir"):
            Predictions.load(tmp_path / f"{name}.parquet")


# -- the adaptive calibration error -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bins", [1, 2, 15, 40])
@pytest.mark.parametrize("samples", [1, 14, 15, 150, 1003])
def test_equal_groups_of_the_sorted_images(samples, num_bins):
    confidence, correct = draw(samples)
    assert adaptive(confidence, correct, num_bins) == pytest.approx(
        adaptive_reference(confidence, correct, num_bins), abs=1e-12
    )


@pytest.mark.parametrize("levels", [1, 3, 8])
def test_the_order_of_equal_confidences_does_not_matter(levels):
    confidence, correct = draw(500, levels)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(500)
        assert adaptive(confidence[order], correct[order]) == pytest.approx(adaptive(confidence, correct), abs=1e-12)


def test_adaptive_errors_by_hand():
    # Two bins of three images: 0.5 with one hit of one, then five at 0.9 with one hit. Each of these counts 0.2 hits.
    confidence, correct = np.array([0.5, 0.9, 0.9, 0.9, 0.9, 0.9]), np.array([1, 0, 0, 1, 0, 0])
    first, second = (1 + 0.2 * 2) - (0.5 + 2 * 0.9), 0.2 * 3 - 3 * 0.9
    assert adaptive(confidence, correct, 2) == pytest.approx((abs(first) + abs(second)) / 6)
    assert adaptive(np.full(90, 0.75), (np.arange(90) < 30).astype(int)) == pytest.approx(0.75 - 1 / 3)
    assert (adaptive(np.ones(20), np.ones(20, int)), adaptive(np.ones(20), np.zeros(20, int))) == (0.0, 1.0)


# -- another metric, and the module of `evaluate` -----------------------------------------------------------------


def test_a_metric_is_a_function_and_a_line(monkeypatch, tmp_path):
    """Seen by the Trainer, the evaluation with its report, and the bootstrap."""

    def sure_errors(predictions, weights):
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_module_of_evaluate():
    logits, labels = make_batch(40, 7)
    module = evaluate.load(str(Path(hf_reinforce.__file__).parent / "evaluate_module/classification_calibration.py"))
    for batch in zip(logits.split(16), labels.split(16), strict=True):
        module.add_batch(predictions=batch[0].tolist(), references=batch[1].tolist())
    assert module.compute() == pytest.approx({**measured(logits, labels), "num_samples": 40}, abs=1e-6)


# -- corruption errors --------------------------------------------------------------------------------------------


def test_corruption_errors_agree_with_published_figures():
    means = dict(zip(ALEXNET_ERRORS, map(float, ALEXNET.split()), strict=True))
    assert {name: sum(errors) / 5 for name, errors in ALEXNET_ERRORS.items()} == pytest.approx(means, abs=1e-9)
    assert mean_corruption_error(ALEXNET_ERRORS) == pytest.approx(1.0)
    assert relative_mean_corruption_error(ALEXNET_ERRORS, ALEXNET_CLEAN_ERROR) == pytest.approx(1.0)
    # The paper rounds each corruption error to a percent, so its means are met within half a percent.
    shares = zip(means.items(), map(int, RESNET50.split()), strict=True)
    errors = {name: [share / 100 * mean] * 5 for (name, mean), share in shares}
    assert mean_corruption_error(errors) == pytest.approx(0.767, abs=0.005)
    assert relative_mean_corruption_error(errors, 0.239) == pytest.approx(1.050, abs=0.005)


def test_corruption_errors_by_hand():
    errors = {"fog": [0.3, 0.5], "snow": [0.2, 0.6]}
    baseline = {"fog": [0.5, 0.7], "snow": [0.4, 0.9], "frost": [0.1, 0.1]}  # some corruptions are enough
    assert mean_corruption_error(errors, baseline) == pytest.approx((0.8 / 1.2 + 0.8 / 1.3) / 2)
    relative = relative_mean_corruption_error(errors, 0.2, baseline, 0.25)
    assert relative == pytest.approx((0.4 / 0.7 + 0.4 / 0.8) / 2)
    assert relative_mean_corruption_error({"fog": [0.2] * 5}, 0.2) == 0.0, "it does no harm to the model"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({}, 0.2), r"no corruption errors; pass \{corruption"),
        (({"rain": [0.5] * 5}, 0.2), r"of 'rain' .*leave out corruptions that the baseline lacks"),
        (({"fog": [0.5] * 4}, 0.2), r"of 'fog' at the severities of the baseline"),
        (({"fog": [50.0] * 5}, 0.2), r"Expected errors from 0 to 1 .*Divide percentages by 100"),
        (({"fog": [0.5] * 4 + [math.nan]}, 0.2), r"found .*nan"),
        (({"fog": [-0.1] * 5}, 0.2), r"Expected errors from 0 to 1"),
        (({"fog": [0.5] * 5}, 20), r"and of clean images; found .* and 20"),
        (({"fog": [0.5]}, 0.2, {"fog": [0.6]}, -1), r"of the baseline \[0.6\] and -1"),
        (({"fog": [0.5]}, 0.2, {"fog": [0.6]}, 0.6), r"no worse under 'fog' than on clean images, whose error is 0.6"),
        (({"fog": [0.5]}, 0.0, {"fog": [0.0]}, 0.0), r"no worse under 'fog'"),
    ],
)
def test_refuses_what_is_no_table_of_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        relative_mean_corruption_error(*arguments)
