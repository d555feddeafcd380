"""Columns that refer to files, such as a mask beside the image: the files are stored, and no path is published."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset
from datasets.features.features import require_storage_embed
from datasets.table import embed_array_storage

from hf_reinforce import schema
from hf_reinforce.images import ImageError, check_path
from hf_reinforce.sources.labels import column_values

_OF_SOMEBODY = r"^(file://|[A-Za-z]:[\\/]|\\\\|/(home|root|Users|tmp|var|private|mnt|media|scratch)/)"
"""Texts that are surely paths of somebody's machine; others that begin with / are, if there is such a file here."""
_ABSOLUTE = r"^(file://|[A-Za-z]:[\\/]|\\\\|/)"


def columns_of_paths(dataset: Dataset | IterableDataset) -> dict[str, str]:
    """Columns of texts that are paths of this machine, at any depth, with one of them; none of a stream."""
    features = dataset.features if isinstance(dataset, Dataset) else {}
    texts = [name for name, feature in features.items() if not require_storage_embed(feature)]
    found = {name: next(_local_paths(column_values(dataset, name)), None) for name in texts}
    return {name: path for name, path in found.items() if path is not None}


def columns_of_files(features: Features, image_column: str) -> list[str]:
    """Columns beside the images that refer to files, at any depth, and will be stored with them."""
    return [name for name, feature in features.items() if name != image_column and require_storage_embed(feature)]


def embed_files(table: pa.Table, features: Features, image_column: str) -> pa.Table:
    """A table with the files that its columns refer to, but for the images, as `push_to_hub` of datasets stores them.

    Raises:
        ValueError: if a file cannot be read, or is none that an image could be read from either.
    """
    for name in columns_of_files(features, image_column):
        chunks = []
        try:
            for chunk in table.column(name).chunks:
                for files in filter(_is_file, _parts(chunk)):
                    absent = pc.is_null(pc.struct_field(files, "bytes"))
                    for path in pc.struct_field(files, "path").filter(absent).drop_null().to_pylist():
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


def check_no_local_paths(shard: Path) -> None:
    """Raises a ValueError for a shard that holds a path of this machine, in any column and at any depth."""
    parquet = pq.ParquetFile(shard)
    leaves = [parquet.schema.column(index) for index in range(len(parquet.schema))]
    texts = [leaf.path for leaf in leaves if leaf.logical_type.type == "STRING" and leaf.path != schema.IMAGE_HASH]
    files = {leaf.path.removesuffix("bytes") + "path" for leaf in leaves if leaf.path.endswith(".bytes")}
    for leaf in texts:
        path = next(_local_paths(parquet.read([leaf]).column(0), leaf in files), None)
        if path is not None:
            raise ValueError(
                f"{shard}: the column {leaf.split('.')[0]!r} holds {path!r}, a path of this machine, which others "
                "cannot read and need not know. Reinforce again into another folder: files are stored now, and "
                "columns of such texts are left out."
            )


def _parts(values: pa.Array | pa.ChunkedArray) -> Iterator[pa.Array]:
    """The texts of a column, and its files (structs of bytes and path), at any depth."""
    for array in values.chunks if isinstance(values, pa.ChunkedArray) else [values]:
        kind = array.type
        if isinstance(array, pa.ExtensionArray):
            yield from _parts(array.storage)
        elif _is_file(array) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
            yield array
        elif pa.types.is_struct(kind):
            for field in kind:
                yield from _parts(pc.struct_field(array, field.name))
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            yield from _parts(pc.list_flatten(array))


def _is_file(array: pa.Array) -> bool:
    """Whether it is an image or another file of `datasets`, of which the bytes may have been left out."""
    kind = array.type
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _local_paths(values: pa.Array | pa.ChunkedArray, of_files: bool = False) -> Iterator[str]:
    """Paths of this machine, at any depth; `of_files` are all of the texts."""
    for part in _parts(values):
        texts = pc.struct_field(part, "path") if _is_file(part) else part
        for text in texts.filter(pc.match_substring_regex(texts, _ABSOLUTE)).unique().to_pylist():
            if of_files or _is_file(part) or re.match(_OF_SOMEBODY, text) or os.path.exists(text):
                yield text
