"""The shards of a configuration: which files they are, and whether they are whole. Mostly footers are read."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_reinforce import schema
from hf_reinforce.models.classes import printable
from hf_reinforce.store.config import ReinforcementConfig
from hf_reinforce.store.parquet import file_checksum

SHARD_NAME = re.compile(r"[^/]+-\d{5,}(-of-\d{5,})?\.parquet")
"""Names of the shards of any split, see `storage.shard_name`."""

_AGAIN = "and run the command that reinforces this dataset again; only what is missing is computed."


def shard_files(folder: Path, split: str) -> list[Path]:
    """The shards of a configuration in their order. Other Parquet files that lie beside them are none."""
    return sorted(folder.glob(f"{escape(split)}-*.parquet"))


@contextmanager
def open_shard(path: str | Path) -> Iterator[pq.ParquetFile]:
    """Opens a shard to read it.

    Raises:
        ValueError: if it is no shard, or damaged, also where this shows only while it is read; the message names it.
    """
    try:
        with pq.ParquetFile(path) as file:
            missing = {schema.SOURCE_ROW, schema.AUGMENTATION_PARAMS} - set(file.schema_arrow.names)
            if missing:
                raise ValueError(
                    f"{path} has no columns {sorted(missing)}, so it is no shard of a reinforced dataset. Move it "
                    f"elsewhere {_AGAIN}"
                )
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({printable(reason)}). Delete it {_AGAIN}") from error


def num_samples_in(path: str | Path) -> int:
    """Number of reinforcements of each image in a shard."""
    with open_shard(path) as file:
        return int(file.schema_arrow.field(schema.AUGMENTATION_PARAMS).type.list_size)


def check_shards(folder: Path, config: ReinforcementConfig) -> None:
    """Refuses shards that are damaged, missing or there twice, and those of an interrupted extension.

    Args:
        folder: the configuration's folder.
        config: its configuration.

    Raises:
        ValueError: if there are such; the message names the file and says what to do.
    """
    num_rows, shards = 0, shard_files(folder, config.split)
    for path in shards:
        with open_shard(path) as file:
            num_rows += file.metadata.num_rows
        found = num_samples_in(path)
        if found != config.num_samples:
            raise ValueError(
                f"{path} holds {found} reinforcements per image, not {config.num_samples}; run the command that "
                "reinforces this dataset again to complete it."
            )
        if config.checksums.get(path.name) not in (None, file_checksum(path)):
            raise ValueError(f"{path} is damaged (its checksum is another one than recorded). Delete it {_AGAIN}")
    expected = config.source.num_rows
    if num_rows == 0 or (expected is not None and num_rows + len(config.skipped) != expected):
        raise ValueError(
            f"{folder} holds {num_rows} rows, not {expected}: shards are missing. Run the command that reinforces "
            "this dataset again to complete it."
        )
    check_source_rows(shards)


def check_source_rows(shards: Sequence[str | Path]) -> None:
    """Refuses shards that hold the same rows of the source, such as one that was copied over another.

    The footers tell where each shard holds a range of rows. Where rows are shuffled, their column is read as well, at
    most 8 bytes a row.

    Args:
        shards: paths of the files.

    Raises:
        ValueError: if a row is there twice, or a shard is damaged; the message names the files.
    """
    ranges = []
    for path in shards:
        with open_shard(path) as file:
            ranges += _row_ranges(file)
    if all(before[1] < after[0] for before, after in itertools.pairwise(sorted(ranges))):
        return
    columns = []
    for path in shards:
        with open_shard(path) as file:
            columns.append(file.read([schema.SOURCE_ROW]).column(0).to_numpy())
    rows = np.concatenate(columns)
    order = np.argsort(rows, kind="stable")
    twice = np.flatnonzero(rows[order[1:]] == rows[order[:-1]])
    if len(twice):
        ends = np.cumsum([len(column) for column in columns])
        places = np.searchsorted(ends, order[twice[0] : twice[0] + 2], side="right")
        names = " and ".join(dict.fromkeys(str(shards[place]) for place in places))
        raise ValueError(
            f"Row {rows[order[twice[0]]]} of the source is there twice, in {names}: a file was copied over another. "
            f"Delete what is named {_AGAIN}"
        )


def _row_ranges(file: pq.ParquetFile) -> list[tuple[float, float]]:
    """First and last source row of each row group; all numbers where the footer does not say."""
    column = next(i for i in range(len(file.schema)) if file.schema.column(i).path == schema.SOURCE_ROW)
    found = []
    for group in range(file.num_row_groups):
        statistics = file.metadata.row_group(group).column(column).statistics
        known = statistics is not None and statistics.has_min_max
        found.append((statistics.min, statistics.max) if known else (-math.inf, math.inf))
    return found
