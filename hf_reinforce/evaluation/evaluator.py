"""Evaluates a student, a teacher or an ensemble on suites of datasets."""

import json
import logging
import math
import os
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HTTPError
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.evaluation.corruptions import CorruptedDataset
from hf_reinforce.evaluation.results import DatasetResult, Evaluation, machine, predictions_file, versions
from hf_reinforce.evaluation.suites import Suite, SuiteEntry
from hf_reinforce.evaluation.tasks import Task, open_tasks
from hf_reinforce.metrics import Predictions, group_means, measure, reliability, score
from hf_reinforce.models.networks import Member
from hf_reinforce.models.preprocessing import timm_preprocessing
from hf_reinforce.models.teachers import Teacher
from hf_reinforce.replay.views import AugmentedDataset
from hf_reinforce.store.atomic import write_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSettings:
    """How images are shown to the model.

    Attributes:
        batch_size: images per forward pass.
        num_workers: processes that decode and corrupt.
        device: device of the model.
        image_size: side of the evaluated square in pixels, default the largest input of the model's members.
        crop_pct: share of the shorter side that is evaluated, default the model's.
        seed: seed of the corruptions.
        progress: whether to show a progress bar.

    Example:
        from hf_reinforce import EvaluationSettings

        settings = EvaluationSettings(batch_size=128, num_workers=4, device="cpu")
    """

    batch_size: int = 64
    num_workers: int = 2
    device: str = "cpu"
    image_size: int | None = None
    crop_pct: float | None = None
    seed: int = 0
    progress: bool = True


def evaluate_suite(
    model: Teacher,
    model_name: str,
    suite: Suite,
    settings: EvaluationSettings,
    folder: str | Path | None = None,
    max_samples: int | None = None,
) -> Evaluation:
    """Evaluates a model on every dataset of a suite.

    A dataset that cannot be evaluated is noted under `skipped`, and the others go on.

    Args:
        model: a student, a teacher or an ensemble, on `settings.device`.
        model_name: name of it.
        suite: the datasets.
        settings: how images are shown.
        folder: where `evaluation.json` and the predictions are written, after each dataset, and in the end
            `corruption_errors`, which another suite may name as its `baseline`; None: nowhere.
        max_samples: use the first so many images of each dataset, of each corruption and severity.

    Example:
        from hf_reinforce import EvaluationSettings, evaluate_suite, load_suite, load_teacher

        student, suite = load_teacher("outputs/student"), load_suite("cifar_robustness")
        evaluation = evaluate_suite(student, "mine", suite, EvaluationSettings(num_workers=0), max_samples=2)
        print(evaluation.summary, evaluation.skipped)
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
            evaluate_entry(model, name, entry, tasks, settings, evaluation, folder)
        except (ValueError, OSError, HTTPError) as error:
            evaluation.skipped[name] = sentence(error)
            logger.warning("%s is skipped: %s", name, evaluation.skipped[name])
    errors = {name: entry.measured_errors(name, evaluation) for name, entry in entries.items()}
    errors = {name: own for name, own in errors.items() if own}
    for name, own in errors.items():
        prefix = f"{name}_" if len(errors) > 1 else ""
        evaluation.summary |= {prefix + key: value for key, value in entries[name].corruption_summary(own).items()}
    if folder is not None and is_main_process():
        evaluation.save(folder)
        for name, own in errors.items():
            path = Path(folder, "corruption_errors", f"{name}.json")
            path.parent.mkdir(exist_ok=True)
            write_whole(path, json.dumps(own, indent=1) + "\n")
    return evaluation


def new_evaluation(model_name: str, suite: str | None, settings: EvaluationSettings) -> Evaluation:
    """An evaluation without datasets yet."""
    return Evaluation(model_name, suite, machine=machine(settings.device), versions=versions())


def evaluate_entry(
    model: Teacher,
    name: str,
    entry: SuiteEntry,
    tasks: Mapping[str, Task],
    settings: EvaluationSettings,
    evaluation: Evaluation,
    folder: str | Path | None = None,
) -> None:
    """Evaluates a model on the tasks of one entry, as `open_tasks` returns them, and adds their figures to an
    evaluation, which is written to `folder` where there is one."""
    dtypes = {str(next(member.model.parameters(), torch.empty(0)).dtype) for member in model.members}
    for suffix, task in tasks.items():
        predictions = evaluate_task(model, task, settings, name + suffix)
        names = task.class_map.names
        accuracies = group_means(predictions.correct, predictions.label, len(names))
        evaluation.datasets[name + suffix] = result = DatasetResult(
            title=entry.title or name + suffix,
            dataset_name=entry.dataset_name,
            dataset_config_name=entry.dataset_config_name,
            revision=task.revision,
            split=entry.split,
            num_samples=len(predictions),
            class_map=task.class_map.description,
            corruption=task.corruption,
            notes=entry.note,
            metrics={key: value if math.isfinite(value) else None for key, value in measure(predictions).items()},
            reliability=reliability(predictions),
            per_class_accuracy=dict(zip(names, accuracies, strict=True)),
            predictions=predictions_file(name + suffix),
            class_names=list(names),
            settings={
                "seed": settings.seed,
                **framing(as_evaluated(model, settings.image_size), settings),
                "dtype": ", ".join(sorted(dtype.removeprefix("torch.") for dtype in dtypes)),
                "max_samples": task.max_samples,
                "scoring": task.class_map.scoring,
            },
        )
        if folder is not None and is_main_process():
            predictions.save(Path(folder) / result.predictions)
            evaluation.save(folder)


def evaluate_task(model: Teacher, task: Task, settings: EvaluationSettings, name: str = "") -> Predictions:
    """Evaluates a model on one dataset. Under several processes each takes a part, and all get the whole result."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return Predictions.concatenate(_evaluate_part(model, task, settings, name, world))
    from accelerate.utils import gather_object

    model.check_processes()
    try:
        found: list[Any] = _evaluate_part(model, task, settings, name, world)
    except (ValueError, OSError) as error:  # reaches all, or the others would wait for ever
        found = [error]
    batches = gather_object(found)
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
    predictions = Predictions.concatenate(batches)
    return predictions.select(np.argsort(predictions.row))


