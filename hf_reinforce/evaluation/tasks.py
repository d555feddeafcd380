"""Datasets of a suite, opened and ready to be evaluated: images, labels, and what the model's classes have to do."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from hf_reinforce.sources.labels import is_text
from hf_reinforce.sources.loading import load_source


@dataclass(frozen=True)
class Task:
    """Images to be evaluated.

    Attributes:
        source: N images.
        rows: int64 [N], row of each image in its dataset.
        labels: int64 [N, M], the scored classes that are right for each image, -1 where there are fewer than M.
        class_map: from the model's classes to the scored ones.
        corruption: how the images are corrupted.
        on_the_fly: whether they are still to be.
        revision: commit of the dataset on the Hub, None for a folder.
        max_samples: how many of the first images were asked for, None for all.
    """

    source: ImageSource
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    class_map: ClassMap
    corruption: Corruption | None = None
    on_the_fly: bool = False
    revision: str | None = None
    max_samples: int | None = None

    def select(self, positions: NDArray[np.int64]) -> "Task":
        """The images at some positions."""
        return replace(
            self,
            source=self.source.select(positions.tolist()),
            rows=self.rows[positions],
            labels=self.labels[positions],
        )


def open_tasks(
    entry: SuiteEntry, model_names: Sequence[str] | None, num_classes: int, max_samples: int | None = None
) -> dict[str, Task]:
    """Opens a dataset of a suite.

    Args:
        entry: the dataset.
        model_names: see `make_class_map`.
        num_classes: classes of the model.
        max_samples: use the first so many images, of each corruption and severity.

    Returns:
        Suffix of a name -> task: `""` for images as they are, `"-CORRUPTION-SEVERITY"` for corrupted ones.

    Raises:
        ValueError: if the dataset cannot be had, lacks a column, is empty or unlabelled, or its classes do not match
            the model's.
    """
    dataset, commit = open_rows(entry.dataset_name, entry.dataset_config_name, entry.split, entry.revision)
    entry = replace(entry, revision=commit)
    if entry.corruption_columns:
        return _by_corruption(open_task(dataset, entry, model_names, num_classes), dataset, entry, max_samples)
    task = open_task(dataset, entry, model_names, num_classes, max_samples)
    if entry.corruptions:
        return {how.suffix: replace(task, corruption=how, on_the_fly=True) for how in entry.on_the_fly}
    return {"": task}


def open_rows(
    name: str, config_name: str | None = None, split: str = "test", revision: str | None = None
) -> tuple[Dataset, str | None]:
    """A split of a dataset, and the commit of the Hub that it is of; None for a folder.

    Arguments and errors as `hf_reinforce.sources.loading.load_source`.
    """
    commit = None if Path(resolve(name)).exists() else dataset_commit(name, revision)
    try:
        return load_source(name, config_name, split, commit), commit
    except ValueError as error:
        if "corresponds to no data" in f"{error} {error.__cause__}":  # what datasets says of a split without rows
            raise ValueError(_without_rows(name, split)) from error
        raise


def open_task(
    dataset: Dataset,
    entry: SuiteEntry,
    model_names: Sequence[str] | None,
    num_classes: int,
    max_samples: int | None = None,
) -> Task:
    """The images of a dataset that is loaded already; arguments and errors as `open_tasks`."""
    if not len(dataset):
        raise ValueError(_without_rows(entry.dataset_name, entry.split))
    where = f"{entry.dataset_name}, split {entry.split!r},"
    columns = (entry.label_column, entry.file_column, *entry.corruption_columns)
    missing = [column for column in columns if column and column not in dataset.column_names]
    if missing:
        raise ValueError(f"{where} has no column {missing[0]!r}; its columns are {', '.join(dataset.column_names)}.")
    image_column, _ = find_columns(dataset.features, entry.image_column, "")
    names, sets, declared = _labels(dataset, entry, image_column)
    if sets is None or max_samples == 0:
        raise ValueError(f"{where} has no rows or no labels to evaluate on; name another split, or label_column.")
    occurring = sorted({label for own in sets for label in own})
    if not occurring or occurring[0] < 0:
        raise ValueError(f"{where} has images without a label (-1 or none at all); name a split that is labelled.")
    if declared and names and occurring[-1] >= len(names):
        raise ValueError(
            f"{where} has the label {occurring[-1]}, but the {len(names)} classes of its label column are 0 to "
            f"{len(names) - 1}; mend the label, or leave out such rows."
        )
    classes = "imagenet" if entry.labels == REAL_LABELS and entry.classes is None else entry.classes
    class_map = make_class_map(model_names, num_classes, names, occurring, classes, entry.scoring, declared)
    targets = [[target for label in own for target in class_map.targets[label]] for own in sets]
    source = ImageSource(dataset, image_column)
    rows, right = np.arange(len(dataset)), _padded(targets)
    task = Task(source, rows, right, class_map, revision=entry.revision, max_samples=max_samples)
    labelled = np.flatnonzero(task.labels[:, 0] >= 0)  # ReaL has images to which no class applies
    labelled = labelled[:max_samples]
    return task if len(labelled) == len(dataset) else task.select(labelled)


def _labels(
    dataset: Dataset, entry: SuiteEntry, image_column: str
) -> tuple[tuple[str, ...] | None, list[Sequence[int]] | None, bool]:
    """Names of the classes, where there are any; the labels of each row, None without; whether names are declared."""
    if entry.labels == REAL_LABELS:
        return None, _real_labels(dataset, entry, image_column), False
    column = entry.label_column or find_columns(dataset.features, image_column)[1]
    if column is None:
        return None, None, False
    values, feature = _values(dataset, column), dataset.features[column]
    declared = isinstance(feature, ClassLabel)
    if is_text(values.type):
        names = tuple(sorted(set(values.to_pylist())))
        return names, pc.index_in(values, pa.array(names, values.type)).to_numpy().reshape(-1, 1).tolist(), False
    if pa.types.is_integer(values.type):
        return tuple(feature.names) if declared else None, values.to_numpy().reshape(-1, 1).tolist(), declared
    several = getattr(values.type, "value_type", None)  # of a list
    if several is not None and pa.types.is_integer(several) and not values.flatten().null_count:
        return None, values.to_pylist(), False
    raise ValueError(
        f"The label column {column!r} holds {feature}; expected class indices, names, or lists of class indices. Name "
        "another with --label_column_name (label_column in the file of a suite)."
    )


def _without_rows(name: str, split: str) -> str:
    return f"split {split!r} of {name} has no rows; name another with --split (split in the file of a suite)."


def _values(dataset: Dataset, column: str) -> Any:
    """A column as an Arrow array without missing values."""
    values = dataset.select_columns([column]).with_format("arrow")[:][column].combine_chunks()
    if values.null_count:
        raise ValueError(
            f"The column {column!r} has {values.null_count} rows without a value; expected one in each. Leave out "
            "such rows, or name another column or split."
        )
    return values


def _real_labels(dataset: Dataset, entry: SuiteEntry, image_column: str) -> list[Sequence[int]]:
    """The classes of each image of ImageNet's validation split by Beyer et al. (2020), as timm ships them."""
    from timm.data import RealLabelsImagenet

    if entry.file_column:
        paths = _values(dataset, entry.file_column).to_pylist()
    else:
        paths = pc.struct_field(dataset.with_format("arrow")[:][image_column], "path").to_pylist()
    found = [re.search(r"ILSVRC2012_val_\d{8}", path or "") for path in paths]
    unnamed = [path for path, name in zip(paths, found, strict=True) if name is None]
    if unnamed:
        raise ValueError(
            f"The labels of ReaL belong to files such as ILSVRC2012_val_00000001.JPEG, but {len(unnamed)} images have "
            f"other names, such as {unnamed[0]!r}; name the column that holds them with file_column."
        )
    real = RealLabelsImagenet(range(50_000)).real_labels  # by file name; only the number of the argument matters
    return [real[f"{name.group()}.JPEG"] for name in found if name]


def _padded(targets: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    widest = max(1, max(map(len, targets)))
    return np.array([[*own, *[-1] * (widest - len(own))] for own in targets], dtype=np.int64)


def _by_corruption(task: Task, dataset: Dataset, entry: SuiteEntry, max_samples: int | None) -> dict[str, Task]:
    names, severities = (np.array(_values(dataset, column).to_pylist()) for column in entry.corruption_columns)
    names, severities = names[task.rows], severities[task.rows]
    known = [name for name in CORRUPTIONS if name in names]
    others = sorted(set(names.tolist()) - set(known))
    tasks = {}
    for name in [*known, *others]:
        for severity in entry.severities:
            positions = np.flatnonzero((names == name) & (severities == severity))[:max_samples]
            if len(positions):
                how = Corruption(str(name), int(severity))
                tasks[how.suffix] = replace(task.select(positions), corruption=how, max_samples=max_samples)
    if not tasks:
        raise ValueError(
            f"The columns {list(entry.corruption_columns)} name no corruption of the severities asked for."
        )
    return tasks
