"""Ranges of rows of data sets that stay where they are: read in order, from any row on."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, IterableDataset
from datasets.table import table_cast
from fsspec.implementations.local import LocalFileSystem

_BATCH = 64
_AT_ONCE = 32 * 2**20  # bytes of a row group that are fetched with one request
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

    def cursor(self) -> Cursor:
        """A cursor of its own."""
        return _Cursor(self._batches)

    def _batches(self, start: int) -> Iterator[pa.Table]:
        first = bisect_right(self._starts, start) - 1
        for file, footer, begins in zip(self.files[first:], self._footers[first:], self._starts[first:], strict=False):
            groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
            skipped = max(start - begins, 0)
            small = max((group.total_byte_size for group in groups), default=0) <= _AT_ONCE
            kind = {"pre_buffer": True} if small else {"pre_buffer": False, "buffer_size": _AT_ONCE // 4}
            with _open(file) as opened, pq.ParquetFile(opened, metadata=footer, **kind) as parquet:
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
    """Rows of any other stream of `datasets`. What comes before a range must be read, or at least listed.

    Args:
        dataset: the stream.
        columns: columns that are read, of which the first holds images.
    """

    def __init__(self, dataset: IterableDataset, columns: Sequence[str]) -> None:
        dataset = dataset.cast_column(columns[0], Image(decode=False))
        self._dataset = dataset.select_columns(list(columns)).with_format("arrow")

    def cursor(self) -> Cursor:
        """A cursor of its own."""
        return _Cursor(lambda start: iter(self._dataset.skip(start).iter(batch_size=_BATCH)))


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
    def __init__(self, batches: Any) -> None:
        self._batches = batches  # row -> iterator over tables of the rows from there on
        self._position, self._held = -1, None
        self._iterator: Iterator[pa.Table] = iter(())

    def read(self, start: int, stop: int) -> pa.Table:
        if start != self._position or self._held is None:
            self._iterator = self._batches(start)
            self._held = next(self._iterator, None)
            self._position = start
        if self._held is None:
            return pa.table({})
        tables, missing = [self._held], stop - start - len(self._held)
        while missing > 0 and (table := next(self._iterator, None)) is not None:
            tables.append(table)
            missing -= len(table)
        joined = pa.concat_tables(tables)
        self._held, self._position = joined.slice(stop - start), start + min(stop - start, len(joined))
        return joined.slice(0, stop - start)


def read_footer(file: str) -> pq.FileMetaData:
    """The footer of a Parquet file, which says how many rows it has and where."""
    with _open(file) as opened:
        return pq.read_metadata(opened)


def _open(file: str) -> Any:
    filesystem, path = fsspec.core.url_to_fs(file)
    if isinstance(filesystem, LocalFileSystem):
        return pa.OSFile(path)
    return filesystem.open(path, "rb", cache_type="none")  # pyarrow knows what it will need next
