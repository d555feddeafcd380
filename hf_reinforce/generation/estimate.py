"""What a run of `reinforce` will cost: a few images are reinforced into a temporary folder, the rest is computed."""

import logging
import math
import os
import tempfile
import time
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset
from numpy.typing import NDArray

from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.generation.reinforce import reinforce
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.sources.image_source import one_split
from hf_reinforce.store.config import check_counts
from hf_reinforce.targets import AnyTeacher

_SECONDS = 15.0  # that the measurement may take, about
_MOST_SAMPLES = 16


class Estimate(NamedTuple):
    """The cost of N reinforcements of each image: seconds on one device like the measured one, and Parquet files."""

    policy: str
    num_images: int
    num_samples: int
    seconds: float
    num_bytes: float
    num_files: int

    def __str__(self) -> str:
        views = self.num_images * self.num_samples
        times = [f"{timedelta(seconds=round(self.seconds / devices))} on {devices}" for devices in (1, 8, 64)]
        return (
            f"{self.num_images:,} images, policy {self.policy}, N = {self.num_samples}: {views:,} views\n"
            f"disk   about {self.num_bytes / 1e6:,.1f} MB: {self.num_files:,} Parquet files, "
            f"{self.num_bytes / views:.0f} bytes a reinforcement; the card and its picture take less than 1 MB more\n"
            f"speed  {views / self.seconds:,.0f} views/s\n"
            f"time   {', '.join(times)} devices like this one, in hours, minutes and seconds\n"
            "These are measured on a few images; other work on the machine changes the time."
        )


def estimate(
    dataset: Dataset,
    teacher: AnyTeacher,
    policy: AugmentationPolicy,
    *,
    num_samples: int,
    shard_size: int = 4096,
    num_images: int | None = None,
    **options: Any,
) -> Estimate:
    """Reinforces up to 64 images with few reinforcements into a temporary folder, and extrapolates to all of them.

    Arguments and errors are those of `reinforce`; `dataset` may be a few rows of a whole that has `num_images`.
    """
    check_counts(num_samples=num_samples, shard_size=shard_size)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("An estimate measures one device; run --estimate True without accelerate launch.")
    dataset = one_split(dataset)
    rows = np.unique(np.linspace(0, max(len(dataset) - 1, 0), PARTNER_BLOCK).astype(int))
    few = dataset.select(rows[: len(dataset)])

    def measure(samples: int) -> NDArray[np.float64]:
        """Seconds, bytes of the rows, and bytes that every file has once: footer and dictionaries."""
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            (shard,) = reinforce(few, teacher, policy, folder, num_samples=samples, **options).glob("*.parquet")
            seconds, footer, size = time.perf_counter() - start, pq.read_metadata(shard), shard.stat().st_size
        columns = map(footer.row_group(0).column, range(footer.row_group(0).num_columns))
        dictionaries = [c.data_page_offset - c.dictionary_page_offset for c in columns if c.has_dictionary_page]
        once = footer.serialized_size + sum(dictionaries)
        return np.array([seconds, size - once, once])

    logging.disable(logging.WARNING)  # what `reinforce` says is about a folder that is gone by then
    try:
        measure(1)  # pays for what libraries do once
        one = measure(1)
        samples = max(2, min(num_samples, _MOST_SAMPLES, int(_SECONDS / one[0])))
        more = np.maximum(measure(samples), one)
    finally:
        logging.disable(logging.NOTSET)
    total = len(dataset) if num_images is None else num_images
    files = math.ceil(total / (-(-shard_size // PARTNER_BLOCK) * PARTNER_BLOCK))
    seconds, stored, _ = (one + (num_samples - 1) * (more - one) / (samples - 1)) * total / len(few)
    return Estimate(policy.name, total, num_samples, float(seconds), float(stored + files * more[2]), files)
