"""Joining a reinforced data set as large as ImageNet with images in another order, by their hashes."""

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets import Dataset, disable_progress_bars

from benchmarks.measure import Row, Settings, in_own_process
from benchmarks.opening import simulate, status
from hf_reinforce import load_reinforced


def joining(settings: Settings) -> list[Row]:
    """What `load_reinforced` of 1.28 M simulated rows takes more, in a fresh process, if the source is shuffled.

    All images are then hashed and looked up; those here have eight bytes, so that reading them costs nothing. Counted
    is anonymous memory at its highest.
    """
    rows = settings.pick(1_281_167, 300)
    folder = settings.cache / f"opening-{rows}"
    if not (folder / "rrc" / "reinforcement.json").exists():
        simulate(folder, rows)
    runs: dict[str, list[tuple[float, float]]] = {"in order": [], "shuffled": []}
    for _ in range(settings.pick(3, 1)):
        for order, measured in runs.items():
            with in_own_process(settings, None, _opening, folder, order == "shuffled") as measure:
                measured.append(measure())
    name, rows_of = f"joining {rows:,} rows by hash", []
    for column, (against, target, unit) in enumerate((("the clock", 10, "s"), ("memory", 300, "MB"))):
        medians = {
            f"{order}, {unit}": statistics.median(run[column] for run in measured) for order, measured in runs.items()
        }
        in_order, shuffled = medians.values()
        added = max(shuffled - in_order, 0.0)
        rows_of.append(Row(name, against, added, target, medians, at_most=True, unit=unit))
    return rows_of


def _opening(folder: Path, shuffled: bool) -> Callable[[], tuple[float, float]]:
    source = Dataset.from_file(str(folder / "source.arrow"))
    if shuffled:
        source = source.select(np.random.default_rng(0).permutation(len(source)))
    disable_progress_bars()

    def measure() -> tuple[float, float]:
        before, start = status("RssAnon"), time.perf_counter()
        with _Highest() as memory:
            load_reinforced(str(folder), source=source)
        return time.perf_counter() - start, max(memory.highest - before, 0.0)

    return measure


class _Highest:
    """The most anonymous memory of this process in MB while the context lasts, looked at every 5 ms."""

    def __init__(self) -> None:
        self.highest = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.highest = max(self.highest, status("RssAnon"))

    def __enter__(self) -> "_Highest":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.highest = max(self.highest, status("RssAnon"))
