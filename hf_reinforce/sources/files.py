"""Columns that refer to files, such as a mask beside the image: the files are stored, and no path is published."""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset
from datasets.features.features import require_storage_embed
from datasets.table import embed_array_storage

from hf_reinforce import schema
from hf_reinforce.images import ImageError, check_path
from hf_reinforce.sources.labels import column_values

_LOCAL = r"^(file://|[A-Za-z]:[\\/]|\\\\|/(home|root|Users|tmp|var|private|mnt|media|scratch)/)"
"""Texts that are surely paths of somebody's machine."""
_ABSOLUTE = r"^(file://|[A-Za-z]:[\\/]|\\\\|/)"
_LOOKED_UP = 1000


def columns_of_paths(dataset: Dataset | IterableDataset) -> dict[str, str]:
    """Columns of texts that are paths of this machine, at any depth, with one of them; none of a stream."""
    found = {}
    for name, feature in dataset.features.items() if isinstance(dataset, Dataset) else ():
        if not require_storage_embed(feature):
            values = column_values(dataset, name)
            value = next(_matches(values, _LOCAL), None) or next(_existing(values), None)
            if value is not None:
                found[name] = value
    return found


def columns_of_files(features: Features, image_column: str) -> list[str]:
    """Columns beside the images that refer to files, at any depth, and will be stored with them."""
    return [name for name, feature in features.items() if name != image_column and require_storage_embed(feature)]


def _matches(values: pa.Array | pa.ChunkedArray, pattern: str) -> Iterator[str]:
    """Texts of a column, at any depth, that match."""
    for array in values.chunks if isinstance(values, pa.ChunkedArray) else [values]:
        kind = array.type
        if isinstance(array, pa.ExtensionArray):
            yield from _matches(array.storage, pattern)
        elif pa.types.is_struct(kind):
            for field in kind:
                yield from _matches(pc.struct_field(array, field.name), pattern)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            yield from _matches(pc.list_flatten(array), pattern)
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            yield from array.filter(pc.match_substring_regex(array, pattern)).to_pylist()


def _existing(values: pa.Array | pa.ChunkedArray) -> Iterator[str]:
    """Those of the first absolute paths of a column that exist on this machine."""
    return (value for value in islice(_matches(values, _ABSOLUTE), _LOOKED_UP) if os.path.exists(value))


def embed_files(table: pa.Table, features: Features, image_column: str) -> pa.Table:
    """A table with the files that its columns refer to, as `push_to_hub` of datasets stores them.

    Args:
        table: rows.
        features: of its columns.
        image_column: the column that is embedded already.

    Raises:
        ValueError: if a file cannot be read, or is none that an image could be read from either.
    """
    for name in columns_of_files(features, image_column):
        try:
            chunks = []
            for chunk in table.column(name).chunks:
                for path in _files_to_read(chunk):
                    check_path(path)
                chunks.append(embed_array_storage(chunk, features[name]))
        except (ImageError, OSError, ValueError) as error:
            raise ValueError(
                f"A file of the column {name!r} cannot be embedded ({type(error).__name__}: {error}). Bring it back, "
                f"or reinforce the dataset without that column: dataset.remove_columns({name!r})."
            ) from error
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(place).with_type(chunks[0].type), pa.chunked_array(chunks))
    return table


def _files_to_read(array: pa.Array) -> Iterator[str]:
    """Paths, at any depth, beside which there are no bytes."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        yield from _files_to_read(array.storage)
    elif pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}:
        absent = pc.is_null(pc.struct_field(array, "bytes"))
        yield from pc.struct_field(array, "path").filter(absent).drop_null().to_pylist()
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _files_to_read(pc.struct_field(array, field.name))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _files_to_read(pc.list_flatten(array))


def check_no_local_paths(shard: Path) -> None:
    """Refuses a shard that holds paths of this machine, in any column and at any depth.

    Raises:
        ValueError: if there is one, with its column, row and what to do.
    """
    with pq.ParquetFile(shard) as file:
        leaves = [file.schema.column(index) for index in range(len(file.schema))]
        paths = {leaf.path for leaf in leaves}
        texts = [leaf.path for leaf in leaves if leaf.logical_type.type == "STRING" and leaf.path != schema.IMAGE_HASH]
        for leaf in texts:
            of_file = leaf.endswith(".path") and leaf.removesuffix("path") + "bytes" in paths
            first = 0
            for group in range(file.num_row_groups):
                column = file.read_row_group(group, columns=[leaf]).column(0)
                for value in dict.fromkeys(_matches(column, _ABSOLUTE)):
                    if of_file or re.match(_LOCAL, value) or os.path.exists(value):
                        row = next(i for i, item in enumerate(column.to_pylist()) if _holds(item, value))
                        name = leaf.split(".")[0]
                        raise ValueError(
                            f"{shard}: row {first + row} of the column {name!r} holds {value!r}, a path of this "
                            "machine, which others cannot read and need not know. Reinforce again into another "
                            "folder: files are stored now, and columns of such texts are left out."
                        )
                first += len(column)


def _holds(item: Any, value: str) -> bool:
    if isinstance(item, dict):
        return any(_holds(part, value) for part in item.values())
    return item == value or (isinstance(item, list) and any(_holds(part, value) for part in item))
