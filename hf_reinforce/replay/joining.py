"""Which row of a source holds the image of each reinforced row: by row where the hashes agree, else by hash."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_reinforce import images, schema
from hf_reinforce.images import ImageError
from hf_reinforce.sources.image_source import ImageSource
from hf_reinforce.sources.labels import column_values
from hf_reinforce.store.config import ReinforcementConfig
from hf_reinforce.store.rows import ParquetRows, column_reader

logger = logging.getLogger(__name__)

_PROBES = 64
_CHUNK = 256
_NAMED = 8
_TEXTS = 2**16  # hashes that are Python texts at once


def source_positions(
    reinforced: Dataset, source: Dataset, config: ReinforcementConfig, every: bool = False
) -> NDArray[np.int64]:
    """Where the source holds the image of each reinforced row.

    A few rows are compared first. If all of them hold the image that was reinforced, the source is in its original
    order; every later read checks its own image. Otherwise the source was reordered, filtered or sharded anew, and
    `positions_by_hash` looks for them.

    Args:
        reinforced: rows of a reinforced dataset.
        source: the dataset with the images.
        config: contents of `reinforcement.json`.
        every: compare every row, so that no missing image is overlooked.

    Returns:
        int64 [len(reinforced)], rows of the source; -1 where the source does not hold the image. Where it holds
        several copies of an image they are taken in order.
    """
    image_source, rows = ImageSource(source, config.source.image_column), _rows(reinforced)
    probes = _probes(rows, [view.row for view in config.pixels.reference_views])
    in_place = probes.size == 0 or bool(
        rows[probes].max() < len(source)
        and _agree(_hash(image_source, rows[probes]), _hashes(reinforced.select(probes)))
    )
    if in_place and not every:
        return rows
    hashes = _hashes(reinforced)
    if in_place and _agree(_hash_many(image_source, rows), hashes):
        return rows
    return _search(image_source, rows, hashes)


def positions_by_hash(reinforced: Dataset, source: Dataset, config: ReinforcementConfig) -> NDArray[np.int64]:
    """As `source_positions`, of a source that is known to differ: all its images are hashed once."""
    return _search(ImageSource(source, config.source.image_column), _rows(reinforced), _hashes(reinforced))


def _search(source: ImageSource, rows: NDArray[np.int64], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    if not len(source):
        return np.full(len(rows), -1)
    source_hashes, readable = _hash_many(source, np.arange(len(source)))
    positions = _lookup(hashes, rows, source_hashes[readable], np.flatnonzero(readable))
    within = np.minimum(rows, len(source) - 1)
    in_place = (rows == within) & readable[within] & (source_hashes[within] == hashes)
    return np.where(in_place, rows, positions)


def recorded_positions(reinforced: Dataset | ParquetRows, source: Dataset | ParquetRows) -> NDArray[np.int64]:
    """As `source_positions`, of a source in its original order; -1 for rows behind its end. No image is compared."""
    rows = _rows(reinforced)
    return np.where(rows < len(source), rows, -1)


def check_missing(
    positions: NDArray[np.int64], reinforced: Dataset | ParquetRows, config: ReinforcementConfig, allow_missing: bool
) -> None:
    """Names the images that a source lacks, in an error or, where they may be missing, in a warning.

    Args:
        positions: what `source_positions` returned.
        reinforced: the rows it was asked about.
        config: contents of `reinforcement.json`.
        allow_missing: go on if at least one image is there.

    Raises:
        ValueError: if images are missing, with how many, which, and what to do.
    """
    missing = np.flatnonzero(positions < 0)
    if missing.size == 0:
        return
    hashes, rows = column_reader(reinforced, schema.IMAGE_HASH), _rows(reinforced)
    named = ", ".join(f"row {rows[place]} (hash {hashes(place)})" for place in missing[:_NAMED].tolist())
    named += ", ..." if missing.size > _NAMED else ""
    total, lost, rest = (f"{count:,}" for count in (len(positions), missing.size, len(positions) - missing.size))
    if allow_missing and rest != "0":
        mixed = "; what is mixed with these is replaced" if config.policy.mix_operations else ""
        verb = "is" if lost == "1" else "are"
        logger.warning("Training on %s of %s images; %s %s missing: %s%s.", rest, total, lost, verb, named, mixed)
        return
    record = config.source
    recorded = f"{record.name or 'the dataset that was reinforced'}, split {record.split!r}"
    revision = f", revision {record.revision!r}" if record.revision else ""
    others = f", or train on the other {rest} with allow_missing=True (--allow_missing True)" if rest != "0" else ""
    raise ValueError(
        f"The source holds {rest} of the {total} images that were reinforced; {lost} are missing: {named}. Use "
        f"{recorded}{revision}{others}."
    )


def _rows(reinforced: Dataset | ParquetRows) -> NDArray[np.int64]:
    rows: NDArray[np.int64] = column_values(reinforced, schema.SOURCE_ROW).to_numpy().astype(np.int64, copy=False)
    return rows


def _hashes(reinforced: Dataset) -> NDArray[np.uint64]:
    column = column_values(reinforced, schema.IMAGE_HASH)
    texts = (column.slice(start, _TEXTS).to_pylist() for start in range(0, len(column), _TEXTS))
    try:
        binary = b"".join(bytes.fromhex("".join(part)) for part in texts)
    except ValueError as error:
        raise ValueError(
            "The reinforced dataset has an image_hash that is none, so a shard is damaged; "
            "recipes/inspect_dataset.py --verify True names it."
        ) from error
    return np.frombuffer(binary, ">u8").astype("u8")


def _probes(rows: NDArray[np.int64], reference_rows: Sequence[int]) -> NDArray[np.int64]:
    """Positions to compare first: the reference rows, and rows spread evenly from the first to the last."""
    if rows.size == 0:
        return np.empty(0, dtype=np.int64)
    spread = np.linspace(0, rows.size - 1, min(_PROBES, rows.size)).round().astype(np.int64)
    return np.union1d(np.argsort(rows)[spread], np.flatnonzero(np.isin(rows, reference_rows)))


_Found: TypeAlias = tuple[NDArray[np.uint64], NDArray[np.bool_]]
"""Hashes of images, and whether each could be read."""


def _agree(found: _Found, expected: NDArray[np.uint64]) -> bool:
    return bool((found[1] & (found[0] == expected)).all())


def _hash(source: ImageSource, rows: NDArray[np.int64]) -> _Found:
    hashes, readable = np.zeros(len(rows), dtype=np.uint64), np.ones(len(rows), dtype=bool)
    for place, row in enumerate(rows.tolist()):
        try:
            hashes[place] = int(images.image_hash(source.encoded(row)), 16)
        except ImageError:
            readable[place] = False
    return hashes, readable


def _hash_many(source: ImageSource, rows: NDArray[np.int64]) -> _Found:
    """As `_hash`, in several threads and in the order in which the images are stored."""
    size = len(rows)
    order = np.argsort(source.stored_rows(rows), kind="stable")
    chunks = [order[start : start + _CHUNK] for start in range(0, size, _CHUNK)]
    hashes, readable = np.empty(size, dtype=np.uint64), np.empty(size, dtype=bool)
    with (
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
        tqdm(total=size, desc="Finding the images by their hashes", unit="image", unit_scale=True) as progress,
    ):
        for chunk, found in zip(chunks, pool.map(lambda chunk: _hash(source, rows[chunk]), chunks), strict=True):
            hashes[chunk], readable[chunk] = found
            progress.update(len(chunk))
    return hashes, readable


def _lookup(
    hashes: NDArray[np.uint64],
    rows: NDArray[np.int64],
    source_hashes: NDArray[np.uint64],
    source_rows: NDArray[np.int64],
) -> NDArray[np.int64]:
    """For each hash, the k-th time it is asked for in the order of `rows`, the k-th source row with it; -1 without."""
    order = np.argsort(source_hashes, kind="stable")
    asked = np.lexsort((rows, hashes))
    known, wanted = source_hashes[order], hashes[asked]  # both sorted, so that one search runs along the other
    first, last = np.searchsorted(known, wanted), np.searchsorted(known, wanted, side="right") - 1
    rank = np.arange(len(wanted)) - np.searchsorted(wanted, wanted)
    found = last >= first
    positions = np.full(len(hashes), -1, dtype=np.int64)
    positions[asked[found]] = source_rows[order[np.minimum(first + rank, last)[found]]]
    return positions
