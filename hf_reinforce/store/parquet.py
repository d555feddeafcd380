"""Parquet shards of a reinforced dataset, and fast reading of its columns.

A shard is the unit of resumption: it is written to a temporary name, flushed to the disk and renamed, so a file with a
shard's name is a finished shard.
"""

import errno
import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from hf_reinforce import schema
from hf_reinforce.augmentations import AUGMENTATIONS
from hf_reinforce.targets import Target


def shard_name(split: str, index: int, num_shards: int | None) -> str:
    """`train-00000-of-00128.parquet`; without the total when it is not known in advance."""
    total = "" if num_shards is None else f"-of-{num_shards:05d}"
    return f"{split}-{index:05d}{total}.parquet"


_FULL = ("the disk is full", "Make room there")
_LOCKED = ("it may not be written to", "Make it writable, or choose another output folder,")
_GONE = ("it is gone", "Bring it back, mounted as before,")
_TROUBLES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _LOCKED),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENOTCONN), _GONE),
}


@contextmanager
def explained_writes(folder: Path) -> Iterator[None]:
    """Turns an error of the operating system into one that names the folder and says what to do; `errno` stays."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # of the network, while images are read
            raise
        reason, remedy = _TROUBLES.get(error.errno, (str(error), "Mend that"))
        explained = OSError(
            f"{folder} cannot be written: {reason}. {remedy} and run the same command again to continue; what is "
            "finished is kept."
        )
        explained.errno = error.errno
        raise explained from error


def file_checksum(path: str | Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path` at the end: all of the file appears, or nothing."""
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
    with explained_writes(path.parent):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file in UTF-8: all of it or nothing.

    Args:
        path: of the file, in a folder that exists.
        text: its contents.

    Raises:
        OSError: if the disk is full or cannot be written.
    """
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        _flush(file)


def write_shard(path: Path, table: pa.Table, targets: Sequence[Target], record: Path | None = None) -> None:
    """Writes a table as one Parquet file: all of it or nothing.

    Parameters and targets are encoded as their operations and targets say; all of it is compressed with zstd, at a
    level that takes 12 us a record once and reads as fast as any other.

    Args:
        path: of the shard.
        table: its rows.
        targets: of which there are columns.
        record: a file that gets the shard's checksum, before the shard gets its name.

    Raises:
        OSError: if the disk is full or cannot be written; finished shards are not affected.
    """
    leaves = _leaf_paths(table.schema)
    chosen = {leaf: _encoding(leaf, targets) for leaf in leaves}
    dictionary = [leaf for leaf in leaves if chosen[leaf] == "DICTIONARY"]
    encodings = {leaf: encoding for leaf, encoding in chosen.items() if encoding not in ("DICTIONARY", None)}
    with whole_file(path) as temporary:
        with open(temporary, "wb") as file:
            with pq.ParquetWriter(
                file,
                table.schema,
                compression="zstd",
                compression_level=18,
                use_dictionary=dictionary,
                column_encoding=encodings,
                write_page_index=True,
            ) as writer:
                if len(table):  # readers refuse an empty row group, but not a file without any
                    writer.write_table(table, row_group_size=len(table))
            _flush(file)
        if record is not None:
            with open(record, "w") as file:
                file.write(file_checksum(temporary))
                _flush(file)


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _leaf_paths(arrow_schema: pa.Schema) -> list[str]:
    sink = pa.BufferOutputStream()
    pq.write_table(arrow_schema.empty_table(), sink)
    parquet = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [parquet.column(index).path for index in range(len(parquet))]


def _encoding(leaf: str, targets: Sequence[Target]) -> str | None:
    parts = leaf.split(".")
    own: Mapping[Any, str] = {}
    if parts[0] == schema.AUGMENTATION_PARAMS:
        own = {operation.field: operation.encoding for operation in AUGMENTATIONS.values()}
    for target in targets:
        if parts[0] == target.column:
            own = target.encodings
    default = None if parts[0] in (schema.SOURCE_ROW, schema.IMAGE_HASH) else "DICTIONARY"
    return next((own[part] for part in parts if part in own), default)


View = Callable[[int], Any]

_DEEPEST = 50  # levels of a value that are read one by one; Python allows no more than 1,000 calls in each other


class ColumnReader:
    """Reads single values of a column from memory-mapped Arrow, without building the rest of the row.

    Args:
        dataset: any map-style dataset; it may have been selected, shuffled or concatenated.
        column: name of the column.
        num_samples: when given, the column is a list of this length and `reader(row, slot)` reads one of its items;
            else `reader(row, slot)` is the same for every slot.
        field: read only this field of the items.
    """

    def __init__(
        self, dataset: Dataset, column: str, num_samples: int | None = None, field: str | None = None
    ) -> None:
        self.column, self.field = column, field
        self.num_samples = num_samples
        self._dataset = dataset
        self._chunks = dataset.data.column(column).chunks
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks)]).tolist()
        indices = dataset._indices  # the only way to see through a selection without copying the data
        self._indices = None if indices is None else indices.column(0).to_numpy()
        self._views: dict[int, View] = {}

    def __reduce__(self) -> Any:
        # A memory-mapped dataset travels to a worker as the name of its file; its chunks would travel as copies.
        return type(self), (self._dataset, self.column, self.num_samples, self.field)

    def __call__(self, row: int, slot: int | None = None) -> Any:
        if self._indices is not None:
            row = int(self._indices[row])
        chunk = bisect_right(self._starts, row) - 1
        view = self._views.get(chunk) or self._make_view(chunk)
        position = row - self._starts[chunk]
        return view(position if slot is None or self.num_samples is None else position * self.num_samples + slot)

    def _make_view(self, chunk: int) -> View:
        array = self._chunks[chunk]
        items = array if self.num_samples is None else _list_items(array)
        self._views[chunk] = _view(items if self.field is None else items.field(self.field))
        return self._views[chunk]


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _list_items(array: Any) -> Any:
    size = array.type.list_size
    return array.values.slice(array.offset * size, len(array) * size)


def _view(array: Any, level: int = 0) -> View:
    """A function from index to Python value over one Arrow array; lists of numbers are NumPy arrays, not copied."""
    kind = array.type
    if array.null_count == len(array):
        return lambda i: None
    if level == _DEEPEST:
        return lambda i: array[i].as_py()
    view: View
    if pa.types.is_struct(kind):
        fields = [(kind.field(i).name, _view(array.field(i), level + 1)) for i in range(kind.num_fields)]
        view = lambda i: {name: read(i) for name, read in fields}
    elif pa.types.is_fixed_size_list(kind) and _is_number(kind.value_type) and not array.values.null_count:
        size, items = kind.list_size, _list_items(array)
        flat = np.frombuffer(items.buffers()[1], dtype=kind.value_type.to_pandas_dtype())[items.offset :]
        view = lambda i: flat[i * size : i * size + size]
    elif pa.types.is_fixed_size_list(kind):
        size, item = kind.list_size, _view(_list_items(array), level + 1)
        view = lambda i: [item(j) for j in range(i * size, i * size + size)]
    elif _is_number(kind) and not pa.types.is_float16(kind):  # a memoryview does not read halves
        # memoryview indexing returns Python numbers, several times faster than NumPy scalars
        numbers: Any = memoryview(np.frombuffer(array.buffers()[1], dtype=kind.to_pandas_dtype()).data)
        view = numbers[array.offset :].__getitem__
    elif pa.types.is_boolean(kind):
        view = _bits(array.buffers()[1], array.offset)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        view = lambda i: memoryview(array[i].as_buffer())
    else:
        return lambda i: array[i].as_py()
    if array.null_count == 0:
        return view
    valid = _bits(array.buffers()[0], array.offset)
    return lambda i: view(i) if valid(i) else None


def _bits(buffer: Any, offset: int) -> Callable[[int], bool]:
    flags = memoryview(buffer)
    return lambda i: flags[(i + offset) >> 3] >> ((i + offset) & 7) & 1 == 1


def append_reinforcements(old: pa.Table, new: pa.Table, targets: Sequence[Target]) -> pa.Table:
    """Rows of `old` with the reinforcements of `new` behind their own.

    Args:
        old: rows with some reinforcements each.
        new: the same rows with further ones.
        targets: of which there are columns in `old`; `new` has those with a record per view.

    Raises:
        ValueError: if the two are not about the same images.
    """
    for name in (schema.SOURCE_ROW, schema.IMAGE_HASH):
        if old.column(name).to_pylist() != new.column(name).to_pylist():
            raise ValueError(
                "The images are not those that the existing reinforcements belong to; "
                "reinforce the same revision of the source, or choose another output folder."
            )
    for name in (schema.AUGMENTATION_PARAMS, *(target.column for target in targets if target.per == "view")):
        lists = [table.column(name).combine_chunks() for table in (old, new)]
        sizes = [array.type.list_size for array in lists]
        values = pa.concat_arrays([_list_items(array) for array in lists])
        first = np.arange(len(old))[:, None] * sizes[0] + np.arange(sizes[0])
        second = len(old) * sizes[0] + np.arange(len(old))[:, None] * sizes[1] + np.arange(sizes[1])
        values = values.take(pa.array(np.concatenate([first, second], axis=1).reshape(-1)))
        joined = pa.FixedSizeListArray.from_arrays(values, sum(sizes))
        old = old.set_column(old.column_names.index(name), name, joined)
    return old
