"""Rows by number, wherever they are: single values of memory-mapped Arrow, and of Parquet files read in blocks."""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features
from datasets.table import table_cast
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from hf_reinforce.models.classes import printable

BLOCK = 64  # most rows of a block, which lie in one row group
_KEPT = 32 * BLOCK  # rows: what two windows of `sampler.local_order` touch
_READ_AT_ONCE = 16  # places where reading goes on
_THREADS = 4  # that read ahead
_BYTES_AT_ONCE = 16 * 2**20  # of a row group, before its first row is there; of larger ones a part
_FOOTERS_AT_ONCE = 16
_DEEPEST = 50  # levels of a value that are read one by one; Python allows no more than 1,000 calls in each other

Reader = Callable[..., Any]  # of a row, and for columns of lists of the item, to one value
View = Callable[[int], Any]


def column_reader(
    rows: "Dataset | ParquetRows", column: str, num_samples: int | None = None, field: str | None = None
) -> Reader:
    """A reader of single values of a column, see `ColumnReader`."""
    if isinstance(rows, ParquetRows):
        return partial(rows.read, (column, num_samples, field))
    return ColumnReader(rows, column, num_samples, field)


class ColumnReader:
    """Reads single values of a column from memory-mapped Arrow, without building the rest of the row.

    With `num_samples` the column is a list of this length, of which `reader(row, slot)` reads one item, or only its
    `field`. The dataset may have been selected, shuffled or concatenated.
    """

    def __init__(
        self, dataset: Dataset, column: str, num_samples: int | None = None, field: str | None = None
    ) -> None:
        self.column, self.field, self.num_samples = column, field, num_samples
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
        view = self._views.get(chunk)
        if view is None:
            array = self._chunks[chunk]
            items = array if self.num_samples is None else list_items(array)
            view = self._views[chunk] = _view(items if self.field is None else items.field(self.field))
        position = row - self._starts[chunk]
        return view(position if slot is None or self.num_samples is None else position * self.num_samples + slot)


def list_items(array: Any) -> Any:
    """The items of an array of lists of a fixed length, one list after the other."""
    size = array.type.list_size
    return array.values.slice(array.offset * size, len(array) * size)


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


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
        size, items = kind.list_size, list_items(array)
        flat = np.frombuffer(items.buffers()[1], dtype=kind.value_type.to_pandas_dtype())[items.offset :]
        view = lambda i: flat[i * size : i * size + size]
    elif pa.types.is_fixed_size_list(kind):
        size, item = kind.list_size, _view(list_items(array), level + 1)
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


