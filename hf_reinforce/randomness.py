"""Randomness as a function of position.

Every random choice is keyed by what it is for (seed, row, reinforcement, epoch) and never by when it is made, so
workers, shards, processes and resumption change nothing. Two sources are used: a Philox counter-based generator
(Salmon et al., SC 2011) for augmentation parameters, and the splitmix64 mixing function (Steele et al., OOPSLA 2014),
vectorised over rows, for the cheap choices of a training epoch.
"""

import numpy as np
from numpy.typing import NDArray

PARTNER_BLOCK = 64
"""Rows among which mixing partners are drawn, and that a teacher sees together: a constant of schema v1."""

_PARAMS, _PARTNERS, _SHUFFLE = range(3)
_MASK = 2**64 - 1


def _philox(seed: int, stream: int, first: int, second: int) -> np.random.Generator:
    key = np.array([seed & _MASK, stream], dtype=np.uint64)
    counter = np.array([0, 0, first, second], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def params_generator(seed: int, row: int, slot: int) -> np.random.Generator:
    """Generator for the augmentation parameters of reinforcement `slot` of source row `row`."""
    return _philox(seed, _PARAMS, row, slot)


def partner_positions(seed: int, block: int, slot: int, size: int) -> NDArray[np.int64]:
    """Position of each row's mixing partner inside a block of `size` rows, int64 [size]: `result[result[i]] == i`.

    Every reinforcement, `slot`, has a pairing of its own. With an odd size one row is its own partner.
    """
    order = _philox(seed, _PARTNERS, block, slot).permutation(size)
    partners = np.arange(size)
    half = size // 2
    partners[order[:half]], partners[order[half : 2 * half]] = order[half : 2 * half], order[:half]
    return partners


def shuffled_rows(seed: int, num_rows: int) -> NDArray[np.int64]:
    """The order in which a mixing policy walks a dataset, so that sorted datasets mix across classes."""
    return _philox(seed, _SHUFFLE, num_rows, 0).permutation(num_rows)


def _splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def hash_uniform(seed: int, *keys: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """A uniform 64-bit integer for each combination of keys (broadcast together)."""
    state = _splitmix64(np.array([seed & _MASK], dtype=np.uint64))
    for key in keys:
        state = _splitmix64(state ^ np.atleast_1d(np.asarray(key)).astype(np.uint64))
    return state


def select_slots(
    selection: str, seed: int, epoch: NDArray[np.int64], groups: NDArray[np.int64], num_samples: int
) -> NDArray[np.int64]:
    """Which of N reinforcements each row uses in an epoch [B] or [1], int64 [B].

    `"cycle"` walks through all N before any is used twice, from an offset of the group's own; `"random"` draws
    uniformly with replacement, as the paper does. Rows of one group [B] use the same in the same epoch: a group is a
    row for policies that look at one image, and all rows for policies that mix an image and its partner.
    """
    if selection == "cycle":
        offset = hash_uniform(seed, groups) % np.uint64(num_samples)
        return (offset.astype(np.int64) + epoch) % num_samples
    if selection == "random":
        return (hash_uniform(seed, epoch, groups) % np.uint64(num_samples)).astype(np.int64)
    raise ValueError(f"selection must be 'cycle' or 'random', not {selection!r}.")
