"""Label columns: texts become class indices, and indices are checked before anything is spent on them."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets import ClassLabel, Dataset

from hf_reinforce.models.classes import some
from hf_reinforce.store.rows import ParquetRows

NO_LABEL = -100
"""Stands for a missing label in a batch; torch's cross-entropy leaves it out."""


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is a text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def column_values(dataset: Dataset | ParquetRows, column: str) -> pa.ChunkedArray:
    """A column of a dataset, which may be a selection."""
    if isinstance(dataset, ParquetRows):
        return dataset.values(column)
    values, indices = dataset.data.column(column), dataset._indices
    return values if indices is None else values.take(indices.column(0))


def encode_texts(
    dataset: Dataset, column: str, class_names: Sequence[str] | None = None, strict: bool = False
) -> Dataset:
    """A dataset whose label column holds class indices, where it held texts; images are neither read nor copied.

    The classes are `class_names`, by default the texts themselves, sorted. Texts that are none become null, or with
    `strict` a ValueError.
    """
    if not is_text(dataset.data.schema.field(column).type):
        return dataset
    texts = set(column_values(dataset, column).unique().to_pylist()) - {None}
    names = sorted(texts) if class_names is None else list(class_names)
    unknown = sorted(texts - set(names))
    if strict and unknown:
        raise ValueError(
            f"The label column {column!r} holds {len(unknown)} texts that are none of the {len(names)} classes "
            f"({some(names)}): {some(unknown)}."
        )
    values = dataset.data.column(column)
    codes = pc.index_in(values, value_set=pa.array(names, values.type)).cast(pa.int64()).combine_chunks()
    digest = xxhash.xxh3_64_hexdigest("\0".join([dataset._fingerprint, column, *names]).encode())
    everything = Dataset(dataset.data, info=dataset.info.copy(), split=dataset.split, fingerprint=dataset._fingerprint)
    encoded = everything.remove_columns(column).add_column(
        column, codes, new_fingerprint=digest, feature=ClassLabel(names=names)
    )
    encoded = encoded.select_columns(dataset.column_names)
    return Dataset(encoded.data, encoded.info, dataset.split, dataset._indices, digest)


def check_labels(
    values: pa.ChunkedArray | pa.Array,
    num_classes: int | None,
    whose: str = "the dataset's",
    remedy: str = "mend the label, or leave out such rows",
    rows: Sequence[int] | None = None,
    nulls: bool = False,
) -> None:
    """Raises a ValueError for labels that are no class, or missing unless `nulls` pass.

    The message names the first, under its number among `rows`, whose classes they should be, and the remedy.
    """
    wrong = pc.less(values, 0)
    if num_classes is not None:
        wrong = pc.or_(wrong, pc.greater_equal(values, num_classes))
    wrong = pc.fill_null(wrong, not nulls)
    count = pc.sum(wrong).as_py()
    if count:
        place = pc.index(wrong, True).as_py()
        row, label = place if rows is None else rows[place], values[place].as_py()
        classes = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        more = "" if count == 1 else f" ({count:,} such rows)"
        raise ValueError(f"Row {row} has the label {label}, but {whose} classes are {classes}{more}; {remedy}.")
