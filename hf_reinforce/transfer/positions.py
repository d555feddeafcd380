"""Training samples whose order and augmentation depend on (seed, epoch, row) alone, so that a run can be resumed."""

from collections.abc import Iterator, Sized

import numpy as np
import torch
from numpy.typing import NDArray


class PositionSampler(torch.utils.data.Sampler[int]):
    """Shuffles every epoch; index `epoch * rows + row` stands for a row in an epoch.

    Args:
        dataset: what is sampled.
        seed: of the order.
    """

    def __init__(self, dataset: Sized, seed: int) -> None:
        self.size, self.seed, self.epoch = len(dataset), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that of epoch `epoch`, counted from 0."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        order: NDArray[np.int64] = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch])).permutation(
            self.size
        )
        yield from (self.epoch * self.size + order).tolist()


def generator_of(seed: int, index: int) -> np.random.Generator:
    """The random numbers of one sample, which differ from those of every order."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, 1]))
