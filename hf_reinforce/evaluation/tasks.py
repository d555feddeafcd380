"""Datasets of a suite, opened and ready to be evaluated: images, labels, and what the model's classes have to do."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray

from hf_reinforce.evaluation.corruptions import CORRUPTIONS
from hf_reinforce.evaluation.results import Corruption
from hf_reinforce.evaluation.suites import REAL_LABELS, SuiteEntry
from hf_reinforce.hub.repository import dataset_commit
from hf_reinforce.local_copies import resolve
from hf_reinforce.models.classes import ClassMap, make_class_map
from hf_reinforce.sources.image_source import ImageSource, find_columns
from hf_reinforce.sources.labels import check_labels, column_values, encode_texts
from hf_reinforce.sources.loading import load_source

_NO_ROWS = "split {!r} of {} has no rows; name another with --split (split in the file of a suite)."


@dataclass(frozen=True)
class Task:
    """Images to be evaluated."""

    source: ImageSource
    rows: NDArray[np.int64]  # [N], of the images in their dataset
    labels: NDArray[np.int64]  # [N, M], the scored classes that are right, -1 where there are fewer than M
    class_map: ClassMap
    corruption: Corruption | None = None
    on_the_fly: bool = False  # whether the images are still to be corrupted
    revision: str | None = None  # commit of the dataset on the Hub
    max_samples: int | None = None  # how many of the first images were asked for

    def select(self, positions: NDArray[np.int64]) -> "Task":
        """The images at some positions."""
        source = self.source.select(positions.tolist())
        return replace(self, source=source, rows=self.rows[positions], labels=self.labels[positions])


def open_tasks(
    entry: SuiteEntry, model_names: Sequence[str] | None, num_classes: int, max_samples: int | None = None
) -> dict[str, Task]:
    """Opens a dataset of a suite, or the first `max_samples` images of it, of each corruption and severity.

    Returns:
        Suffix of a name -> task: `""` for images as they are, `"-CORRUPTION-SEVERITY"` for corrupted ones.
    """
    dataset, commit = open_rows(entry.dataset_name, entry.dataset_config_name, entry.split, entry.revision)
    entry = replace(entry, revision=commit)
    if not entry.corruption_columns:
        task = open_task(dataset, entry, model_names, num_classes, max_samples)
        made = {how.suffix: replace(task, corruption=how, on_the_fly=True) for how in entry.on_the_fly}
        return made or {"": task}
    task = open_task(dataset, entry, model_names, num_classes)
    names, severities = (
        np.array(column_values(dataset, column).to_pylist(), object)[task.rows] for column in entry.corruption_columns
    )
    others = sorted(set(names) - {*CORRUPTIONS, None})
    tasks = {}
    for how in (Corruption(name, severity) for name in (*CORRUPTIONS, *others) for severity in entry.severities):
        positions = np.flatnonzero((names == how.name) & (severities == how.severity))[:max_samples]
        if len(positions):
            tasks[how.suffix] = replace(task.select(positions), corruption=how, max_samples=max_samples)
    if not tasks:
        raise ValueError(f"The columns {', '.join(entry.corruption_columns)} name no corruption of the severities.")
    return tasks


def open_rows(
    name: str, config_name: str | None = None, split: str = "test", revision: str | None = None
) -> tuple[Dataset, str | None]:
    """A split of a dataset, see `load_source`, and the commit of the Hub that it is of; None for a folder."""
    commit = None if Path(resolve(name)).exists() else dataset_commit(name, revision)
    try:
        return load_source(name, config_name, split, commit), commit
    except ValueError as error:
        if "corresponds to no data" in f"{error} {error.__cause__}":  # what datasets says of a split without rows
            raise ValueError(_NO_ROWS.format(split, name)) from error
        raise


def open_task(
    dataset: Dataset,
    entry: SuiteEntry,
    model_names: Sequence[str] | None,
    num_classes: int,
    max_samples: int | None = None,
) -> Task:
    """The images of a dataset that is loaded already, see `open_tasks`."""
    if not len(dataset):
        raise ValueError(_NO_ROWS.format(entry.split, entry.dataset_name))
    where = f"{entry.dataset_name}, split {entry.split!r},"
    for column in (entry.label_column, entry.file_column, *entry.corruption_columns):
        if column and column not in dataset.column_names:
            raise ValueError(f"{where} has no column {column!r}; its columns are {', '.join(dataset.column_names)}.")
    image_column, _ = find_columns(dataset.features, entry.image_column, "")
    names, classes, declared = None, entry.classes, False
    sets: list[Sequence[int]] = []
    if entry.labels == REAL_LABELS:
        classes = "imagenet" if classes is None else classes
        sets = _real_labels(dataset, entry, image_column)
    elif column := entry.label_column or find_columns(dataset.features, image_column)[1]:
        declared = isinstance(dataset.features[column], ClassLabel)
        encoded = encode_texts(dataset, column)
        names = getattr(encoded.features[column], "names", None)
        values = column_values(encoded, column).combine_chunks()
        several = pa.types.is_list(values.type)
        labels = values.flatten() if several else values
        if not pa.types.is_integer(labels.type):
            raise ValueError(
                f"The label column {column!r} holds {dataset.features[column]}, not class indices, names, or lists of "
                "class indices; name another with --label_column_name (label_column in the file of a suite)."
            )
        check_labels(labels, len(names) if names else None, f"{entry.dataset_name}'s")
        sets = [own or [] if several else [own] for own in values.to_pylist()]
    occurring = sorted({label for own in sets for label in own})
    if not occurring:
        raise ValueError(f"{where} has no labels to evaluate on; name another split, or label_column.")
    class_map = make_class_map(model_names, num_classes, names, occurring, classes, entry.scoring, declared)
    right = [[target for label in own for target in class_map.targets[label]] for own in sets]
    widest = max(map(len, right))
    padded = np.array([[*own, *[-1] * (widest - len(own))] for own in right], dtype=np.int64)
    source, rows = ImageSource(dataset, image_column), np.arange(len(dataset))
    task = Task(source, rows, padded, class_map, revision=entry.revision, max_samples=max_samples)
    labelled = np.flatnonzero(padded[:, 0] >= 0)[:max_samples]  # ReaL has images to which no class applies
    return task if len(labelled) == len(dataset) else task.select(labelled)


def _real_labels(dataset: Dataset, entry: SuiteEntry, image_column: str) -> list[Sequence[int]]:
    """The classes of each image of ImageNet's validation split by Beyer et al. (2020), as timm ships them."""
    from timm.data import RealLabelsImagenet

    values = column_values(dataset, entry.file_column or image_column)
    paths = (values if entry.file_column else pc.struct_field(values, "path")).to_pylist()
    found = [re.search(r"ILSVRC2012_val_\d{8}", path or "") for path in paths]
    unnamed = [path for path, name in zip(paths, found, strict=True) if name is None]
    if unnamed:
        raise ValueError(
            f"The labels of ReaL belong to files such as ILSVRC2012_val_00000001.JPEG, but {len(unnamed)} images have "
            f"other names, such as {unnamed[0]!r}; name the column that holds them with file_column."
        )
    real = RealLabelsImagenet(range(50_000)).real_labels  # by file name; only the number of the argument matters
    return [real[f"{name.group()}.JPEG"] for name in found if name]
