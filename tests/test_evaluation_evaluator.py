"""The evaluator against figures computed by hand, corruptions on the fly, and what is written and read back."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated import write_evaluation
from tiny import NAMES, tiny_dataset, tiny_teacher
from torch.utils.data import DataLoader

from hf_reinforce import EvaluationSettings, ImageSource, SuiteEntry
from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.evaluation import corruptions, evaluator
from hf_reinforce.evaluation.corruptions import CORRUPTIONS, CorruptedDataset, corrupt
from hf_reinforce.evaluation.evaluator import best_label, evaluate_entry, evaluate_task, sentence
from hf_reinforce.evaluation.results import Corruption, Evaluation
from hf_reinforce.evaluation.tasks import open_task
from hf_reinforce.images import from_pil
from hf_reinforce.metrics import measure, score
from hf_reinforce.replay.views import AugmentedDataset

C, ROWS = 5, 11
SETTINGS = EvaluationSettings(batch_size=4, num_workers=0, progress=False)


@pytest.fixture(scope="module")
def model():
    return tiny_teacher(C)


def task_of(labels=C, rows=ROWS, **options):
    return open_task(tiny_dataset(rows, labels=labels), SuiteEntry("pets", **options), NAMES[:C], C)


def answers(model, task):
    """Log-probabilities of the model for each image, one at a time."""
    dataset = AugmentedDataset(task.source, evaluation_policy(16))
    return torch.cat([model(dataset[row]["pixel_values"][None]) for row in range(len(dataset))])


def test_figures_and_predictions_by_hand(model):
    task, labels = task_of(), torch.arange(ROWS) % C
    own, predictions = answers(model, task), evaluate_task(model, task, SETTINGS)
    np.testing.assert_array_equal(predictions.prediction, own.argmax(-1))
    np.testing.assert_allclose(predictions.confidence, own.exp().amax(-1), rtol=1e-5)
    np.testing.assert_allclose(predictions.nll, -own[torch.arange(ROWS), labels], rtol=1e-4)
    evaluation = Evaluation("tiny")
    evaluate_entry(model, "pets", SuiteEntry("pets"), {"": task}, SETTINGS, evaluation)
    result = evaluation.datasets["pets"]
    assert result.metrics == pytest.approx(measure(score(own, labels)), rel=1e-5)
    for label, name in enumerate(NAMES[:C]):
        assert result.per_class_accuracy[name] == pytest.approx(predictions.correct[labels == label].mean())
    assert sum(result.reliability.count) == ROWS and result.metrics["accuracy"] == predictions.correct.mean()


@pytest.mark.parametrize(("scoring", "columns"), [("restricted", slice(2)), ("full", slice(C))])
def test_restricted_and_full_scoring(model, scoring, columns):
    task = task_of(labels=2, scoring=scoring)  # ants and bees only
    predictions, own = evaluate_task(model, task, SETTINGS), answers(model, task)[:, columns]
    np.testing.assert_array_equal(predictions.prediction, own.argmax(-1))
    np.testing.assert_allclose(predictions.confidence, own.softmax(-1).amax(-1), rtol=1e-4)


def test_any_of_several_labels_is_right():
    answers = torch.tensor([[0.1, 0.6, 0.3], [0.1, 0.6, 0.3], [0.5, 0.2, 0.3]]).log()
    labels = torch.tensor([[0, 2, 1], [2, 0, -1], [1, -1, -1]])
    assert best_label(answers, labels).tolist() == [1, 2, 1]


def test_processes_share_the_images(model, monkeypatch):
    """Three processes, one after the other: each has its images, and what they gather is what one process finds."""
    task = task_of(rows=2)
    expected, batches = evaluate_task(model, task, SETTINGS), []
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


def test_errors_are_one_sentence():
    text = (
        "Caught ImageError in DataLoader worker process 0.\nTraceback:\n  ...\nImageError: Row 3: there is no image."
    )
    assert sentence(ValueError(text)) == "Row 3: there is no image."
    assert sentence(OSError("two\nlines")) == "two lines"
    model = tiny_teacher(C)
    model.members[0].model.head.bias.data[1] = torch.nan
    with pytest.raises(ValueError, match="finite logits, found nan or infinity .* check the weights, or evaluate in"):
        evaluate_task(model, task_of(), SETTINGS)


# -- corruptions --------------------------------------------------------------------------------------------------


def distance(image, corrupted):
    return (image.float() - corrupted.float()).abs().mean().item()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption(name, photo):
    pytest.importorskip("imagecorruptions", reason="needs the extra robustness")
    image = from_pil(photo.resize((40, 32)))
    weak, strong = (corrupt(image, Corruption(name, severity), 0, 7) for severity in (1, 5))
    assert weak.shape == image.shape and weak.dtype == torch.uint8 and distance(image, weak) > 0
    if name != "fog":  # its strongest setting is also its smoothest
        assert distance(image, weak) < distance(image, strong)
    np.random.seed(5)
    expected = np.random.get_state()[1].copy()
    assert torch.equal(corrupt(image, Corruption(name, 5), 0, 7), strong)
    assert (np.random.get_state()[1] == expected).all(), "the global generator is left alone"
    if name in ("gaussian_noise", "impulse_noise", "glass_blur", "snow", "frost", "elastic_transform"):
        others = [corrupt(image, Corruption(name, 5), seed, row) for seed, row in ((0, 8), (1, 7))]
        assert not any(torch.equal(strong, other) for other in others), "seed and row change what is random"


def test_workers_and_batches_change_nothing():
    pytest.importorskip("imagecorruptions", reason="needs the extra robustness")
    source, rows = ImageSource.of(tiny_dataset(5, labels=0)), np.arange(10, 15)
    for name in ("shot_noise", "glass_blur"):
        dataset = CorruptedDataset(source, evaluation_policy(32), Corruption(name, 4), rows, seed=3)
        batches = []
        for batch_size, workers in ((5, 0), (2, 2)):
            loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=dataset.collate)
            batches.append(torch.cat([batch["pixel_values"] for batch in loader]))
        assert torch.equal(*batches)
        clean = super(CorruptedDataset, dataset).pixels(2, dataset.params(2, 0))
        assert torch.equal(batches[0][2], corrupt(clean, Corruption(name, 4), 3, 12))


def test_images_too_small_and_the_missing_package(monkeypatch):
    with pytest.raises(ValueError, match="at least 32 pixels, not 16; pass image_size"):
        corrupt(torch.zeros(3, 16, 40, dtype=torch.uint8), Corruption("fog", 1), 0, 0)
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    corruptions._library.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'hf-reinforce\[robustness\]'"):
        corrupt(torch.zeros(3, 32, 32, dtype=torch.uint8), Corruption("fog", 1), 0, 0)
    corruptions._library.cache_clear()


# -- files --------------------------------------------------------------------------------------------------------


def test_evaluation_round_trip(tmp_path):
    folder = write_evaluation(tmp_path / "a", corruptions=[("fog", 2)]) / "evaluation"
    found = Evaluation.load(folder)
    found = replace(found, summary={"mce": 0.7}, skipped={"cats": "There is no dataset."})
    found.datasets["pets"] = replace(found.datasets["pets"], metrics={"ece": None}, settings={"image_size": 224})
    found.save(tmp_path / "new" / "folder")
    assert Evaluation.load(tmp_path / "new" / "folder") == found
    assert found.datasets["pets-fog-2"].corruption == Corruption("fog", 2)
    path = tmp_path / "new/folder/evaluation.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["format"] == 1 and content["datasets"]["pets"].pop("settings")
    path.write_text(json.dumps(content), encoding="utf-8")
    assert Evaluation.load(path.parent).datasets["pets"].settings == {}, "files from before they were recorded"
    found.datasets["pets"] = replace(found.datasets["pets"], num_samples=7)
    with pytest.raises(ValueError, match=r"has 300 predictions for pets, .*evaluation\.json says 7; evaluate again"):
        found.predictions(folder, "pets")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "has no evaluation.json; write one with recipes/evaluate.py --output_dir"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 2, "datasets": {}, "model": "a"}', "has format 2, this version reads 1"),
        ('{"format": 1, "datasets": {"pets": {}}}', "is damaged"),
        ('{"format": 1, "datasets": {}, "model": "a", "unknown": 3}', "is damaged"),
    ],
)
def test_a_file_that_is_no_evaluation(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match=expected):
        Evaluation.load(tmp_path)
