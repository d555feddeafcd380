"""Who reads which rows of a stream, and in what order: arithmetic on numbers of rows, so nothing has to be read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from hf_reinforce.randomness import PARTNER_BLOCK, hash_uniform

BLOCKS_IN_WINDOW = 8
_SHARD_STREAM = 2


@dataclass(frozen=True)
class Block:
    """Rows of a shard that belong together: those that are mixed with each other are in one block.

    Attributes:
        shard: index of the shard.
        place: number of the first row in the order of the run that reinforced, which counts skipped images too.
        start: number of the first row in the shard.
        stop: number of the row behind the last.
        first: number of the first row that is used; the others are read only as partners.
        last: number of the row behind the last that is used.
    """

    shard: int
    place: int
    start: int
    stop: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """Rows that are used."""
        return self.last - self.first


@dataclass(frozen=True)
class Consumer:
    """A worker of the `DataLoader` of a process, and the batch size of that loader."""

    rank: int = 0
    world_size: int = 1
    batch_size: int = 1
    worker: int = 0
    num_workers: int = 1

    def part(self, num_rows: int) -> tuple[int, int]:
        """First row of its own of an epoch of `num_rows` rows, and the one behind the last; the latter may lie beyond.

        All processes have equally many rows, and the workers of one as equally many batches as can be.
        """
        rows = -(-num_rows // self.world_size)
        batches, more = divmod(-(-rows // self.batch_size), self.num_workers)
        bounds = [batches * worker + min(worker, more) for worker in (self.worker, self.worker + 1)]
        start, stop = (self.rank * rows + min(bound * self.batch_size, rows) for bound in bounds)
        return start, stop


def row_blocks(shard_size: int, num_places: int, skipped: NDArray[np.int64]) -> list[Block]:
    """The blocks of a reinforced data set, in the order of its rows.

    Args:
        shard_size: rows and skipped images of a shard.
        num_places: rows and skipped images of all.
        skipped: int64 [S], places of the skipped images.
    """
    blocks = []
    for shard, first in enumerate(range(0, num_places, shard_size)):
        places = np.append(np.arange(first, min(first + shard_size, num_places), PARTNER_BLOCK), num_places)
        places[-1] = min(first + shard_size, num_places)
        rows = (places - first - np.searchsorted(np.sort(skipped), places)).tolist()
        rows = [row - rows[0] for row in rows]
        for place, start, stop in zip(places.tolist(), rows, rows[1:], strict=False):
            if stop > start:
                blocks.append(Block(shard, place, start, stop, start, stop))
    return blocks


def epoch_blocks(
    blocks: Sequence[Block], seed: int, epoch: int, consumer: Consumer, shards_in_run: int = 1
) -> list[Block]:
    """What one consumer reads in an epoch: its part of all the rows, the shards in an order of the epoch's own.

    Args:
        blocks: all blocks, in the order of their rows.
        seed: training seed.
        epoch: counted from 0.
        consumer: who reads.
        shards_in_run: how many shards stay together in their order, as those whose images are read in one go.
    """
    runs = np.array([block.shard // shards_in_run for block in blocks], dtype=np.int64)
    order = np.argsort(hash_uniform(seed, _SHARD_STREAM, epoch, runs), kind="stable").tolist()
    starts = np.cumsum([0, *(blocks[i].size for i in order)])
    total = int(starts[-1])
    start, stop = consumer.part(total)
    found = []
    while start < stop:
        behind = min(stop, total - start % total + start)  # the parts of the last processes continue at the beginning
        low, high = start % total, start % total + behind - start
        for i in range(int(np.searchsorted(starts, low, side="right")) - 1, int(np.searchsorted(starts, high))):
            block, begin = blocks[order[i]], int(starts[i])
            first, last = max(low - begin, 0), min(high - begin, block.size)
            found.append(replace(block, first=block.first + first, last=block.first + last))
        start = behind
    return found


def windows(blocks: Sequence[Block], runs_at_once: int, shards_in_run: int = 1) -> list[list[Block]]:
    """Blocks that are shuffled together: a few, from as many runs of shards as are read at once.

    Args:
        blocks: in the order of `epoch_blocks`.
        runs_at_once: how many runs take turns.
        shards_in_run: as there.
    """
    runs = [list(run)[::-1] for _, run in groupby(blocks, key=lambda block: block.shard // shards_in_run)][::-1]
    order: list[Block] = []
    while runs:
        for run in runs[: -runs_at_once - 1 : -1]:
            order.append(run.pop())
        runs = [run for run in runs if run]
    return [order[start : start + BLOCKS_IN_WINDOW] for start in range(0, len(order), BLOCKS_IN_WINDOW)]
