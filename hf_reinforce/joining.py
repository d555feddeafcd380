"""Which row of a source holds the image of each reinforced row: by row where the hashes agree, else by hash."""

import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_reinforce import images, schema
from hf_reinforce.config import ReinforcementConfig
from hf_reinforce.images import ImageError
from hf_reinforce.sources import ImageSource

logger = logging.getLogger(__name__)

_PROBES = 64
_CHUNK = 256
_NAMED = 8


def source_positions(
    reinforced: Dataset, source: Dataset, config: ReinforcementConfig, every: bool = False
) -> NDArray[np.int64]:
    """Where the source holds the image of each reinforced row.

    A few rows are compared first. If all of them hold the image that was reinforced, the source is in its original
    order; every later read checks its own image. Otherwise the source was reordered, filtered or sharded anew, and
    `positions_by_hash` looks for them.

    Args:
        reinforced: rows of a reinforced data set.
        source: the data set with the images.
        config: contents of `reinforcement.json`.
        every: compare every row, so that no missing image is overlooked.

    Returns:
        int64 [len(reinforced)], rows of the source; -1 where the source does not hold the image. Where it holds
        several copies of an image they are taken in order.
    """
    image_source = ImageSource(source, config.source.image_column)
    rows, hashes = _rows_and_hashes(reinforced)
    probes = _probes(rows, [view.row for view in config.pixels.reference_views])
    probed_rows = rows[probes]
    in_place = probed_rows.size == 0 or (
        probed_rows.max() < len(source) and _hash(image_source, probed_rows.tolist()) == hashes[probes].tolist()
    )
    if in_place and every:
        found, readable = _hash_many(image_source, rows)
        in_place = bool((readable & (found == hashes)).all())
    return rows if in_place else _search(image_source, rows, hashes)


def positions_by_hash(reinforced: Dataset, source: Dataset, config: ReinforcementConfig) -> NDArray[np.int64]:
    """As `source_positions`, of a source that is known to differ: all its images are hashed once."""
    return _search(ImageSource(source, config.source.image_column), *_rows_and_hashes(reinforced))


