"""Evaluates a student, a teacher or an ensemble on suites of data sets."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HTTPError
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.evaluation.corruptions import CorruptedDataset
from hf_reinforce.evaluation.framing import as_evaluated, framing
from hf_reinforce.evaluation.results import ERRORS_FOLDER, DatasetResult, Evaluation, Predictions
from hf_reinforce.evaluation.suites import Entry, Suite
from hf_reinforce.evaluation.summary import (
    corruption_summary,
    machine,
    measured_errors,
    summarise,
    versions,
)
from hf_reinforce.evaluation.tasks import Task, open_tasks
from hf_reinforce.metrics import ClassificationMetrics
from hf_reinforce.models.teachers import Teacher
from hf_reinforce.replay.views import AugmentedDataset
from hf_reinforce.store.parquet import write_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How images are shown to the model.

    Attributes:
        batch_size: images per forward pass.
        num_workers: processes that decode and corrupt.
        device: device of the model.
        image_size: side of the evaluated square in pixels, default the largest input of the model's members.
        crop_pct: share of the shorter side that is evaluated, default the model's.
        seed: seed of the corruptions.
        progress: whether to show a progress bar.
    """

    batch_size: int = 64
    num_workers: int = 2
    device: str = "cpu"
    image_size: int | None = None
    crop_pct: float | None = None
    seed: int = 0
    progress: bool = True


