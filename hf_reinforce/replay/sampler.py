"""The order of an epoch: any order of the rows, or one that keeps each reader near where it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from hf_reinforce.replay.views import AugmentedDataset, Blocks

RUNS_AT_ONCE = 8
BLOCKS_IN_WINDOW = 8


@dataclass(frozen=True)
class Readers:
    """Who reads the batches of an epoch.

    Batch `b` goes to rank `b % ranks`, and there to dataloader worker `b // ranks % workers`, as accelerate and
    `DataLoader` deal batches out.

    Args:
        batch_size: samples of a batch of one rank.
        workers: dataloader workers of a rank; 1 for none.
        ranks: processes.

    Example:
        from hf_reinforce import Readers

        readers = Readers(batch_size=128, workers=4, ranks=8)
    """

    batch_size: int = 1
    workers: int = 1
    ranks: int = 1


class EpochSampler(torch.utils.data.Sampler[int]):
    """Shuffles every epoch, keyed by (seed, epoch); an image and its mixing partner come next to each other.

    A dataset with `blocks`, whose rows are remote, is shuffled less: every dataloader worker of every rank has a run
    of files of its own, reads up to 8 of them in turn, block by block, and shuffles the rows of 8 blocks.

    With repeated augmentation (Hoffer et al., 2020) an epoch visits one of `repeats` parts of the images, each image
    `repeats` times in a row, under as many augmentations, and decodes it once. Over `repeats` epochs the samples are
    those of plain epochs in another order. What does not divide into equal parts is left out, by turns.

    Args:
        dataset: what is sampled.
        seed: seed of the order.
        repeats: augmentations of an image in a row, >= 1; more than 1 only for policies that do not mix.
        readers: who reads; counts for datasets with `blocks` alone.

    Raises:
        ValueError: if `repeats` does not fit the dataset.

    Example:
        from torch.utils.data import DataLoader
        from hf_reinforce import EpochSampler, load_reinforced

        dataset = load_reinforced("outputs/cifar100-plus", "small_randaug")
        sampler = EpochSampler(dataset, seed=0)
        sampler.set_epoch(1)
        for batch in DataLoader(dataset, batch_size=8, sampler=sampler, collate_fn=dataset.collate):
            ...
    """

    def __init__(
        self, dataset: AugmentedDataset, seed: int = 0, repeats: int = 1, readers: Readers | None = None
    ) -> None:
        if not 1 <= repeats <= max(1, len(dataset)):
            raise ValueError(f"repeats must lie between 1 and the {len(dataset)} images, not {repeats}.")
        if repeats > 1 and dataset.policy.mix_operations:
            raise ValueError(
                f"Policy {dataset.policy.name!r} mixes images, so each is followed by its partner; repeated "
                "augmentation works with policies that do not mix, such as 'rrc' and 'randaug'."
            )
        if repeats > 1 and dataset.blocks is not None:
            raise ValueError("Repeated augmentation needs rows in any order; leave out streaming (--streaming False).")
        self.dataset, self.seed, self.repeats, self.epoch = dataset, seed, repeats, 0
        self.readers = readers or Readers()

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that of epoch `epoch`, counted from 0."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.dataset) // self.repeats * self.repeats

    def __iter__(self) -> Iterator[int]:
        size, turn = len(self.dataset), self.epoch % self.repeats
        first, part = self.epoch - turn, size // self.repeats  # epochs from `first` on visit a part each
        rng = np.random.Generator(np.random.Philox(key=[self.seed, first]))
        if self.dataset.blocks is not None:
            positions = self._local(self.dataset.blocks, rng)
        else:
            positions = rng.permutation(size)
            if self.repeats == 1:
                positions = _pairs_together(positions, self.dataset.partners(self.epoch))
        visited = positions[turn * part : (turn + 1) * part, None]
        return map(int, (visited + (first + np.arange(self.repeats)) * size).flatten())

    def _local(self, blocks: Blocks, rng: np.random.Generator) -> NDArray[np.int64]:
        """An order in which every reader has a part of its own, dealt out to the batches that it reads."""
        partners, batch = self.dataset.partners(self.epoch), self.readers.batch_size
        total, count = int(blocks.starts[-1]), self.readers.ranks * self.readers.workers
        numbers, ranks = np.arange(-(-total // batch)), self.readers.ranks
        readers = numbers % ranks * self.readers.workers + numbers // ranks % self.readers.workers
        sizes = np.bincount(readers, minlength=count) * batch
        sizes[readers[-1:]] -= len(numbers) * batch - total  # the last batch of all may have fewer
        ends = np.cumsum(sizes)
        runs, run_of = np.unique(blocks.runs, return_inverse=True)
        order = np.argsort(rng.permutation(len(runs))[run_of], kind="stable")  # blocks, by runs in random order
        parts = [
            _shuffled_in_windows(_in_turns(order, blocks, low, high), rng, partners)
            for low, high in pairwise([0, *ends.tolist()])
        ]
        firsts = (ends - sizes)[readers] + numbers // count * batch
        found: NDArray[np.int64] = np.concatenate(parts)[(firsts[:, None] + np.arange(batch)).reshape(-1)[:total]]
        return found


def _pairs_together(place: NDArray[np.int64], partners: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order of items that are to go to some places, changed so that partners (-1: none) are next to each other.

    Every pair begins at an even place, if the number of items is even.
    """
    size = len(place)
    paired = (partners >= 0) & (partners != np.arange(size))
    pair = np.minimum(place, place[partners])
    alone = np.flatnonzero(~paired)  # two items without a partner count as a pair
    alone = alone[np.argsort(place[alone])]
    pair[alone] = place[alone[np.arange(len(alone)) // 2 * 2]]
    if len(alone) % 2:
        pair[alone[-1]] = size
    return np.lexsort((place, pair))


def _in_turns(order: NDArray[np.int64], blocks: Blocks, low: int, high: int) -> list[NDArray[np.int64]]:
    """A reader's part, rows `low` to `high - 1` of the ordered blocks: blocks, from up to 8 runs in turn."""
    sizes = np.diff(blocks.starts)[order]
    ends = np.cumsum(sizes)
    runs: dict[int, list[NDArray[np.int64]]] = {}
    for index in range(int(np.searchsorted(ends, low, side="right")), int(np.searchsorted(ends - sizes, high))):
        block, begins = order[index], int(ends[index] - sizes[index])
        rows = np.arange(max(low - begins, 0), min(high - begins, int(sizes[index])))
        runs.setdefault(int(blocks.runs[block]), []).append(blocks.starts[block] + rows)
    waiting, found = [run[::-1] for run in runs.values()][::-1], []
    while waiting:
        for run in waiting[: -RUNS_AT_ONCE - 1 : -1]:
            found.append(run.pop())
        waiting = [run for run in waiting if run]
    return found


def _shuffled_in_windows(
    blocks: list[NDArray[np.int64]], rng: np.random.Generator, partners: NDArray[np.int64]
) -> NDArray[np.int64]:
    found = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(blocks), BLOCKS_IN_WINDOW):
        rows = np.sort(np.concatenate(blocks[start : start + BLOCKS_IN_WINDOW]))
        place = np.minimum(np.searchsorted(rows, partners[rows]), len(rows) - 1)
        own = np.where(rows[place] == partners[rows], place, -1)  # a reader's part may begin between partners
        found.append(rows[_pairs_together(rng.permutation(len(rows)), own)])
    return np.concatenate(found)
