"""Images where they are: encoded bytes and labels of a dataset, by row."""

import logging
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, IterableDatasetDict
from numpy.typing import NDArray

from hf_reinforce import images, schema
from hf_reinforce.images import ImageError
from hf_reinforce.sources.files import columns_of_files, columns_of_paths
from hf_reinforce.sources.labels import check_labels, column_values, encode_texts, is_text
from hf_reinforce.splits import WRITE
from hf_reinforce.store.rows import ColumnReader, ParquetRows, column_reader

logger = logging.getLogger(__name__)

AnyDataset: TypeAlias = Dataset | IterableDataset


def one_split(dataset: Any, name: str = "The dataset") -> Any:
    """A dataset as it is stored, without a format or transform, since what is stored is what is reinforced.

    Raises:
        TypeError: for anything but one split; the message says what to pass.
    """
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        splits = list(dataset)
        chosen = f": dataset[{splits[0]!r}]" if splits else ""
        raise TypeError(f"{name} has the splits {splits}; pass one of them{chosen}.")
    if not isinstance(dataset, (Dataset, IterableDataset)):
        kind = f"{type(dataset).__module__}.{type(dataset).__name__}"
        raise TypeError(f"{name} must be a Dataset or an IterableDataset of the library datasets, not a {kind}.")
    form = dataset.format["type"] if isinstance(dataset, Dataset) else dataset._formatting
    if form is None:
        return dataset
    logger.info(
        "%s has a format or transform (with_format, with_transform); it is dropped here, and the rows are read as "
        "they are stored.",
        name,
    )
    return dataset.with_format(None)


def say_columns(features: Features, image_column: str, label_column: str | None, name: str = "the dataset") -> None:
    """Logs, in one line, which columns hold the images and the labels."""
    labels = "no labels"
    if label_column is not None:
        feature = features[label_column]
        classes = f" ({len(feature.names)} classes)" if isinstance(feature, ClassLabel) else ""
        labels = f"labels from {label_column!r}{classes}"
    others = [column for column in features if column not in (image_column, label_column)]
    left = f"; other columns: {', '.join(others[:8])}{', ...' if len(others) > 8 else ''}" if others else ""
    logger.info("Images from the column %r of %s, %s%s.", image_column, name, labels, left)


def find_columns(
    features: Features, image_column: str | None = None, label_column: str | None = None
) -> tuple[str, str | None]:
    """Names of the image column and of the label column, None without labels.

    Args:
        features: of the dataset.
        image_column: default: the only image column.
        label_column: of class indices, or of texts, which `labels.encode_texts` turns into some; default: the only
            ClassLabel column, else `label` where there is one; `""`: use no labels.

    Raises:
        ValueError: if there is no such column; the message lists those there are.
    """
    candidates = [name for name, feature in features.items() if isinstance(feature, Image)]
    if image_column is None and len(candidates) == 1:
        image_column = candidates[0]
    if not candidates and schema.AUGMENTATION_PARAMS in features:
        raise ValueError(
            "This is a reinforced dataset without its images; name the dataset that holds them, which its "
            "reinforcement.json records."
        )
    if image_column is None or image_column not in candidates:
        raise ValueError(_without_images(list(features), image_column, candidates))
    if label_column and label_column not in features:
        raise ValueError(f"The dataset has no label column {label_column!r}; its columns are {list(features)}.")
    named = bool(label_column)
    if label_column is None:
        class_labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        if len(class_labels) > 1 and "label" not in features:
            raise ValueError(
                f"The dataset has several label columns, {class_labels}; name one with label_column "
                "(--label_column_name), or use none with ''."
            )
        label_column = class_labels[0] if len(class_labels) == 1 else "label" if "label" in features else None
    if label_column:
        kind = features.arrow_schema.field(label_column).type
        if pa.types.is_null(kind) and not named:
            return image_column, None
        if not pa.types.is_integer(kind) and not (named and is_text(kind)):
            raise ValueError(_without_indices(label_column, features[label_column], kind))
    return image_column, label_column or None


def _without_indices(column: str, feature: Any, kind: Any) -> str:
    remedy = "name another column, or use no labels with label_column='' (--label_column_name '')"
    if is_text(kind):
        remedy = (
            f"name it, label_column={column!r} (--label_column_name {column}), to use its texts as the names of "
            "classes, or use no labels with '' instead"
        )
    elif pa.types.is_boolean(kind) or pa.types.is_floating(kind):
        remedy += f", or turn it into a ClassLabel with dataset.class_encode_column({column!r}). {WRITE[:-1]}"
    found = " ".join(str(feature).split())
    found = found if len(found) <= 100 else f"{found[:100]}..."
    return f"The label column {column!r} holds {found}, not class indices; {remedy}."


def _without_images(columns: list[str], named: str | None, candidates: list[str]) -> str:
    if named is not None:
        found = f"no image column {named!r}"
    else:
        found = "several image columns" if candidates else "no image column"
    remedy = "Name one with image_column (--image_column_name)."
    if not candidates:
        remedy = (
            "Name another dataset, or turn a column into images, one in each row: dataset.cast_column(NAME, "
            f"datasets.Image()). {WRITE}"
        )
    return f"The dataset has {found}; its columns are {columns}, of which {candidates or 'none'} hold images. {remedy}"


