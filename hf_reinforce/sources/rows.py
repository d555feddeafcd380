"""Rows of Parquet files by number, wherever the files are: read forward in blocks, of which the last few are kept."""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
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

from hf_reinforce.store.parquet import ColumnReader

BLOCK = 64
"""Most rows of a block, which lie in one row group."""

_KEPT = 32 * BLOCK  # rows: what two windows of `sampler.local_order` touch
_READ_AT_ONCE = 16  # places where reading goes on
_THREADS = 4  # that read ahead
_BYTES_AT_ONCE = 16 * 2**20  # of a row group, before its first row is there; of larger ones a part
_FOOTERS_AT_ONCE = 16

Reader = Callable[..., Any]
"""A function of a row, and for columns of lists of the item, that returns one value."""


class ParquetRows:
    """Rows of Parquet files, one file after the other; only the footers are read beforehand.

    Any order of asking works. Cheap is one that stays near where it is, as `sampler.local_order` makes it: blocks that
    follow each other in a file are read once, and from the third on in the background while the one before is used.
    Each process, also a forked one, reads for itself.

    Args:
        files: paths, or addresses that fsspec opens, such as `hf://datasets/...`.
        columns: columns that are read.
        features: of these columns, where the files may store them otherwise.
    """

    def __init__(self, files: Sequence[str], columns: Sequence[str], features: Features | None = None) -> None:
        self.files, self.columns, self._cast_to = list(files), list(columns), features
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            self._footers = list(pool.map(read_footer, self.files))
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
        chosen, numbers = ParquetRows.__new__(ParquetRows), np.asarray(rows, dtype=np.int64)
        vars(chosen).update(self.__getstate__())
        chosen._selected = numbers if self._selected is None else self._selected[numbers]
        return chosen

    def file_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of the file of each row."""
        rows = rows if self._selected is None else self._selected[rows]
        return np.searchsorted(self._file_starts, rows, side="right") - 1

    def values(self, column: str) -> pa.ChunkedArray:
        """All values of a column."""

        def read(file: str) -> pa.ChunkedArray:
            with _named(file), _open(file) as opened:
                return pq.ParquetFile(opened).read([column]).column(0)

        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            chunks = [chunk for part in pool.map(read, self.files) for chunk in part.chunks]
        found = pa.chunked_array(chunks)
        return found if self._selected is None else found.take(pa.array(self._selected))

    def block_of(self, row: int) -> tuple["_Block", int]:
        """The block that holds a row, and the row's number in it."""
        if self._process != os.getpid():  # a forked process has none of the threads, and shares the open files
            self._process, self._kept = os.getpid(), 0
            self._blocks: OrderedDict[int, _Block] = OrderedDict()
            self._coming: OrderedDict[int, _Cursor] = OrderedDict()
            self._pool = ThreadPoolExecutor(_THREADS)
        if self._selected is not None:
            row = int(self._selected[row])
        index = bisect_right(self._starts, row) - 1
        if index not in self._blocks:
            self._read(index)
        self._blocks.move_to_end(index)
        return self._blocks[index], row - self._starts[index]

    def _read(self, index: int) -> None:
        group = bisect_right(self._first_blocks, index) - 1
        first = self._first_blocks[group]
        at = max((block for block in self._coming if first <= block <= index), default=None)
        cursor = _Cursor(self._blocks_from(group)) if at is None else self._coming.pop(at)
        for block in range(first if at is None else at, index + 1):
            table = cursor.next()
            self._blocks[block] = _Block(Dataset(table, fingerprint="block"))
            self._kept += len(table)
        if index + 1 < len(self._starts) - 1 and self._starts[index + 1] not in self._file_starts:
            self._coming[index + 1] = cursor
            if at is not None and index > first:
                cursor.read_ahead(self._pool)
        while self._kept > _KEPT and len(self._blocks) > 1:
            self._kept -= len(self._blocks.popitem(last=False)[1].rows)
        while len(self._coming) > _READ_AT_ONCE:
            self._coming.popitem(last=False)

    def _blocks_from(self, group: int) -> Iterator[pa.Table]:
        """The blocks of a file from the first of a row group on."""
        number, first = self._groups[group]
        file, footer = self.files[number], self._footers[number]
        groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
        with (
            _named(file),
            _open(file) as opened,
            pq.ParquetFile(opened, metadata=footer, **_buffering(opened, groups)) as parquet,
        ):
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


class _Block:
    def __init__(self, rows: Dataset) -> None:
        self.rows = rows
        self.readers: dict[_RemoteColumn, ColumnReader] = {}


class _Cursor:
    """Where reading goes on: the next table is read when it is asked for, or before."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._future: Future[pa.Table] | None = None

    def next(self) -> pa.Table:
        future, self._future = self._future, None
        return next(self._tables) if future is None else future.result()

    def read_ahead(self, pool: ThreadPoolExecutor) -> None:
        self._future = pool.submit(next, self._tables)


class _RemoteColumn:
    def __init__(self, rows: ParquetRows, column: str, num_samples: int | None, field: str | None) -> None:
        self._rows, self._what = rows, (column, num_samples, field)

    def __call__(self, row: int, slot: int | None = None) -> Any:
        block, within = self._rows.block_of(row)
        reader = block.readers.get(self)
        if reader is None:
            reader = block.readers[self] = ColumnReader(block.rows, *self._what)
        return reader(within, slot)


def column_reader(
    rows: Dataset | ParquetRows, column: str, num_samples: int | None = None, field: str | None = None
) -> Reader:
    """A reader of single values of a column, see `ColumnReader`."""
    if isinstance(rows, ParquetRows):
        return _RemoteColumn(rows, column, num_samples, field)
    return ColumnReader(rows, column, num_samples, field)


def read_footer(file: str) -> pq.FileMetaData:
    """The footer of a Parquet file, which says how many rows it has and where."""
    with _open(file) as opened:
        return pq.read_metadata(opened)


@contextmanager
def _named(file: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if type(error) not in (pa.ArrowInvalid, OSError) or getattr(error, "errno", None):  # not of Arrow
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"{file} cannot be read, probably because it was cut short: {reason}. {repair(file)}"
        ) from error


def repair(file: str) -> str:
    """What to do about a damaged file: a sentence for errors."""
    if "://" in file:
        return "Load it again; if that does not help, ask whoever published it to publish it again."
    return (
        f"Delete {Path(file).resolve()} and load it again, after the command that made it if you made it yourself; if "
        "that does not help, ask whoever published it to publish it again."
    )


def _open(file: str) -> Any:
    filesystem, path = fsspec.core.url_to_fs(file)
    if isinstance(filesystem, LocalFileSystem):
        return pa.memory_map(path)
    return filesystem.open(path, "rb", cache_type="none")  # pyarrow knows what it will need next


def _buffering(file: Any, groups: Sequence[pq.RowGroupMetaData]) -> dict[str, Any]:
    """How a file is read: mapped, by whole row groups, or by parts of them."""
    if isinstance(file, pa.MemoryMappedFile):
        return {"pre_buffer": False}
    small = max((group.total_byte_size for group in groups), default=0) <= _BYTES_AT_ONCE
    return {"pre_buffer": True} if small else {"pre_buffer": False, "buffer_size": _BYTES_AT_ONCE // 2}
