"""Joining reinforced datasets as large as ImageNet-1k and -21k with images in another order, by their hashes."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets import Dataset, disable_progress_bars

from benchmarks.measure import Row, Settings, in_own_process
from benchmarks.opening import ROWS, Highest, simulated, status
from hf_reinforce import load_reinforced


def joining(settings: Settings) -> list[Row]:
    """What `load_reinforced` of simulated rows takes more, in a fresh process, if the source is shuffled.

    All images are then hashed and looked up; those here have eight bytes, so that reading them costs nothing. Counted
    is anonymous memory at its highest.
    """
    found = []
    for rows, folder in simulated(settings):
        runs: dict[str, list[tuple[float, float]]] = {"in order": [], "shuffled": []}
        for _ in range(settings.pick(3, 1)):
            for order, measured in runs.items():
                with in_own_process(settings, None, _opening, folder, order == "shuffled") as measure:
                    measured.append(measure())
        size = max(rows / ROWS, 1)  # targets grow with the rows
        for column, (against, target, unit) in enumerate((("the clock", 10, "s"), ("memory", 300, "MB"))):
            medians = {
                f"{order}, {unit}": statistics.median(run[column] for run in measured)
                for order, measured in runs.items()
            }
            in_order, shuffled = medians.values()
            added, name = max(shuffled - in_order, 0.0), f"joining {rows:,} rows by hash"
            found.append(Row(name, against, added, target * size, medians, at_most=True, unit=unit))
    return found


def _opening(folder: Path, shuffled: bool) -> Callable[[], tuple[float, float]]:
    source = Dataset.from_file(str(folder / "source.arrow"))
    if shuffled:
        source = source.select(np.random.default_rng(0).permutation(len(source)))
    disable_progress_bars()

    def measure() -> tuple[float, float]:
        before, start = status("RssAnon"), time.perf_counter()
        with Highest() as memory:
            load_reinforced(str(folder), source=source)
        return time.perf_counter() - start, max(memory.highest - before, 0.0)

    return measure
