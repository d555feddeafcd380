"""The Parquet shards of a reinforced dataset: which files they are, and how they are written, checked and extended.

A shard is the unit of resumption: it is written whole or not at all, so a file with its name is a finished shard.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_reinforce import schema
from hf_reinforce.augmentations import AUGMENTATIONS
from hf_reinforce.models.classes import printable
from hf_reinforce.store.atomic import flush, whole_file
from hf_reinforce.store.config import ReinforcementConfig
from hf_reinforce.store.rows import ParquetRows, list_items
from hf_reinforce.targets import Target

SHARD_NAME = re.compile(r"[^/]+-\d{5,}(-of-\d{5,})?\.parquet")
"""Names of the shards of any split, see `shard_name`."""

_AGAIN = "and run the command that reinforces this dataset again; only what is missing is computed."


def shard_name(split: str, index: int, num_shards: int | None) -> str:
    """`train-00000-of-00128.parquet`; without the total when it is not known in advance."""
    total = "" if num_shards is None else f"-of-{num_shards:05d}"
    return f"{split}-{index:05d}{total}.parquet"


def shard_files(folder: Path, split: str) -> list[Path]:
    """The shards of a configuration in their order. Other Parquet files that lie beside them are none."""
    return sorted(folder.glob(f"{escape(split)}-*.parquet"))


def file_checksum(path: str | Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_shard(path: Path, table: pa.Table, targets: Sequence[Target], record: Path | None = None) -> None:
    """Writes a table as one Parquet file, all of it or nothing; `record` is a file that first gets its checksum.

    Parameters and targets are encoded as their operations and targets say; all of it is compressed with zstd, at a
    level that takes 12 us a record once and reads as fast as any other.
    """
    encodings = {leaf: _encoding(leaf, targets) for leaf in _leaf_paths(table.schema)}
    with whole_file(path) as temporary:
        with open(temporary, "wb") as file:
            with pq.ParquetWriter(
                file,
                table.schema,
                compression="zstd",
                compression_level=18,
                use_dictionary=[leaf for leaf, encoding in encodings.items() if encoding == "DICTIONARY"],
                column_encoding={leaf: name for leaf, name in encodings.items() if name not in ("DICTIONARY", None)},
                write_page_index=True,
            ) as writer:
                if len(table):  # readers refuse an empty row group, but not a file without any
                    writer.write_table(table, row_group_size=len(table))
            flush(file)
        if record is not None:
            with open(record, "w") as file:
                file.write(file_checksum(temporary))
                flush(file)


def _leaf_paths(arrow_schema: pa.Schema) -> list[str]:
    sink = pa.BufferOutputStream()
    pq.write_table(arrow_schema.empty_table(), sink)
    parquet = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [parquet.column(index).path for index in range(len(parquet))]


def _encoding(leaf: str, targets: Sequence[Target]) -> str | None:
    """How a column of plain values is encoded; None as Parquet does by itself."""
    parts = leaf.split(".")
    own: Mapping[Any, str] = {}
    if parts[0] == schema.AUGMENTATION_PARAMS:
        own = {operation.field: operation.encoding for operation in AUGMENTATIONS.values()}
    for target in targets:
        if parts[0] == target.column:
            own = target.encodings
    default = None if parts[0] in (schema.SOURCE_ROW, schema.IMAGE_HASH) else "DICTIONARY"
    return next((own[part] for part in parts if part in own), default)


@contextmanager
def open_shard(path: str | Path) -> Iterator[pq.ParquetFile]:
    """Opens a shard; a ValueError names it if it is none, or damaged, also where this shows only while it is read."""
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
    """Raises a ValueError for shards that are damaged, missing, there twice, or left by an interrupted extension."""
    shards = shard_files(folder, config.split)
    for path in shards:
        found = num_samples_in(path)
        if found != config.num_samples:
            raise ValueError(
                f"{path} holds {found} reinforcements per image, not {config.num_samples}; run the command that "
                "reinforces this dataset again to complete it."
            )
        if config.checksums.get(path.name) not in (None, file_checksum(path)):
            raise ValueError(f"{path} is damaged (its checksum is another one than recorded). Delete it {_AGAIN}")
    check_rows(str(folder), ParquetRows([str(path) for path in shards], [schema.SOURCE_ROW]), config)


def check_rows(name: str, rows: ParquetRows, config: ReinforcementConfig) -> None:
    """Raises a ValueError where the shards of a dataset lack rows of the source, or hold one twice."""
    expected = config.source.num_rows
    if not len(rows) or (expected is not None and len(rows) + len(config.skipped) != expected):
        raise ValueError(
            f"{name} holds {len(rows)} rows, not {expected}: shards are missing. Publish it again, or run the command "
            "that reinforces it again."
        )
    if rows.surely_differ(schema.SOURCE_ROW):
        return
    source_rows = rows.values(schema.SOURCE_ROW).to_numpy()
    order = np.argsort(source_rows, kind="stable")
    twice = np.flatnonzero(source_rows[order[1:]] == source_rows[order[:-1]])
    if len(twice):
        pair = order[twice[0] : twice[0] + 2]
        files = " and ".join(dict.fromkeys(rows.files[file] for file in rows.file_of(pair)))
        raise ValueError(
            f"Row {source_rows[pair[0]]} of the source is there twice, in {files}: a file was copied over another. "
            f"Delete what is named {_AGAIN}"
        )


def append_reinforcements(old: pa.Table, new: pa.Table, targets: Sequence[Target]) -> pa.Table:
    """Rows of `old` with the reinforcements of `new` behind their own; a ValueError if the images are not the same."""
    for name in (schema.SOURCE_ROW, schema.IMAGE_HASH):
        if not old.column(name).equals(new.column(name)):
            raise ValueError(
                "The images are not those that the existing reinforcements belong to; "
                "reinforce the same revision of the source, or choose another output folder."
            )
    for name in (schema.AUGMENTATION_PARAMS, *(target.column for target in targets if target.per == "view")):
        lists = [table.column(name).combine_chunks() for table in (old, new)]
        sizes = [array.type.list_size for array in lists]
        values = pa.concat_arrays([list_items(array) for array in lists])
        first = np.arange(len(old))[:, None] * sizes[0] + np.arange(sizes[0])
        second = len(old) * sizes[0] + np.arange(len(old))[:, None] * sizes[1] + np.arange(sizes[1])
        values = values.take(pa.array(np.concatenate([first, second], axis=1).reshape(-1)))
        joined = pa.FixedSizeListArray.from_arrays(values, sum(sizes))
        old = old.set_column(old.column_names.index(name), name, joined)
    return old
