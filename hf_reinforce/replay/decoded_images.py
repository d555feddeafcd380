"""Decoded images in shared memory: each is decoded once for all dataloader workers and epochs."""

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

_SHARED = Path("/dev/shm")


class DecodedImages:
    """The decoded images of a dataset, of any sizes, by their positions.

    Args:
        count: number of images.
        size: returns height and width of the image at a position, in pixels; called before anything is decoded.
        decode: returns the image at a position, uint8 [3, H, W]; called once for each.

    Raises:
        ValueError: if the memory does not suffice for 3 bytes a pixel in each process of this machine.
    """

    def __init__(self, count: int, size: Callable[[int], tuple[int, int]], decode: Callable[[int], Tensor]) -> None:
        # One after the other: a dataset whose source was reordered finds its images once, before threads decode them.
        headers = tqdm(range(count), desc="Reading the sizes of the images", unit="image", leave=False)
        self._sizes = np.array([size(position) for position in headers], dtype=np.int64).reshape(-1, 2)
        self._starts = np.append(0, np.cumsum(3 * self._sizes.prod(1)))
        _check_memory(int(self._starts[-1]))
        pixels = torch.empty(int(self._starts[-1]), dtype=torch.uint8)
        self._pixels: Tensor = pixels.share_memory_()  # type: ignore[no-untyped-call]
        logger.info("Decoding %s images into memory, %s MB.", f"{count:,}", f"{self._starts[-1] / 1e6:,.0f}")

        def fill(position: int) -> None:
            self[position].copy_(decode(position))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in tqdm(pool.map(fill, range(count)), total=count, desc="Decoding the images", unit="image"):
                pass

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        height, width = self._sizes[position].tolist()
        return height, width

    def __getitem__(self, position: int) -> Tensor:
        """An image, uint8 [3, H, W], in channels-last memory; not to be changed."""
        start, stop = self._starts[position : position + 2].tolist()
        return self._pixels[start:stop].view(*self._sizes[position].tolist(), 3).permute(2, 0, 1)


def _check_memory(needed: int) -> None:
    """Refuses what does not fit into the memory that is free, shared by the processes of this machine."""
    free = psutil.virtual_memory().available
    if _SHARED.exists():
        free = min(free, shutil.disk_usage(_SHARED).free)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if needed * processes > free:
        raise ValueError(
            f"The decoded images take {needed:,} bytes in each of {processes} processes, and {free:,} bytes of shared "
            "memory are free; leave out cache_images (--cache_images False)."
        )
