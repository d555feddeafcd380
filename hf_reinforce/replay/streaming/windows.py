"""Windows of a stream: some hundred reinforced rows and their images, read in step."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_reinforce import schema
from hf_reinforce.randomness import PARTNER_BLOCK, shuffled_rows
from hf_reinforce.replay.streaming.partition import Block, row_blocks
from hf_reinforce.sources.rows import Cursor, DatasetRows, ParquetRows, Rows, StreamRows, read_footer, repair
from hf_reinforce.store.config import CONFIG_FILE, ReinforcementConfig

logger = logging.getLogger(__name__)

REMEDY = "Or load it without streaming, which finds the images of a reordered or filtered source by their hashes."


@dataclass(frozen=True)
class Cursors:
    """How far the shards that are being read were read, by their index, and the source, by the run of shards."""

    rows: dict[int, Cursor] = field(default_factory=dict)
    images: dict[int, Cursor] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """What was read.

    Attributes:
        table: B rows of shards.
        images: their images, possibly among others; None when they are embedded.
        source_rows: int64 [B], row of `images` (`table` when embedded) with each image, -1 where it is missing.
        used: bool [B], false for rows that are only partners.
    """

    table: pa.Table
    images: pa.Table | None
    source_rows: NDArray[np.int64]
    used: NDArray[np.bool_]


class WindowReader:
    """Reads the rows of a reinforced data set block by block, each with its images.

    Args:
        files: the shards, paths or addresses that fsspec opens, in their order.
        config: contents of `reinforcement.json`.
        source: the images, in the order in which they were reinforced; None when they are embedded.
        max_rows: use the first so many rows; for a policy that mixes, rounded up to whole blocks of partners.
        allow_missing: go on where the source lacks images; a warning says so, once.

    Attributes:
        blocks: the blocks that there are.
        shards_in_run: how many shards should be read one behind the other, because their images are in one row group
            of the source; all of them where the source can only be read forward.

    Raises:
        ValueError: if shards are missing, or images that were reinforced.
    """

    def __init__(
        self,
        files: Sequence[str],
        config: ReinforcementConfig,
        source: Rows | None,
        max_rows: int | None,
        allow_missing: bool,
    ) -> None:
        self.config, self.source, self.allow_missing = config, source, allow_missing
        self._files, self._mixes = list(files), bool(config.policy.mix_operations)
        self._order: NDArray[np.int64] | None = None
        self._warned = False
        skipped = self.places(np.array([item.row for item in config.skipped], dtype=np.int64))
        self.shards_in_run = max(1, -(-self._rows_in_one_go() // config.shard_size))
        self.blocks = row_blocks(config.shard_size, self._num_places(skipped), skipped)
        if max_rows is not None:
            self.blocks = self._first_rows(max_rows)
        self._leave_out_what_the_source_lacks()

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the run that reinforced came across some rows of the source."""
        if not self.config.shuffled:
            return rows
        if self._order is None:
            self._order = np.argsort(shuffled_rows(self.config.seed, self.config.source.num_rows or 0))
        return self._order[rows]

    def _rows_in_one_go(self) -> int:
        if isinstance(self.source, StreamRows):
            return len(self._files) * self.config.shard_size
        return self.source.largest_group if isinstance(self.source, ParquetRows) else 1

    def _num_places(self, skipped: NDArray[np.int64]) -> int:
        size, files, known = self.config.shard_size, self._files, self.config.source.num_rows
        if known is None and files:  # how long a stream was is in its last shard
            before = (len(files) - 1) * size
            with _naming(files[-1]):
                known = before + read_footer(files[-1]).num_rows + int((skipped >= before).sum())
        expected = -(-(known or 0) // size)
        if not files or expected != len(files):
            raise ValueError(
                f"The data set should have {expected} shards, but {len(files)} are there; publish it again, or run "
                "the command that reinforces it again."
            )
        return known or 0

    def _first_rows(self, left: int) -> list[Block]:
        kept = []
        for block in self.blocks:
            if left > 0:
                kept.append(block if self._mixes else replace(block, last=min(block.last, block.first + left)))
            left -= block.size
        return kept

    def _leave_out_what_the_source_lacks(self) -> None:
        if self.source is None or isinstance(self.source, StreamRows) or not self.blocks:
            return
        end, needed = len(self.source), self.blocks[-1].place + self.blocks[-1].size
        if needed > end and not self.allow_missing:
            raise ValueError(f"The source has {end:,} rows, but {needed:,} were reinforced. {self._missing()}")
        if needed > end:
            last = next((block for block in reversed(self.blocks) if block.place < end), None)
            replaced = 0 if last is None else max(0, last.place + last.size - end)
            left_out = sum(block.size for block in self.blocks if block.place >= end)
            total, missing = sum(block.size for block in self.blocks), replaced + left_out
            logger.warning(
                "Training on %s of %s images; %s are missing: the source has only %s rows. In each epoch %s of "
                "them are replaced by rows whose images are there, and %s are left out.",
                *(f"{count:,}" for count in (total - missing, total, missing, end, replaced, left_out)),
            )
        self.blocks = [block for block in self.blocks if block.place < end]

    def _missing(self) -> str:
        record = self.config.source
        revision = f", revision {record.revision!r}" if record.revision else ""
        return (
            f"Use {record.name or 'the data set that was reinforced'}, split {record.split!r}{revision}, or train on "
            f"the others with allow_missing=True (--allow_missing True). {REMEDY}"
        )

    def read_ahead(self, windows: Sequence[Sequence[Block]]) -> Iterator[Window]:
        """Windows of some blocks each; one is read while the one before is used."""
        cursors = Cursors()
        with ThreadPoolExecutor(1) as pool:
            futures = [pool.submit(self.read, blocks, cursors) for blocks in windows[:1]]
            for following in [*windows[1:], None]:
                if futures:
                    window = futures.pop().result()
                    if following is not None:
                        futures.append(pool.submit(self.read, following, cursors))
                    yield window

    def read(self, blocks: Sequence[Block], cursors: Cursors | None = None) -> Window:
        """Reads a window.

        Args:
            blocks: what it consists of.
            cursors: kept from one window to the next.

        Raises:
            ValueError: if a shard is damaged, or an image is missing and may not be.
        """
        cursors = cursors or Cursors()
        for known, in_run in ((cursors.rows, 1), (cursors.images, self.shards_in_run)):
            for key in set(known) - {block.shard // in_run for block in blocks}:
                del known[key]
        parts = []
        for block in blocks:
            with _naming(self._files[block.shard]):
                if block.shard not in cursors.rows:
                    cursors.rows[block.shard] = self._shard(block.shard).cursor()
                table = cursors.rows[block.shard].read(*self._range(block))
            parts.append(self._with_images(block, table, cursors.images))
        table = pa.concat_tables([part.table for part in parts])
        used = np.concatenate([part.used for part in parts])
        if self.source is None:
            return Window(table, None, np.arange(len(table)), used)
        starts = np.cumsum([0, *(len(part.images or ()) for part in parts)])
        rows = [np.where(p.source_rows < 0, -1, p.source_rows + s) for p, s in zip(parts, starts, strict=False)]
        images = [part.images for part in parts if part.images]
        return Window(table, pa.concat_tables(images) if images else None, np.concatenate(rows), used)

    def _shard(self, shard: int) -> ParquetRows:
        record = self.config.source
        columns = [*schema.REINFORCEMENT_COLUMNS, *(target.column for target in self.config.targets)]
        columns += filter(None, [record.label_column])
        if self.config.embed_images:
            columns.append(record.image_column)
        return ParquetRows([self._files[shard]], columns)

    def _range(self, block: Block) -> tuple[int, int]:
        # Partners are needed too, other rows that are not used are not.
        return (block.start, block.stop) if self._mixes else (block.first, block.last)

    def _with_images(self, block: Block, table: pa.Table, cursors: dict[int, Cursor]) -> Window:
        start, stop = self._range(block)
        used = (np.arange(start, stop) >= block.first) & (np.arange(start, stop) < block.last)
        rows = np.array(table.column(schema.SOURCE_ROW) if len(table) else [], dtype=np.int64)
        places = self.places(rows) - block.place
        if len(rows) != stop - start or places.min() < 0 or places.max() >= PARTNER_BLOCK:
            raise ValueError(
                f"{self._files[block.shard]} does not hold the rows that it should by {CONFIG_FILE}, from "
                f"{block.place:,} on; publish both again, or load the data set without streaming."
            )
        if self.source is None:
            return Window(table, None, rows, used)
        run = block.shard // self.shards_in_run
        if run not in cursors:
            cursors[run] = self.source.cursor()
        images = cursors[run].read(int(rows[0]), int(rows[-1]) + 1)
        there = np.zeros(len(images) + 1, dtype=bool)  # the last one is for what lies behind the end
        if len(images):
            there[:-1] = images.column(self.config.source.image_column).is_valid()
        positions = np.minimum(rows - rows[0], len(images))
        missing = np.flatnonzero(~there[positions])
        if missing.size:
            self._report(int(rows[missing[0]]), str(table.column(schema.IMAGE_HASH)[int(missing[0])]))
        return Window(table, images, np.where(there[positions], positions, -1), used)

    def _report(self, row: int, image_hash: str) -> None:
        lost = f"row {row} (hash {image_hash})"
        if not self.allow_missing:
            raise ValueError(f"The source has no image for {lost}. {self._missing()}")
        counted = isinstance(self.source, (ParquetRows, DatasetRows)) and row >= len(self.source)
        if not self._warned and not counted:
            self._warned = True
            logger.warning(
                "The source has no image for %s. In its place, and that of others that are missing or mixed with "
                "such, come rows whose images are there; how many is not known before they are read.",
                lost,
            )


@contextmanager
def _naming(file: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"{file} cannot be read, probably because it was cut short: {reason}. {repair(file)}"
        ) from error