def _evaluate_part(
    model: Teacher, task: Task, settings: EvaluationSettings, name: str, world: int
) -> list[Predictions]:
    """The batches of this process."""
    model, rank = as_evaluated(model, settings.image_size), int(os.environ.get("RANK", 0))
    policy = evaluation_policy(**framing(model, settings))
    dataset = AugmentedDataset(task.source, policy)
    if task.corruption is not None and task.on_the_fly:
        dataset = CorruptedDataset(task.source, policy, task.corruption, task.rows, settings.seed)
    positions = np.arange(rank, len(task.rows), world)
    loader = DataLoader(
        dataset,
        settings.batch_size,
        sampler=positions.tolist(),
        num_workers=settings.num_workers,
        collate_fn=dataset.collate,
        pin_memory=settings.device.startswith("cuda"),
    )
    done, scored = 0, []
    for batch in tqdm(loader, desc=name, unit="batch", disable=not settings.progress or rank > 0, leave=False):
        answers = task.class_map(model(batch["pixel_values"].to(settings.device, non_blocking=True)))
        own = positions[done : done + len(answers)]
        labels = torch.from_numpy(task.labels[own]).to(answers.device)
        scored.append(score(answers, best_label(answers, labels), task.rows[own]))
        done += len(answers)
    return scored


def best_label(answers: Tensor, labels: Tensor) -> Tensor:
    """Of the right classes of each image, int64 [B, M], the one that the model finds most probable, int64 [B]: so any
    of them counts as right. Where there are fewer than M the rest is -1; the first is a class."""
    own = answers.gather(1, labels.clamp(min=0)).masked_fill(labels < 0, -torch.inf)
    return labels.gather(1, own.argmax(1, keepdim=True))[:, 0]


def as_evaluated(model: Teacher, image_size: int | None = None) -> Teacher:
    """The model at the size that its library evaluates it at: networks of timm at their `test_input_size`.

    timm's `validate.py` does so. transformers' pipeline shows the same networks images of the size of their training,
    which an `image_size` asks for.
    """

    def at_test_size(member: Member) -> Member:
        cfg: Any = getattr(member.model, "pretrained_cfg", None)
        if member.kind != "timm" or member.preprocessing != timm_preprocessing(cfg):
            return member  # of transformers, or the caller has said how
        return replace(member, preprocessing=timm_preprocessing(cfg, at_test_size=True) or member.preprocessing)

    evaluated = copy(model)
    if image_size is None:
        evaluated.members = tuple(map(at_test_size, model.members))
    return evaluated


def framing(model: Teacher, settings: EvaluationSettings) -> dict[str, Any]:
    """Arguments of `evaluation_policy` for what `as_evaluated` returned; the members of an ensemble look at the
    same pixels, framed for the first."""
    first = model.members[0]
    largest = max(member.preprocessing.image_size for member in model.members)
    try:
        return first.preprocessing.framing(settings.image_size or largest, settings.crop_pct)
    except ValueError as error:
        raise ValueError(f"{first.name}: {error}") from error


def is_main_process() -> bool:
    """Whether this is the process that writes and prints."""
    return int(os.environ.get("RANK", 0)) == 0


def sentence(error: Exception) -> str:
    """What an error says, without the traceback that a worker of a DataLoader sends along."""
    text = str(error).strip()
    if text.startswith("Caught "):
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__
