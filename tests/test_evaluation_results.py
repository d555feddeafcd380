"""What an evaluation writes is what is read back, and a damaged or foreign file says what it is."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from hf_reinforce.evaluation.results import Corruption, DatasetResult, Evaluation
from hf_reinforce.metrics import Predictions, ReliabilityDiagram


def predictions(count=4):
    return Predictions(
        row=np.arange(count),
        label=np.array([0, 1, 2, 1]),
        prediction=np.array([0, 2, 2, 0]),
        confidence=np.linspace(0.5, 0.9, count, dtype=np.float32),
        nll=np.linspace(0.1, 2.3, count, dtype=np.float32),
        brier=np.linspace(0.0, 1.9, count, dtype=np.float32),
        correct_top5=np.array([True, False, True, True]),
    )


def result(**changes):
    values = {
        "title": "Pets corrupted",
        "dataset_name": "owner/pets",
        "split": "test",
        "num_samples": 4,
        "class_map": "the same class names",
        "class_names": ["ant", "bee"],
        "metrics": {"accuracy": 0.5, "ece_adaptive": None},
        "reliability": ReliabilityDiagram([0.4, None], [0.5, None], [4, 0]),
        "per_class_accuracy": {"ant": 0.5, "bee": None},
        "predictions": "predictions/pets.parquet",
        "corruption": Corruption("fog", 2),
        "settings": {"seed": 0, "image_size": 224, "scoring": "full"},
    }
    return DatasetResult(**{**values, **changes})


def test_evaluation_round_trip(tmp_path):
    evaluation = Evaluation("a + b", "suite", {"pets": result()}, {"mce": 0.7}, {"cats": "There is no dataset."})
    evaluation.save(tmp_path / "new" / "folder")
    loaded = Evaluation.load(tmp_path / "new" / "folder")
    assert loaded == evaluation and loaded.datasets["pets"].corruption == Corruption("fog", 2)
    text = (tmp_path / "new" / "folder" / "evaluation.json").read_text(encoding="utf-8")
    assert "NaN" not in text and json.loads(text)["format"] == 1


def test_files_from_before_settings_were_recorded(tmp_path):
    Evaluation("student", None, {"pets": result()}).save(tmp_path)
    path = tmp_path / "evaluation.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["datasets"]["pets"].pop("settings")["image_size"] == 224
    path.write_text(json.dumps(content), encoding="utf-8")
    assert Evaluation.load(tmp_path).datasets["pets"].settings == {}


def test_predictions_round_trip(tmp_path):
    written = predictions()
    written.save(tmp_path / "predictions" / "pets.parquet")
    read = Predictions.load(tmp_path / "predictions" / "pets.parquet")
    for name in ("row", "label", "prediction", "confidence", "nll", "brier", "correct_top5"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype == getattr(written, name).dtype
    assert read.correct.tolist() == [True, False, True, False] and len(read) == 4


def test_predictions_are_found_by_the_name_of_the_data_set(tmp_path):
    evaluation = Evaluation("student", None, {"pets": result()})
    predictions().save(tmp_path / result().predictions)
    assert len(evaluation.predictions(tmp_path, "pets")) == 4
    with pytest.raises(ValueError, match="has no dataset 'cats'; it has pets"):
        evaluation.predictions(tmp_path, "cats")
    evaluation = Evaluation("student", None, {"pets": result(num_samples=7)})
    with pytest.raises(
        ValueError, match=r"has 4 predictions for pets, but its evaluation\.json says 7; evaluate again"
    ):
        evaluation.predictions(tmp_path, "pets")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "has no evaluation.json; write one with recipes/evaluate.py --output_dir"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 2}', "has format 2, but this version reads format 1"),
        ('{"format": 1, "datasets": {"pets": {}}}', "is damaged"),
        ('{"format": 1, "datasets": {}, "model": "a", "unknown": 3}', "is damaged"),
    ],
)
def test_a_file_that_is_no_evaluation(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match=expected):
        Evaluation.load(tmp_path)


def test_files_that_are_no_predictions(tmp_path):
    with pytest.raises(ValueError, match="--output_dir"):
        Predictions.load(tmp_path / "none.parquet")
    parquet.write_table(pa.table({"row": [1], "label": [2]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"lacks the columns \['brier', 'confidence'"):
        Predictions.load(tmp_path / "other.parquet")
