"""From accumulated metrics and predictions to the figures that an evaluation records."""

import logging
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
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
from hf_reinforce.evaluation.suites import ALEXNET, CLEAN, Entry, baseline_errors
from hf_reinforce.evaluation.tasks import Task, suffix
from hf_reinforce.metrics import ClassificationMetrics, mean_corruption_error, relative_mean_corruption_error

logger = logging.getLogger(__name__)

_LIBRARIES = ("torch", "transformers", "timm", "datasets", "numpy", "pillow", "simplejpeg", "imagecorruptions-imaug")


def summarise(
    entry: Entry,
    name: str,
    task: Task,
    metrics: ClassificationMetrics,
    predictions: Predictions,
    settings: Mapping[str, Any] | None = None,
) -> DatasetResult:
    """The figures of one evaluated data set; `settings` as `DatasetResult` records them."""
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
        revision=task.revision,
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
        settings=dict(settings or {}),
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
    errors = measured_errors(name, entry, evaluation)
    clean = errors.pop(CLEAN, None)
    if not errors:
        return {}
    found = {"mean_corruption_accuracy": 1 - float(np.mean(list(errors.values())))}
    published = set(errors) == set(CORRUPTIONS) and len(entry.severities) == 5
    if not entry.baseline or (entry.baseline == ALEXNET and not published):
        return found
    baseline, baseline_clean = baseline_errors(entry.baseline, len(entry.severities))
    found["mce"] = mean_corruption_error(errors, baseline)
    if clean is not None and baseline_clean is not None:
        try:
            found["relative_mce"] = relative_mean_corruption_error(errors, clean[0], baseline, baseline_clean)
        except ValueError as error:
            logger.warning("%s has no relative_mce: %s", name, error)
    return found


def measured_errors(name: str, entry: Entry, evaluation: Evaluation) -> dict[str, list[float]]:
    """Errors of an entry with corruptions, as a file for `baseline` holds them.

    Returns:
        Corruption -> error at each severity, in [0, 1], and `clean` -> [error] where the entry names clean images that
        were evaluated; empty unless every corruption was evaluated at every severity.
    """
    errors: dict[str, list[float]] = {}
    for key, result in evaluation.datasets.items():
        how = result.corruption
        if how is not None and how.name in CORRUPTIONS and key == name + suffix(how):
            errors.setdefault(how.name, []).append(1 - float(result.metrics["accuracy"] or 0))
    wanted = {how.name for how in entry.on_the_fly} or set(CORRUPTIONS)
    if set(errors) < wanted or any(len(own) != len(entry.severities) for own in errors.values()):
        return {}
    if entry.clean in evaluation.datasets:
        errors[CLEAN] = [1 - float(evaluation.datasets[entry.clean].metrics["accuracy"] or 0)]
    return errors


def machine(device: str) -> dict[str, Any]:
    """What something was measured on."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}
    return {"device": device, "cores": os.cpu_count(), "cpu": _cpu(), "system": platform.system(), **gpu}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def versions() -> dict[str, str]:
    """Versions of the libraries that the figures depend on, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