def prepare(
    dataset: AnyDataset, image_column: str | None = None, label_column: str | None = None
) -> tuple[AnyDataset, str, str | None]:
    """A dataset as it is reinforced: without format, with class indices as labels, without what cannot be kept.

    Args:
        dataset: one split.
        image_column: as `find_columns`.
        label_column: as `find_columns`; its texts become class indices.

    Returns:
        The dataset, and the names of its image column and of its label column, None without labels.

    Raises:
        TypeError: if it is not one split.
        ValueError: as `find_columns`; for a stream that does not know its columns, or whose labels are texts.
    """
    dataset = one_split(dataset)
    if dataset.features is None:
        raise ValueError("This stream does not know its columns; give it features with dataset.cast(Features(...)).")
    image_column, label_column = find_columns(dataset.features, image_column, label_column)
    if label_column is not None:
        if isinstance(dataset, Dataset):
            dataset = encode_texts(dataset, label_column)
        elif is_text(dataset.features.arrow_schema.field(label_column).type):
            raise ValueError(
                f"The label column {label_column!r} of a stream must hold class indices: texts can be numbered only "
                "when all are known. Load the dataset without streaming, or use no labels with label_column=''."
            )
    say_columns(dataset.features, image_column, label_column)
    files = columns_of_files(dataset.features, image_column)
    if files:
        logger.warning("The columns %s refer to files, which are stored with the targets.", files)
    left_out = columns_of_paths(dataset)
    for name, value in left_out.items():
        logger.warning("The column %r is left out, because it holds paths of this machine, such as %r.", name, value)
    return dataset.remove_columns(list(left_out)) if left_out else dataset, image_column, label_column


class ImageSource:
    """Random access to the encoded images and labels of a dataset.

    Args:
        dataset: a map-style dataset, whose memory-mapped Arrow is read; or rows of Parquet files, without labels.
        image_column: its image column.
        label_column: its label column, of integers or texts; None without labels.
        class_names: of the classes that texts name, default the texts themselves, sorted.

    Raises:
        TypeError: if it is not one split.
        ValueError: if it lacks a column.

    Example:
        from hf_reinforce import ImageSource, load_source

        source = ImageSource.of(load_source("uoft-cs/cifar100"), label_column="fine_label")
        encoded, label = source.encoded(0), source.label(0)
    """

    def __init__(
        self,
        dataset: Dataset | ParquetRows,
        image_column: str,
        label_column: str | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.class_names: tuple[str, ...] | None = None
        self._bytes = self._indices = self._labels = None
        if isinstance(dataset, ParquetRows):
            label_column = None
        else:
            dataset = one_split(dataset)
            for column in filter(None, (image_column, label_column)):
                if column not in dataset.column_names:
                    raise ValueError(f"The dataset has no column {column!r}; its columns are {dataset.column_names}.")
            if label_column:
                dataset = encode_texts(dataset, label_column, class_names)
                feature = dataset.features[label_column]
                self.class_names = tuple(feature.names) if isinstance(feature, ClassLabel) else None
                self._labels = ColumnReader(dataset, label_column)
            values, indices = dataset.data.column(image_column), dataset._indices
            self._bytes = values.flatten()[values.type.get_field_index("bytes")]
            self._indices = None if indices is None else indices.column(0).to_numpy()
        self._dataset, self._columns = dataset, (image_column, label_column)
        self._images = column_reader(dataset, image_column)

    def __reduce__(self) -> Any:
        return type(self), (self._dataset, *self._columns)  # the bytes stay in the file that is mapped

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        image_column: str | None = None,
        label_column: str | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "ImageSource":
        """An image source whose columns are found by themselves where they are unambiguous; the log names them.

        Raises:
            TypeError: if it is not one split.
            ValueError: as `find_columns`, or if a label is a text that is none of `class_names`.
        """
        dataset = one_split(dataset)
        image_column, label_column = find_columns(dataset.features, image_column, label_column)
        if label_column is not None:
            dataset = encode_texts(dataset, label_column, class_names, strict=True)
        say_columns(dataset.features, image_column, label_column)
        return cls(dataset, image_column, label_column)

    def __len__(self) -> int:
        return len(self._dataset)

    def select(self, rows: Sequence[int]) -> "ImageSource":
        """The images of some rows."""
        return ImageSource(self._dataset.select(rows), *self._columns)

    @property
    def has_labels(self) -> bool:
        """Whether there is a label column."""
        return self._labels is not None

    def encoded(self, row: int) -> images.Encoded:
        """The encoded bytes of an image."""
        if self._bytes is not None:
            value = self._bytes[row if self._indices is None else int(self._indices[row])]
            if value.is_valid:
                return memoryview(value.as_buffer())
        item = self._images(row)
        try:
            return images.read_encoded(item)
        except ImageError as error:
            raise ImageError(f"Row {row} (path {(item or {}).get('path')!r}): {error}") from error

    def stored_rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the images of some rows are stored, counted in images from the first."""
        return rows if self._indices is None else self._indices[rows].astype(np.int64)

    def label(self, row: int) -> int | None:
        """The label of an image, None without one."""
        found = None if self._labels is None else self._labels(row)
        return None if found is None else int(found)

    def check_labels(self, num_classes: int | None = None, name: str = "The dataset") -> None:
        """Refuses labels that are missing or no class, which otherwise shows at the row that has it.

        Args:
            num_classes: of the model, default those that the label column names.
            name: of the dataset, for the message.

        Raises:
            ValueError: if there are such labels, or none at all.
        """
        column = self._columns[1]
        if column is None:
            raise ValueError(
                f"{name} has no labels, which are needed here; name their column with label_column "
                f"(--label_column_name). The columns are {list(self._dataset.features)}."
            )
        if num_classes is None and self.class_names is not None:
            num_classes = len(self.class_names)
        try:
            check_labels(column_values(self._dataset, column), num_classes)
        except ValueError as error:
            raise ValueError(f"{name}, column {column!r}: {error}") from error