def evaluate_task(
    model: Teacher, task: Task, settings: Settings, name: str = ""
) -> tuple[ClassificationMetrics, Predictions]:
    """Evaluates a model on one data set. Under several processes each takes a part, and all get the whole result.

    Args:
        model: on `settings.device`.
        task: the images.
        settings: how they are shown.
        name: name of the data set, for the progress bar.

    Raises:
        ValueError: if an image cannot be read, the model answers with numbers that are not finite, or the processes
            have different ones.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        model.check_processes()
    try:
        part: _Part | Exception = _evaluate_part(model, task, settings, name, world)
    except (ValueError, OSError) as error:
        part = error
    parts = [part]
    if world > 1:  # an error, too, reaches all, or the others would wait for ever
        from accelerate.utils import gather_object

        parts = gather_object(parts)
    found = []
    for part in parts:
        if isinstance(part, Exception):
            raise part
        found.append(part)
    metrics = ClassificationMetrics.from_state(
        torch.stack([part.state for part in found]).sum(0), torch.cat([part.confidences for part in found])
    )
    order = np.argsort(np.concatenate([part.positions for part in found]))
    columns = {key: np.concatenate([part.columns[key] for part in found])[order] for key in found[0].columns}
    return metrics, Predictions(row=task.rows, texture=task.textures, **columns)


@dataclass(frozen=True)
class _Part:
    """What one process found: the state of its metrics, and its predictions for the images at some positions."""

    state: Tensor
    confidences: Tensor
    positions: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]


def _evaluate_part(model: Teacher, task: Task, settings: Settings, name: str, world: int) -> _Part:
    model, rank = as_evaluated(model, settings.image_size), int(os.environ.get("RANK", 0))
    positions = np.arange(rank, len(task.rows), world)
    dataset = _dataset(model, task, settings)
    loader = DataLoader(
        dataset,
        settings.batch_size,
        sampler=positions.tolist(),
        num_workers=settings.num_workers,
        collate_fn=dataset.collate,
        pin_memory=settings.device.startswith("cuda"),
    )
    metrics, columns, done = ClassificationMetrics(), dict[str, list[Tensor]](), 0
    for batch in tqdm(loader, desc=name, unit="batch", disable=not settings.progress or rank > 0, leave=False):
        answers = task.class_map(model(batch["pixel_values"].to(settings.device, non_blocking=True)))
        labels = torch.from_numpy(task.labels[positions[done : done + len(answers)]]).to(answers.device)
        scores = metrics.update(answers, best_label(answers, labels))
        for key in ("label", "prediction", "confidence", "label_probability", "nll", "brier"):
            columns.setdefault(key, []).append(getattr(scores, key))
        columns.setdefault("correct_top5", []).append(scores.rank < 5)
        done += len(answers)
    arrays = {key: torch.cat(values).cpu().numpy() for key, values in columns.items()}
    return _Part(metrics.state, metrics.confidences, positions, arrays)


def best_label(answers: Tensor, labels: Tensor) -> Tensor:
    """Of several right classes the one that the model finds most probable, so any of them counts as right.

    Args:
        answers: float [B, K].
        labels: int64 [B, M], -1 where there are fewer than M; the first is a class.

    Returns:
        int64 [B].
    """
    if labels.shape[1] == 1:
        return labels[:, 0]
    own = answers.gather(1, labels.clamp(min=0)).masked_fill(labels < 0, -torch.inf)
    return labels.gather(1, own.argmax(1, keepdim=True))[:, 0]


def _dataset(model: Teacher, task: Task, settings: Settings) -> AugmentedDataset:
    policy = evaluation_policy(**framing(model, settings.image_size, settings.crop_pct))
    if task.corruption is not None and task.on_the_fly:
        return CorruptedDataset(task.source, policy, task.corruption, task.rows, settings.seed)
    return AugmentedDataset(task.source, policy)


def _recorded(model: Teacher, task: Task, settings: Settings) -> dict[str, Any]:
    """What `DatasetResult.settings` records."""
    dtypes = {str(next(member.model.parameters(), torch.empty(0)).dtype) for member in model.members}
    return {
        "seed": settings.seed,
        **framing(as_evaluated(model, settings.image_size), settings.image_size, settings.crop_pct),
        "dtype": ", ".join(sorted(dtype.removeprefix("torch.") for dtype in dtypes)),
        "max_samples": task.max_samples,
        "scoring": task.class_map.scoring,
        "merge": task.class_map.merge,
    }


def evaluate_suite(
    model: Teacher,
    model_name: str,
    suite: Suite,
    settings: Settings,
    folder: str | Path | None = None,
    max_samples: int | None = None,
    finished: Callable[[Entry, str, DatasetResult], None] = lambda entry, name, result: None,
) -> Evaluation:
    """Evaluates a model on every data set of a suite.

    A data set that cannot be evaluated is noted under `skipped`, and the others go on.

    Args:
        model: a student, a teacher or an ensemble, on `settings.device`.
        model_name: name of it.
        suite: the data sets.
        settings: how images are shown.
        folder: where `evaluation.json` and the predictions are written, after each data set, and in the end
            `corruption_errors`, which another suite may name as its `baseline`; None: nowhere.
        max_samples: use the first so many images of each data set, of each corruption and severity.
        finished: called with the entry, name and figures of each data set that is done.
    """
    entries = {name: entry for name, entry in suite.entries.items() if entry.num_classes in (None, model.num_classes)}
    if not entries:
        counts = sorted({entry.num_classes for entry in suite.entries.values() if entry.num_classes})
        raise ValueError(
            f"The suite {suite.name} is for models of {counts} classes; {model_name} has {model.num_classes}."
        )
    evaluation = new_evaluation(model_name, suite.name, settings)
    for name, entry in entries.items():
        try:
            tasks = open_tasks(entry, model.class_names, model.num_classes, max_samples)
            evaluate_entry(model, name, entry, tasks, settings, evaluation, folder, finished)
        except (ValueError, OSError, HTTPError) as error:
            evaluation.skipped[name] = sentence(error)
            logger.warning("%s is skipped: %s", name, evaluation.skipped[name])
        evaluation.summary = _summary(entries, evaluation)
        if folder is not None and is_main_process():
            evaluation.save(folder)
    if folder is not None and is_main_process():
        _save_errors(Path(folder) / ERRORS_FOLDER, entries, evaluation)
    return evaluation


def evaluate_entry(
    model: Teacher,
    name: str,
    entry: Entry,
    tasks: Mapping[str, Task],
    settings: Settings,
    evaluation: Evaluation,
    folder: str | Path | None = None,
    finished: Callable[[Entry, str, DatasetResult], None] = lambda entry, name, result: None,
) -> None:
    """Evaluates a model on the tasks of one entry, and adds their figures to an evaluation.

    Arguments and errors as `evaluate_suite` and `evaluate_task`; `tasks` as `open_tasks` returns them.
    """
    for suffix, task in tasks.items():
        metrics, predictions = evaluate_task(model, task, settings, name + suffix)
        result = summarise(entry, name + suffix, task, metrics, predictions, _recorded(model, task, settings))
        evaluation.datasets[name + suffix] = result
        if folder is not None and is_main_process():
            predictions.save(Path(folder) / result.predictions)
            evaluation.save(folder)
        finished(entry, name + suffix, result)


def is_main_process() -> bool:
    """Whether this is the process that writes and prints."""
    return int(os.environ.get("RANK", 0)) == 0


def new_evaluation(model_name: str, suite: str | None, settings: Settings) -> Evaluation:
    """An evaluation without data sets yet."""
    return Evaluation(model_name, suite, machine=machine(settings.device), versions=versions())


def sentence(error: Exception) -> str:
    """What an error says, without the traceback that a worker of a DataLoader sends along."""
    text = str(error).strip()
    if text.startswith("Caught "):
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__


def _save_errors(folder: Path, entries: Mapping[str, Entry], evaluation: Evaluation) -> None:
    for name, entry in entries.items():
        if errors := measured_errors(name, entry, evaluation):
            folder.mkdir(exist_ok=True)
            write_whole(folder / f"{name}.json", json.dumps(errors, indent=1) + "\n")


def _summary(entries: Mapping[str, Entry], evaluation: Evaluation) -> dict[str, float]:
    found = {name: corruption_summary(name, entry, evaluation) for name, entry in entries.items()}
    found = {name: figures for name, figures in found.items() if figures}
    if len(found) == 1:
        return next(iter(found.values()))
    return {f"{name}_{key}": value for name, figures in found.items() for key, value in figures.items()}
