"""From accumulated metrics and predictions to the figures that an evaluation records."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from hf_reinforce.evaluation.corruptions import CORRUPTIONS
from hf_reinforce.evaluation.results import (
    DatasetResult,
    Evaluation,
    Predictions,
    ReliabilityDiagram,
    predictions_file,
)
from hf_reinforce.evaluation.suites import Entry
from hf_reinforce.evaluation.tasks import Task, suffix
from hf_reinforce.metrics import ClassificationMetrics, mean_corruption_error, relative_mean_corruption_error

_LIBRARIES = ("torch", "transformers", "timm", "datasets", "numpy", "pillow", "simplejpeg", "imagecorruptions-imaug")


def summarise(
    entry: Entry, name: str, task: Task, metrics: ClassificationMetrics, predictions: Predictions
) -> DatasetResult:
    """The figures of one evaluated data set."""
    diagram = metrics.reliability()
    figures: dict[str, float | None] = {key: value for key, value in metrics.compute().items() if key != "num_samples"}
    if predictions.texture is not None:
        figures |= shape_bias(predictions)
    names = task.class_map.names
    count = np.bincount(predictions.label, minlength=len(names))
    right = np.bincount(predictions.label[predictions.correct], minlength=len(names))
    return DatasetResult(
        title=entry.title or name,
        dataset_name=entry.dataset_name,
        dataset_config_name=entry.dataset_config_name,
        revision=entry.revision,
        split=entry.split,
        num_samples=len(predictions),
        class_map=task.class_map.description,
        corruption=task.corruption,
        notes=entry.note,
        metrics=figures,
        reliability=ReliabilityDiagram(
            [None if np.isnan(value) else value for value in diagram.confidence.tolist()],
            [None if np.isnan(value) else value for value in diagram.accuracy.tolist()],
            [int(value) for value in diagram.count.tolist()],
        ),
        per_class_accuracy={
            label: float(r / n) if n else None for label, n, r in zip(names, count, right, strict=True)
        },
        predictions=predictions_file(name),
        class_names=list(names),
    )


def shape_bias(predictions: Predictions) -> dict[str, float | None]:
    """Which cue decides where shape and texture conflict (Geirhos et al., ICLR 2019).

    Args:
        predictions: with textures; the labels are the shapes.

    Returns:
        `shape_bias`: of the predictions that are the shape or the texture, the share that are the shape; None without
        any. `texture_accuracy`: share of all images whose texture is predicted. Images whose cues agree are left out.
    """
    if predictions.texture is None:
        raise ValueError("The shape bias needs predictions with textures; name a texture_column.")
    conflict = predictions.label != predictions.texture
    shape = int((predictions.correct & conflict).sum())
    texture = int(((predictions.prediction == predictions.texture) & conflict).sum())
    images = int(conflict.sum())
    return {
        "shape_bias": shape / (shape + texture) if shape + texture else None,
        "texture_accuracy": texture / images if images else None,
    }


def corruption_summary(name: str, entry: Entry, evaluation: Evaluation) -> dict[str, float]:
    """The figures over all corruptions and severities of an entry; empty unless each of them was evaluated.

    Returns:
        `mean_corruption_accuracy`, in [0, 1]; for an entry with a baseline that has these corruptions also `mce`, and
        with a clean entry `relative_mce`, 1 being as good as the baseline.
    """
    errors: dict[str, list[float]] = {}
    for key, result in evaluation.datasets.items():
        how = result.corruption
        if how is not None and how.name in CORRUPTIONS and key == name + suffix(how):
            errors.setdefault(how.name, []).append(1 - float(result.metrics["accuracy"] or 0))
    wanted = {how.name for how in entry.on_the_fly} or set(CORRUPTIONS)
    if set(errors) < wanted or any(len(own) != len(entry.severities) for own in errors.values()):
        return {}
    found = {"mean_corruption_accuracy": 1 - float(np.mean(list(errors.values())))}
    if entry.baseline and set(errors) == set(CORRUPTIONS) and len(entry.severities) == 5:
        found["mce"] = mean_corruption_error(errors)
        if entry.clean in evaluation.datasets:
            clean = evaluation.datasets[entry.clean].metrics["accuracy"] or 0.0
            found["relative_mce"] = relative_mean_corruption_error(errors, 1 - clean)
    return found


def machine(device: str) -> dict[str, Any]:
    """What an evaluation runs on."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}
    return {"device": device, "cores": os.cpu_count(), "cpu": platform.machine(), "system": platform.system(), **gpu}


def versions() -> dict[str, str]:
    """Versions of the libraries that the figures depend on, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
