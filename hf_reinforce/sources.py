"""Images where they are: encoded bytes and labels of a data set, by row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image
from numpy.typing import NDArray

from hf_reinforce import images, schema
from hf_reinforce.images import ImageError
from hf_reinforce.storage import ColumnReader


def find_columns(
    features: Features, image_column: str | None = None, label_column: str | None = None
) -> tuple[str, str | None]:
    """Names of the image column and of the label column, None without labels.

    Args:
        features: of the data set.
        image_column: default: the only image column.
        label_column: default: the only ClassLabel column, else `label` where there is one; `""`: use no labels.

    Raises:
        ValueError: if there is no such column; the message lists those there are.
    """
    candidates = [name for name, feature in features.items() if isinstance(feature, Image)]
    if image_column is None and len(candidates) == 1:
        image_column = candidates[0]
    if not candidates and schema.TEACHER_LOGITS in features:
        raise ValueError(
            "This is a reinforced data set without its images; name the data set that holds them, which its "
            "reinforcement.json records."
        )
    if image_column is None or image_column not in candidates:
        raise ValueError(_without_images(list(features), image_column, candidates))
    if label_column and label_column not in features:
        raise ValueError(f"The data set has no label column {label_column!r}; its columns are {list(features)}.")
    if label_column is None:
        class_labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        if len(class_labels) > 1 and "label" not in features:
            raise ValueError(
                f"The data set has several label columns, {class_labels}; name one with label_column "
                "(--label_column_name), or use none with ''."
            )
        label_column = class_labels[0] if len(class_labels) == 1 else "label" if "label" in features else None
    if label_column and not pa.types.is_integer(features[label_column].pa_type):
        raise ValueError(
            f"The label column {label_column!r} holds {features[label_column]}, not class indices; turn it into a "
            "ClassLabel with dataset.class_encode_column, or use no labels with label_column=''."
        )
    return image_column, label_column or None


def _without_images(columns: list[str], named: str | None, candidates: list[str]) -> str:
    if named is not None:
        found = f"no image column {named!r}"
    else:
        found = "several image columns" if candidates else "no image column"
    remedy = "Name one with image_column (--image_column_name)."
    if not candidates:
        remedy = "Name another data set, or turn a column into images: dataset.cast_column(NAME, datasets.Image())."
    return (
        f"The data set has {found}; its columns are {columns}, of which {candidates or 'none'} hold images. {remedy}"
    )


class ImageSource:
    """Encoded images and labels of a data set, read straight from memory-mapped Arrow.

    Args:
        dataset: a map-style data set.
        image_column: its image column.
        label_column: its integer label column; None without labels.
    """

    def __init__(self, dataset: Dataset, image_column: str, label_column: str | None = None) -> None:
        for column in filter(None, (image_column, label_column)):
            if column not in dataset.column_names:
                raise ValueError(f"The data set has no column {column!r}; its columns are {dataset.column_names}.")
        feature = dataset.features[label_column] if label_column else None
        self.class_names: tuple[str, ...] | None = tuple(feature.names) if isinstance(feature, ClassLabel) else None
        self._dataset, self._columns = dataset, (image_column, label_column)
        column, indices = dataset.data.column(image_column), dataset._indices
        self._bytes = column.flatten()[column.type.get_field_index("bytes")]
        self._indices = None if indices is None else indices.column(0).to_numpy()
        self._images = ColumnReader(dataset, image_column)
        self._labels = None if label_column is None else ColumnReader(dataset, label_column)

    def __reduce__(self) -> Any:
        return type(self), (self._dataset, *self._columns)  # the bytes stay in the file that is mapped

    @classmethod
    def of(cls, dataset: Dataset, image_column: str | None = None, label_column: str | None = None) -> "ImageSource":
        """An image source whose columns are found by themselves where they are unambiguous.

        Raises:
            ValueError: as `find_columns`.
        """
        return cls(dataset, *find_columns(dataset.features, image_column, label_column))

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
        """The label of an image, None without labels."""
        return None if self._labels is None else int(self._labels(row))
