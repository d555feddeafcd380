"""The dataset that holds the images: its columns, the record of where it is, and its rows one by one."""

import logging
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, IterableDatasetDict
from numpy.typing import NDArray

from hf_reinforce import images, schema
from hf_reinforce.images import ImageError
from hf_reinforce.licenses import read_license, recorded_name
from hf_reinforce.sources.files import columns_of_files, columns_of_paths
from hf_reinforce.sources.labels import check_labels, column_values, encode_texts, is_text
from hf_reinforce.splits import WRITE, split_names, split_text
from hf_reinforce.store.config import SourceRecord
from hf_reinforce.store.rows import ColumnReader, ParquetRows, column_reader

logger = logging.getLogger(__name__)

AnyDataset: TypeAlias = Dataset | IterableDataset


def one_split(dataset: Any, name: str = "The dataset") -> Any:
    """A dataset without a format or transform, since what is stored is what is reinforced; TypeError for any other."""
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        raise TypeError(f"{name} has the splits {list(dataset)}; pass one of them, such as dataset['train'].")
    if not isinstance(dataset, (Dataset, IterableDataset)):
        kind = f"{type(dataset).__module__}.{type(dataset).__name__}"
        raise TypeError(f"{name} must be a Dataset or an IterableDataset of the library datasets, not a {kind}.")
    if (dataset.format["type"] if isinstance(dataset, Dataset) else dataset._formatting) is None:
        return dataset
    logger.info("%s has a format or transform (with_format, with_transform); it is dropped here.", name)
    return dataset.with_format(None)


def say_columns(features: Features, image_column: str, label_column: str | None, name: str = "the dataset") -> None:
    """Logs, in one line, which columns hold the images and the labels."""
    labels = "no labels"
    if label_column is not None:
        names = getattr(features[label_column], "names", None)
        labels = f"labels from {label_column!r}" + (f" ({len(names)} classes)" if names else "")
    others = [column for column in features if column not in (image_column, label_column)]
    left = f"; other columns: {', '.join(others)}" if others else ""
    logger.info("Images from the column %r of %s, %s%s.", image_column, name, labels, left)


def find_columns(
    features: Features, image_column: str | None = None, label_column: str | None = None
) -> tuple[str, str | None]:
    """Names of the image column and of the label column, None without labels; ValueError lists those there are.

    Args:
        features: of the dataset.
        image_column: default: the only image column.
        label_column: of class indices, or of texts, which `labels.encode_texts` turns into some; default: the only
            ClassLabel column, else `label` where there is one; `""`: use no labels.
    """
    found = [name for name, feature in features.items() if isinstance(feature, Image)]
    if not found and schema.AUGMENTATION_PARAMS in features:
        raise ValueError(
            "This is a reinforced dataset without its images; name the dataset that holds them, which its "
            "reinforcement.json records."
        )
    if image_column is None and len(found) == 1:
        image_column = found[0]
    if image_column is None or image_column not in found:
        several = "several image columns" if found else "no image column"
        remedy = "Name one with image_column (--image_column_name)."
        if not found:
            remedy = (
                f"Turn a column into images, one in each row: dataset.cast_column(NAME, datasets.Image()). {WRITE}"
            )
        raise ValueError(
            f"The dataset has {several if image_column is None else f'no image column {image_column!r}'}; its columns "
            f"are {list(features)}, of which {found or 'none'} hold images. {remedy}"
        )
    named = bool(label_column)
    if label_column is None:
        of_classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        if len(of_classes) > 1 and "label" not in features:
            raise ValueError(
                f"The dataset has several label columns, {of_classes}; name one (--label_column_name), '' for none."
            )
        label_column = of_classes[0] if len(of_classes) == 1 else "label" if "label" in features else None
    if not label_column:
        return image_column, None
    if label_column not in features:
        raise ValueError(f"The dataset has no label column {label_column!r}; its columns are {list(features)}.")
    kind = features.arrow_schema.field(label_column).type
    if pa.types.is_null(kind) and not named:
        return image_column, None
    if not pa.types.is_integer(kind) and not (named and is_text(kind)):
        holds = " ".join(str(features[label_column]).split())[:100]
        remedy = f"turn it into a ClassLabel with dataset.class_encode_column({label_column!r})"
        if is_text(kind):
            remedy = f"name it (--label_column_name {label_column}) to use its texts as the names of classes"
        raise ValueError(
            f"The label column {label_column!r} holds {holds}, not class indices; {remedy}, or use no labels with "
            "label_column='' (--label_column_name '')."
        )
    return image_column, label_column