def _search(source: ImageSource, rows: NDArray[np.int64], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    if not len(source):
        return np.full(len(rows), -1)
    source_hashes, readable = _hash_many(source, np.arange(len(source)))
    positions = _lookup(hashes, rows, source_hashes[readable], np.flatnonzero(readable))
    within = np.minimum(rows, len(source) - 1)
    in_place = (rows == within) & readable[within] & (source_hashes[within] == hashes)
    return np.where(in_place, rows, positions)


def check_missing(
    positions: NDArray[np.int64], reinforced: Dataset, config: ReinforcementConfig, allow_missing: bool
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
    named = ", ".join(
        f"row {item[schema.SOURCE_ROW]} (hash {item[schema.IMAGE_HASH]})"
        for item in reinforced.select_columns([schema.SOURCE_ROW, schema.IMAGE_HASH]).select(missing[:_NAMED].tolist())
    )
    named += ", ..." if missing.size > _NAMED else ""
    rest = len(positions) - missing.size
    if allow_missing and rest:
        logger.warning(
            "Training on %s of %s images; %s %s missing: %s%s.",
            f"{rest:,}",
            f"{len(positions):,}",
            f"{missing.size:,}",
            "is" if missing.size == 1 else "are",
            named,
            _without_partner(positions, reinforced) if config.policy.mix_operations else "",
        )
        return
    record = config.source
    recorded = f"{record.name or 'the data set that was reinforced'}, split {record.split!r}"
    revision = f", revision {record.revision!r}" if record.revision else ""
    raise ValueError(
        f"The source holds {rest:,} of the {len(positions):,} images that were reinforced; {missing.size:,} are "
        f"missing: {named}. Use {recorded}{revision}"
        + (f", or train on the other {rest:,} with allow_missing=True." if rest else ".")
    )


def _without_partner(positions: NDArray[np.int64], reinforced: Dataset) -> str:
    """How many reinforcements of the images that are there are mixed with one that is not."""
    rows, _ = _rows_and_hashes(reinforced)
    there = np.zeros(rows.max() + 2, dtype=bool)  # the last one is for partners that are in no row
    there[rows[positions >= 0]] = True
    stored = reinforced.select(np.flatnonzero(positions >= 0).tolist()).select_columns([schema.AUGMENTATION_PARAMS])
    count = lost = 0
    for batch in stored.with_format("arrow").iter(_CHUNK):
        params = pc.list_flatten(batch.column(0))
        partners = pc.struct_field(params, schema.PARTNER_ROW).drop_null().to_numpy()
        count += len(params)
        lost += int((~there[np.minimum(partners, len(there) - 1)]).sum())
    return f"; {lost:,} of the {count:,} reinforcements of the others are mixed with these, and replaced by others"


def _rows_and_hashes(reinforced: Dataset) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    table = reinforced.select_columns([schema.SOURCE_ROW, schema.IMAGE_HASH]).with_format("arrow")[:]
    rows: NDArray[np.int64] = table.column(schema.SOURCE_ROW).to_numpy().astype(np.int64)
    hashes = np.frombuffer(bytes.fromhex("".join(table.column(schema.IMAGE_HASH).to_pylist())), ">u8").astype("u8")
    return rows, hashes


def _probes(rows: NDArray[np.int64], reference_rows: Sequence[int]) -> NDArray[np.int64]:
    """Positions to compare first: the reference rows, and rows spread evenly from the first to the last."""
    if rows.size == 0:
        return np.empty(0, dtype=np.int64)
    spread = np.linspace(0, rows.size - 1, min(_PROBES, rows.size)).round().astype(np.int64)
    return np.union1d(np.argsort(rows)[spread], np.flatnonzero(np.isin(rows, reference_rows)))


def _hash(source: ImageSource, rows: Iterable[int]) -> list[int | None]:
    """Hashes of some images, None for one that cannot be read."""
    found: list[int | None] = []
    for row in rows:
        try:
            found.append(int(images.image_hash(source.encoded(row)), 16))
        except ImageError:
            found.append(None)
    return found


def _hash_many(source: ImageSource, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Hashes of many images, and whether each could be read."""
    size = len(rows)
    chunks = [rows[start : start + _CHUNK].tolist() for start in range(0, size, _CHUNK)]
    found: list[list[int | None]] = []
    with (
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
        tqdm(total=size, desc="Finding the images by their hashes", unit="image", unit_scale=True) as progress,
    ):
        for hashes in pool.map(lambda chunk: _hash(source, chunk), chunks):
            found.append(hashes)
            progress.update(len(hashes))
    flat = list(chain.from_iterable(found))
    readable = np.array([value is not None for value in flat], dtype=bool)
    return np.array([value or 0 for value in flat], dtype=np.uint64), readable


def _lookup(
    hashes: NDArray[np.uint64],
    rows: NDArray[np.int64],
    source_hashes: NDArray[np.uint64],
    source_rows: NDArray[np.int64],
) -> NDArray[np.int64]:
    """For each hash, the k-th time it is asked for in the order of `rows`, the k-th source row with it; -1 without."""
    order = np.argsort(source_hashes, kind="stable")
    known = source_hashes[order]
    first, last = np.searchsorted(known, hashes), np.searchsorted(known, hashes, side="right") - 1
    asked = np.lexsort((rows, hashes))
    repeats = hashes[asked]
    rank = np.empty(len(hashes), dtype=np.int64)
    rank[asked] = np.arange(len(hashes)) - np.searchsorted(repeats, repeats)
    found = last >= first
    positions = np.full(len(hashes), -1, dtype=np.int64)
    positions[found] = source_rows[order[np.minimum(first + rank, last)[found]]]
    return positions
