"""Evaluations of students that never existed: logits are drawn, and scored as a model's."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hf_reinforce.evaluation.results import Corruption, DatasetResult, Evaluation, predictions_file
from hf_reinforce.metrics import measure, reliability, score

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
        datasets: names of datasets.
        corruptions: name and severity of the corrupted forms of the first dataset; each severity costs strength.
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
    predictions = score(logits.float(), labels)
    predictions.save(folder / "evaluation" / predictions_file(name))
    return DatasetResult(
        title=name.title(),
        dataset_name="me/pets" if corruption else f"me/{name}",
        split="test",
        num_samples=len(labels),
        class_map="the model's classes are the dataset's",
        class_names=list(NAMES),
        metrics=measure(predictions),
        reliability=reliability(predictions),
        per_class_accuracy={},
        predictions=predictions_file(name),
        corruption=corruption,
    )
