"""Ranges of rows of data sets that stay where they are: read in order, from any row on."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, IterableDataset
from datasets.table import table_cast
from fsspec.implementations.local import LocalFileSystem

_BATCH = 64
_AT_ONCE = 16 * 2**20  # bytes of a row group that are fetched before its first row is there; of larger ones a part
_FOOTERS_AT_ONCE = 16


class Cursor(Protocol):
    """Reads ranges of rows; cheap where each begins at the end of the one before."""

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows `start` to `stop - 1`; fewer, or none, where the data set ends before."""


class ParquetRows:
    """Rows of Parquet files, one file after the other. Only the footers are read beforehand.

    Args:
        files: paths, or addresses that fsspec opens, such as `hf://datasets/...`.
        columns: columns that are read.
        features: of these columns, where the files may store them otherwise.
    """

    def __init__(self, files: Sequence[str], columns: Sequence[str], features: Features | None = None) -> None:
        self.files, self.columns, self.features = list(files), list(columns), features
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            self._footers = list(pool.map(read_footer, self.files))
        self._starts = [0, *accumulate(footer.num_rows for footer in self._footers)]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def largest_group(self) -> int:
        """Rows of the largest row group; what comes before a row of its group must be read too."""
        sizes = (footer.row_group(i).num_rows for footer in self._footers for i in range(footer.num_row_groups))
        return max(sizes, default=0)

    def cursor(self) -> Cursor:
        """A cursor of its own."""
        return _Cursor(self._batches)

    def _batches(self, start: int) -> Iterator[pa.Table]:
        first = bisect_right(self._starts, start) - 1
        for file, footer, begins in zip(self.files[first:], self._footers[first:], self._starts[first:], strict=False):
            groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
            skipped = max(start - begins, 0)
            with (
                _open(file) as opened,
                pq.ParquetFile(opened, metadata=footer, **_buffering(opened, groups)) as parquet,
            ):
                for index, group in enumerate(groups):
                    if skipped < group.num_rows:
                        batches = parquet.iter_batches(_BATCH, row_groups=[index], columns=self.columns)
                        yield from self._from_row(batches, skipped)
                    skipped = max(skipped - group.num_rows, 0)

    def _from_row(self, batches: Iterator[pa.RecordBatch], skipped: int) -> Iterator[pa.Table]:
        for batch in batches:
            if skipped < len(batch):
                table = pa.Table.from_batches([batch.slice(skipped)]).select(self.columns)
                yield table if self.features is None else table_cast(table, self.features.arrow_schema)
            skipped = max(skipped - len(batch), 0)


class StreamRows:
    """Rows of any other stream of `datasets`, which is read forward only: what comes before a row must be read too.

    Args:
        dataset: the stream.
        columns: columns that are read, of which the first holds images.
    """

    def __init__(self, dataset: IterableDataset, columns: Sequence[str]) -> None:
        dataset = dataset.cast_column(columns[0], Image(decode=False))
        self._dataset = dataset.select_columns(list(columns)).with_format("arrow")

    def cursor(self) -> Cursor:
        """A cursor of its own, which begins again where it has to go back."""
        return _Cursor(lambda start: iter(self._dataset.skip(start).iter(batch_size=_BATCH)), forward_only=True)


class DatasetRows:
    """Rows of a map-style data set.

    Args:
        dataset: the data set.
        columns: columns that are read.
    """

    def __init__(self, dataset: Dataset, columns: Sequence[str]) -> None:
        self._dataset = dataset.select_columns(list(columns)).with_format("arrow")

    def __len__(self) -> int:
        return len(self._dataset)

    def cursor(self) -> Cursor:
        """A cursor; it has no state."""
        return self

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows `start` to `stop - 1`; fewer where the data set ends before."""
        return self._dataset[min(start, len(self)) : min(stop, len(self))]


Rows = ParquetRows | StreamRows | DatasetRows


class _Cursor:
    def __init__(self, batches: Callable[[int], Iterator[pa.Table]], forward_only: bool = False) -> None:
        self._batches = batches  # row -> tables of the rows from there on
        self._forward_only = forward_only
        self._tables: Iterator[pa.Table] = iter(())
        self._held: list[pa.Table] = []  # read, but not asked for yet
        self._position = self._end = -1  # the rows that are held

    def read(self, start: int, stop: int) -> pa.Table:
        if self._position < 0 or start < self._position or (start > self._end and not self._forward_only):
            self._tables, self._held, self._position, self._end = self._batches(start), [], start, start
        self._drop(start)
        while self._end < stop and (table := next(self._tables, None)) is not None:
            self._held.append(table)
            self._end += len(table)
            self._drop(start)
        if not self._held:
            return pa.table({})
        found = pa.concat_tables(self._held).slice(0, stop - start)
        self._drop(stop)
        return found

    def _drop(self, start: int) -> None:
        """Forgets the rows before `start`."""
        while self._held and self._position < start:
            first = self._held[0].slice(start - self._position)
            self._position += len(self._held[0]) - len(first)
            self._held[:1] = [first] if len(first) else []
        if not self._held:
            self._position = self._end


def read_footer(file: str) -> pq.FileMetaData:
    """The footer of a Parquet file, which says how many rows it has and where."""
    with _open(file) as opened:
        return pq.read_metadata(opened)


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
    small = max((group.total_byte_size for group in groups), default=0) <= _AT_ONCE
    return {"pre_buffer": True} if small else {"pre_buffer": False, "buffer_size": _AT_ONCE // 2}