class ParquetRows:
    """Rows of Parquet files, one file after the other; only the footers are read beforehand.

    Any order of asking works. Cheap is one that stays near where it is, as `sampler.local_order` makes it: blocks that
    follow each other in a file are read once, and from the third on in the background while the one before is used.
    Of the blocks the last few are kept. Each process, also a forked one, reads for itself. A damaged file is named in
    a ValueError, when it is opened or read.

    Args:
        files: paths, or addresses that fsspec opens, such as `hf://datasets/...`.
        columns: columns that are read.
        features: of these columns, where the files may store them otherwise.
    """

    def __init__(self, files: Sequence[str], columns: Sequence[str], features: Features | None = None) -> None:
        self.files, self.columns, self._cast_to = list(files), list(columns), features
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            self._footers = list(pool.map(_read_footer, self.files))
        self._file_starts = [0, *accumulate(footer.num_rows for footer in self._footers)]
        self._groups = [(f, g) for f, footer in enumerate(self._footers) for g in range(footer.num_row_groups)]
        sizes = [self._footers[f].row_group(g).num_rows for f, g in self._groups]
        self.largest_group = max(sizes, default=0)
        lengths = [min(BLOCK, size - start) for size in sizes for start in range(0, size, BLOCK)]
        self._starts = [0, *accumulate(lengths)]  # of the blocks
        self._first_blocks = [0, *accumulate(-(-size // BLOCK) for size in sizes)]  # of the row groups
        self._selected: NDArray[np.int64] | None = None
        self._process: int | None = None

    def __len__(self) -> int:
        return int(self._file_starts[-1]) if self._selected is None else len(self._selected)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _OF_A_PROCESS} | {"_process": None}

    @property
    def features(self) -> Features:
        """Features of the columns."""
        if self._cast_to is not None:
            return self._cast_to
        stored = Features.from_arrow_schema(self._footers[0].schema.to_arrow_schema())
        return Features({column: stored[column] for column in self.columns})

    def select(self, rows: Sequence[int]) -> "ParquetRows":
        """Some of the rows."""
        chosen, numbers = copy(self), np.asarray(rows, dtype=np.int64)
        chosen._selected = numbers if self._selected is None else self._selected[numbers]
        return chosen

    def file_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of the file of each row."""
        rows = rows if self._selected is None else self._selected[rows]
        return np.searchsorted(self._file_starts, rows, side="right") - 1

    def surely_differ(self, column: str) -> bool:
        """Whether the footers say that no two row groups hold the same value of a column."""
        ranges = []
        for file, index in self._groups:
            group = self._footers[file].row_group(index)
            leaves = (group.column(leaf) for leaf in range(group.num_columns))
            statistics = next(leaf.statistics for leaf in leaves if leaf.path_in_schema == column)
            if statistics is None or not statistics.has_min_max:
                return False
            ranges.append((statistics.min, statistics.max))
        return all(before[1] < after[0] for before, after in pairwise(sorted(ranges)))

    def values(self, column: str) -> pa.ChunkedArray:
        """All values of a column."""

        def read(file: str, footer: pq.FileMetaData) -> pa.ChunkedArray:
            with _named(file), _open(file) as opened:
                return pq.ParquetFile(opened, metadata=footer).read([column]).column(0)

        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            chunks = [chunk for part in pool.map(read, self.files, self._footers) for chunk in part.chunks]
        found = pa.chunked_array(chunks)
        return found if self._selected is None else found.take(pa.array(self._selected))

    def read(self, what: tuple[str, int | None, str | None], row: int, slot: int | None = None) -> Any:
        """One value of `(column, num_samples, field)`, see `ColumnReader`."""
        if self._process != os.getpid():  # a forked process has none of the threads, and shares the open files
            self._process, self._kept = os.getpid(), 0
            self._blocks: OrderedDict[int, tuple[Dataset, dict[Any, ColumnReader]]] = OrderedDict()
            self._coming: OrderedDict[int, tuple[Iterator[pa.Table], Future[pa.Table] | None]] = OrderedDict()
            self._pool = ThreadPoolExecutor(_THREADS)
        if self._selected is not None:
            row = int(self._selected[row])
        index = bisect_right(self._starts, row) - 1
        if index not in self._blocks:
            self._read_block(index)
        self._blocks.move_to_end(index)
        block, readers = self._blocks[index]
        if what not in readers:
            readers[what] = ColumnReader(block, *what)
        return readers[what](row - self._starts[index], slot)

    def _read_block(self, index: int) -> None:
        group = bisect_right(self._first_blocks, index) - 1
        first = self._first_blocks[group]
        at = max((block for block in self._coming if first <= block <= index), default=None)
        tables, ahead = (self._blocks_from(group), None) if at is None else self._coming.pop(at)
        for block in range(first if at is None else at, index + 1):
            table = next(tables) if ahead is None else ahead.result()
            ahead = None
            self._blocks[block] = Dataset(table, fingerprint="block"), {}
            self._kept += len(table)
        if index + 1 < len(self._starts) - 1 and self._starts[index + 1] not in self._file_starts:
            goes_on = at is not None and index > first
            self._coming[index + 1] = tables, self._pool.submit(next, tables) if goes_on else None
        while self._kept > _KEPT and len(self._blocks) > 1:
            self._kept -= len(self._blocks.popitem(last=False)[1][0])
        while len(self._coming) > _READ_AT_ONCE:
            self._coming.popitem(last=False)

    def _blocks_from(self, group: int) -> Iterator[pa.Table]:
        """The blocks of a file from the first of a row group on."""
        number, first = self._groups[group]
        file, footer = self.files[number], self._footers[number]
        groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
        large = max(each.total_byte_size for each in groups) > _BYTES_AT_ONCE
        with _named(file), _open(file) as opened:
            remote = not isinstance(opened, pa.MemoryMappedFile)
            buffer_size = _BYTES_AT_ONCE // 2 if remote and large else 0
            parquet = pq.ParquetFile(opened, metadata=footer, pre_buffer=remote and not large, buffer_size=buffer_size)
            for index in range(first, len(groups)):
                batches = parquet.iter_batches(BLOCK, row_groups=[index], columns=self.columns)
                left = groups[index].num_rows
                while left:
                    size, table = min(BLOCK, left), pa.Table.from_batches([next(batches)])
                    while len(table) < size:  # Arrow splits what is too large for one array
                        table = pa.concat_tables([table, pa.Table.from_batches([next(batches)])])
                    table = table.select(self.columns).combine_chunks()
                    left -= size
                    yield table if self._cast_to is None else table_cast(table, self._cast_to.arrow_schema)


_OF_A_PROCESS = ("_blocks", "_coming", "_pool", "_kept")


def _read_footer(file: str) -> pq.FileMetaData:
    with _named(file), _open(file) as opened:
        return pq.read_metadata(opened)


def _open(file: str) -> Any:
    filesystem, path = fsspec.core.url_to_fs(file)
    if isinstance(filesystem, LocalFileSystem):
        return pa.memory_map(path)
    return filesystem.open(path, "rb", cache_type="none")  # pyarrow knows what it will need next


@contextmanager
def _named(file: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if type(error) not in (pa.ArrowInvalid, OSError) or getattr(error, "errno", None):  # not of Arrow
            raise
        reason = printable(" ".join(str(error).split())).rstrip(".")
        raise ValueError(
            f"{file} cannot be read, probably because it was cut short: {reason}. {repair(file)}"
        ) from error


def repair(file: str) -> str:
    """What to do about a damaged file: a sentence for errors."""
    own = "Load it" if "://" in file else f"Delete {Path(file).resolve()} and load it"
    return f"{own} again; if that does not help, publish it again, or ask whoever published it."
