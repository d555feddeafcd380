"""Evaluations of students that never existed: logits are drawn, and scored as a model's."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hf_reinforce.evaluation.results import (
    Corruption,
    DatasetResult,
    Evaluation,
    Predictions,
    ReliabilityDiagram,
    predictions_file,
)
from hf_reinforce.metrics import ClassificationMetrics, brier_score, negative_log_likelihood, top_k_correct

NAMES = ("ant", "bee_fly", "cat", "dog", "eel", "fox", "gnu", "hen", "jay", "yak")


def simulated_logits(
    num_images: int = 300, seed: int = 0, strength: float = 1.5, images: int = 0, sharpness: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Logits [N, 10] of a student and labels [N].

    Args:
        num_images: N.
        seed: of the student, who has some noise to himself.
        strength: by how much the label's logit is larger; 0 is chance.
        images: seed of the labels and of the noise that all students see.
        sharpness: factor of the logits; the further from 1, the worse calibrated.
    """
    common, own = np.random.default_rng([1, images]), np.random.default_rng([2, seed, images])
    labels = common.integers(0, len(NAMES), num_images)
    logits = common.normal(size=(num_images, len(NAMES))) + 0.6 * own.normal(size=(num_images, len(NAMES)))
    logits[np.arange(num_images), labels] += strength
    return torch.tensor(logits * sharpness), torch.tensor(labels)


def predictions_of(logits: Tensor, labels: Tensor) -> Predictions:
    """What an evaluation writes of these logits."""
    probabilities = logits.softmax(-1)
    confidence, prediction = probabilities.max(-1)
    return Predictions(
        row=np.arange(len(labels)),
        label=labels.numpy(),
        prediction=prediction.numpy(),
        confidence=confidence.float().numpy(),
        label_probability=probabilities.gather(1, labels[:, None])[:, 0].float().numpy(),
        nll=negative_log_likelihood(logits, labels).float().numpy(),
        brier=brier_score(logits, labels).float().numpy(),
        correct_top5=top_k_correct(logits, labels, 5).bool().numpy(),
    )


def write_evaluation(
    folder: Path,
    datasets: Sequence[str] = ("pets",),
    corruptions: Sequence[tuple[str, int]] = (),
    training: dict[str, object] | None = None,
    **model: float,
) -> Path:
    """Writes the evaluation of a simulated student into `folder/evaluation`.

    Args:
        folder: of the student.
        datasets: names of data sets.
        corruptions: name and severity of the corrupted forms of the first data set; each severity costs strength.
        training: `method`, `epochs` and `seconds` of the training, nothing is written without.
        model: arguments of `simulated_logits`.

    Returns:
        The student's folder.
    """
    evaluation = Evaluation(f"outputs/{folder.name}", machine={"device": "cpu"}, versions={"torch": "2.8"})
    strength = model.pop("strength", 1.5)
    for images, name in enumerate(datasets):
        logits, labels = simulated_logits(**{"images": images, "strength": strength, **model})
        evaluation.datasets[name] = _result(folder, name, logits, labels)
    for kind, severity in corruptions:
        name = f"{datasets[0]}-{kind}-{severity}"
        logits, labels = simulated_logits(**{**model, "strength": strength - 0.1 * severity})
        evaluation.datasets[name] = _result(folder, name, logits, labels, Corruption(kind, severity))
    evaluation.save(folder / "evaluation")
    if training:
        results = {"epoch": training["epochs"], "train_runtime": training["seconds"]}
        (folder / "train_results.json").write_text(json.dumps(results))
        (folder / "run.json").write_text(json.dumps({"method": training["method"]}))
    return folder


def _result(folder, name, logits, labels, corruption=None):
    predictions = predictions_of(logits, labels)
    predictions.save(folder / "evaluation" / predictions_file(name))
    metrics = ClassificationMetrics()
    metrics.update(logits, labels)
    diagram = metrics.reliability()
    confidence, accuracy = (
        [None if np.isnan(value) else value for value in values.tolist()]
        for values in (diagram.confidence, diagram.accuracy)
    )
    found = {key: value for key, value in metrics.compute().items() if key != "num_samples"}
    return DatasetResult(
        title=name.title(),
        dataset_name="me/pets" if corruption else f"me/{name}",
        split="test",
        num_samples=len(labels),
        class_map="the model's classes are the data set's",
        class_names=list(NAMES),
        metrics=found,
        reliability=ReliabilityDiagram(confidence, accuracy, [int(count) for count in diagram.count]),
        per_class_accuracy={},
        predictions=predictions_file(name),
        corruption=corruption,
    )
