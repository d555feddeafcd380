"""Images that a data set holds more than once, by the hash of their encoded bytes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_EXAMPLES = 100


@dataclass(frozen=True)
class Copies:
    """Rows of the source that hold the same image, with its hash and their labels (-1: none)."""

    image_hash: str
    rows: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Duplicates:
    """Images that are there more than once.

    Attributes:
        images: distinct images with more than one copy.
        rows: rows that hold one of them.
        with_different_labels: those images whose copies have different labels.
        examples: up to 100 of the images, those with different labels first.
    """

    images: int
    rows: int
    with_different_labels: int
    examples: tuple[Copies, ...]


def find_duplicates(
    hashes: NDArray[np.uint64], rows: NDArray[np.int64], labels: NDArray[np.int64], most: int = _EXAMPLES
) -> Duplicates:
    """Finds equal hashes.

    Args:
        hashes: of the images, [N].
        rows: their rows of the source, [N].
        labels: their labels, -1 where there is none, [N].
        most: examples that are kept.
    """
    order = np.lexsort((rows, hashes))
    ordered = hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sizes = np.diff(np.concatenate([starts, [len(ordered)]]))
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    groups = [order[start : start + size] for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]
    differ = [len(np.unique(labels[group])) > 1 for group in groups]
    first = sorted(range(len(groups)), key=lambda i: (not differ[i], rows[groups[i][0]]))[:most]
    return Duplicates(
        images=len(groups),
        rows=int(sizes.sum()),
        with_different_labels=sum(differ),
        examples=tuple(
            Copies(
                f"{int(hashes[groups[i][0]]):016x}",
                tuple(rows[groups[i]].tolist()),
                tuple(labels[groups[i]].tolist()),
            )
            for i in first
        ),
    )