def _opened(
    dataset: Any, image_column: str | None, label_column: str | None, class_names: Sequence[str] | None = None
) -> tuple[Any, str, str | None]:
    """A split with class indices as labels, and the columns that are found in it, see `find_columns`; logs them."""
    dataset = one_split(dataset)
    if dataset.features is None:
        raise ValueError("This stream does not know its columns; give it features with dataset.cast(Features(...)).")
    image_column, label_column = find_columns(dataset.features, image_column, label_column)
    if label_column is not None and isinstance(dataset, Dataset):
        dataset = encode_texts(dataset, label_column, class_names, strict=True)
    elif label_column is not None and is_text(dataset.features.arrow_schema.field(label_column).type):
        raise ValueError(
            f"The label column {label_column!r} of a stream must hold class indices, since texts can be numbered only "
            "when all are known; load the dataset without streaming, or use no labels with label_column=''."
        )
    say_columns(dataset.features, image_column, label_column)
    return dataset, image_column, label_column


def recorded_source(
    dataset: AnyDataset,
    image_column: str | None = None,
    label_column: str | None = None,
    name: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    split: str = "train",
    embed_images: bool = False,
) -> tuple[AnyDataset, SourceRecord]:
    """A dataset as it is reinforced, without what cannot be kept, and the record of it; arguments as `reinforce`."""
    split = split_text(split)
    split_names(split)  # refuses what nobody could load again
    dataset, image_column, label_column = _opened(dataset, image_column, label_column)
    files, paths = columns_of_files(dataset.features, image_column), columns_of_paths(dataset)
    if files:
        logger.warning("The columns %s refer to files, which are stored with the targets.", files)
    for column, path in paths.items():
        logger.warning("The column %r is left out, because it holds paths of this machine, such as %r.", column, path)
    kept = [column for column in dataset.features if column not in paths]
    if isinstance(dataset, IterableDataset):  # some streams yield their columns in changing order
        kept = [column for column in kept if not column.startswith("__")]
    record = SourceRecord(
        name and recorded_name(name),
        config_name,
        revision,
        split,
        len(dataset) if isinstance(dataset, Dataset) else None,
        image_column,
        label_column,
        tuple(column for column in kept if embed_images or column != image_column),
        read_license(name, "dataset", revision),
    )
    return dataset.select_columns(kept).cast_column(image_column, Image(decode=False)), record


class ImageSource:
    """Random access to the encoded images and labels of a dataset.

    Args:
        dataset: a map-style dataset, whose memory-mapped Arrow is read; or rows of Parquet files, without labels.
        image_column: its image column.
        label_column: its label column, of integers or texts; None without labels.
        class_names: of the classes that texts name, default the texts themselves, sorted.

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
                names = getattr(dataset.features[label_column], "names", None)
                self.class_names = names and tuple(names)
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
        """An image source whose columns are found by themselves where they are unambiguous; the log names them."""
        return cls(*_opened(dataset, image_column, label_column, class_names))

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
        """The encoded bytes of an image; ImageError where there are none."""
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
        """Raises ValueError for labels that are missing or no class, also where there are none at all.

        `num_classes` are those of the model, default those that the label column names; `name` is for the message.
        """
        column = self._columns[1]
        if column is None:
            raise ValueError(f"{name} has no labels, which are needed here; name their column (--label_column_name).")
        try:
            check_labels(column_values(self._dataset, column), num_classes or len(self.class_names or ()) or None)
        except ValueError as error:
            raise ValueError(f"{name}, column {column!r}: {error}") from error
