"""Which row of a source holds the image of each reinforced row: by row where the hashes agree, else by hash."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_reinforce import images, schema
from hf_reinforce.sources.image_source import ImageSource
from hf_reinforce.sources.labels import column_values
from hf_reinforce.store.config import ReinforcementConfig
from hf_reinforce.store.rows import ParquetRows, column_reader

logger = logging.getLogger(__name__)

_PROBES = 64
_CHUNK = 256
_NAMED = 8


def reinforced_rows(reinforced: Dataset | ParquetRows) -> NDArray[np.int64]:
    """The row of the source that each row was made from, int64 [len(reinforced)]."""
    rows: NDArray[np.int64] = column_values(reinforced, schema.SOURCE_ROW).to_numpy().astype(np.int64, copy=False)
    return rows


def recorded_place(config: ReinforcementConfig) -> str:
    """Where the images were when they were reinforced, for messages."""
    record = config.source
    revision = f"revision {record.revision!r}" if record.revision else "in its original order"
    return f"{record.name or 'the same dataset'}, split {record.split!r}, {revision}"


def source_positions(
    reinforced: Dataset | ParquetRows,
    source: Dataset | ParquetRows,
    config: ReinforcementConfig,
    every: bool = False,
) -> NDArray[np.int64]:
    """Where the source holds the image of each reinforced row; -1 where it does not hold it.

    A few rows are compared, or with `every` all. If they hold the images that were reinforced, the source is in its
    original order; every later read checks its own image. Otherwise the source was reordered, filtered or sharded
    anew, and all its images are hashed. Of a stream no image is compared.
    """
    rows = reinforced_rows(reinforced)
    if isinstance(reinforced, ParquetRows) or isinstance(source, ParquetRows):
        return np.where(rows < len(source), rows, -1)
    images_of, hashes = ImageSource(source, config.source.image_column), column_reader(reinforced, schema.IMAGE_HASH)
    probes = np.linspace(0, len(rows) - 1, min(_PROBES, len(rows)), dtype=np.int64).tolist()
    in_place = rows.max(initial=-1) < len(source) and all(
        _hash(images_of, rows[probe].item()) == hashes(probe) for probe in probes
    )
    return rows if in_place and not every else positions_by_hash(reinforced, source, config)


def positions_by_hash(reinforced: Dataset, source: Dataset, config: ReinforcementConfig) -> NDArray[np.int64]:
    """As `source_positions`, of a source that is known to differ: all its images are hashed, as they are stored."""
    images_of = ImageSource(source, config.source.image_column)
    order = np.argsort(images_of.stored_rows(np.arange(len(source))), kind="stable")
    chunks = [order[start : start + _CHUNK].tolist() for start in range(0, len(order), _CHUNK)]
    hashed = lambda rows: pa.array([_hash(images_of, row) for row in rows], pa.string())
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        size: dict[str, Any] = {"total": len(chunks), "unit": "image", "unit_scale": _CHUNK}
        parts = list(tqdm(pool.map(hashed, chunks), "Finding the images by their hashes", **size))
    found = pa.chunked_array(parts, pa.string()).combine_chunks()
    wanted = column_values(reinforced, schema.IMAGE_HASH).cast(pa.string())
    places = pc.index_in(wanted, value_set=found, skip_nulls=True).fill_null(-1).to_numpy()
    positions: NDArray[np.int64] = np.append(order, -1)[places]
    return positions


def _hash(source: ImageSource, row: int) -> str | None:
    try:
        return images.image_hash(source.encoded(row))
    except images.ImageError:
        return None


def check_missing(
    positions: NDArray[np.int64], reinforced: Dataset | ParquetRows, config: ReinforcementConfig, allow_missing: bool
) -> None:
    """Names the images that a source lacks: in an error, or in a warning where they may be missing."""
    missing = np.flatnonzero(positions < 0)
    if missing.size == 0:
        return
    hashes, rows = column_reader(reinforced, schema.IMAGE_HASH), reinforced_rows(reinforced)
    named = ", ".join(f"row {rows[place]} (hash {hashes(place)})" for place in missing[:_NAMED].tolist())
    named += ", ..." if missing.size > _NAMED else ""
    rest = len(positions) - missing.size
    found = (
        f"The source holds {rest:,} of the {len(positions):,} images that were reinforced; {missing.size:,} are "
        f"missing: {named}."
    )
    if not allow_missing or not rest:
        others = ", or train on the others with allow_missing=True (--allow_missing True)" if rest else ""
        raise ValueError(f"{found} Use {recorded_place(config)}{others}.")
    mixed = " What is mixed with the missing ones is replaced." if config.policy.mix_operations else ""
    logger.warning("%s Training goes on with the others.%s", found, mixed)
