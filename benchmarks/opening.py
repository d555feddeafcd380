"""Opening reinforced datasets as large as ImageNet-1k and ImageNet-21k, and the order of an epoch."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Image, disable_progress_bars
from datasets.arrow_writer import ArrowWriter
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.measure import Row, Settings, in_own_process
from benchmarks.records import TARGET, made_up_config, made_up_targets, reinforced_table
from hf_reinforce import images, load_policy, load_reinforced, schema
from hf_reinforce.replay.sampler import EpochSampler
from hf_reinforce.store.shards import shard_name, write_shard

ROWS = 1_281_167


def opening(settings: Settings) -> list[Row]:
    """`load_reinforced` in a fresh process, then the order of an epoch and records at random, of simulated rows.

    Records at random are the first 10,000 of a process, and as many when all chunks of the files have been read from.

    Whatever the first opening makes and keeps on the disk is there already. Counted is the anonymous memory that
    is added to what the imported libraries take; pages of mapped files can be taken back at any time. The larger size
    has ImageNet-21k's rows in 2,000 shards, one reinforcement each. It shows what depends on the number of rows, and
    not what reading costs from files that do not fit into memory.
    """
    found = []
    for rows, folder in simulated(settings):
        _open(folder)
        medians = _medians(settings, _opening, folder)
        size = max(rows / ROWS, 1)  # targets grow with the rows, but for that of a record
        for name, against, key, target, unit in (
            ("opening", "the clock", "seconds", 5 * size, "s"),
            ("opening", "memory", "MB added", 500 * size, "MB"),
            ("the order of an epoch of", "the clock", "order, seconds", 2 * size, "s"),
            ("the order of an epoch of", "memory", "order, MB added", 250 * size, "MB"),
            ("a record at random of", "the clock", "us, record", 15, "us"),
            ("a record at random, all chunks open, of", "the clock", "us, record, open", 15, "us"),
        ):
            name = f"{name} {rows:,} rows"
            found.append(Row(name, against, medians[key], target, {key: medians[key]}, at_most=True, unit=unit))
    return found


def joining(settings: Settings) -> list[Row]:
    """What `load_reinforced` of simulated rows takes more, in a fresh process, if the source is shuffled.

    All images are then hashed and looked up; those here have eight bytes, so that reading them costs nothing. Counted
    is anonymous memory at its highest.
    """
    found = []
    for rows, folder in simulated(settings):
        orders = {
            order: _medians(settings, _joining, folder, order == "shuffled") for order in ("in order", "shuffled")
        }
        for unit, against, target in (("s", "the clock", 10), ("MB", "memory", 300)):
            medians = {f"{order}, {unit}": each[unit] for order, each in orders.items()}
            added = max(orders["shuffled"][unit] - orders["in order"][unit], 0.0)
            size, name = max(rows / ROWS, 1), f"joining {rows:,} rows by hash"
            found.append(Row(name, against, added, target * size, medians, at_most=True, unit=unit))
    return found


def _medians(settings: Settings, setup: Any, *arguments: Any) -> dict[str, float]:
    runs = []
    for _ in range(settings.pick(3, 1)):
        with in_own_process(settings, None, setup, *arguments) as measure:
            runs.append(measure())
    return {name: float(np.median([run[name] for run in runs])) for name in runs[0]}


def _joining(folder: Path, shuffled: bool) -> Callable[[], dict[str, float]]:
    source = Dataset.from_file(str(folder / "source.arrow"))
    if shuffled:
        source = source.select(np.random.default_rng(0).permutation(len(source)))
    disable_progress_bars()

    def measure() -> dict[str, float]:
        before, start = status("RssAnon"), time.perf_counter()
        with highest() as memory:
            load_reinforced(str(folder), source=source)
        return {"s": time.perf_counter() - start, "MB": max(max(memory) - before, 0.0)}

    return measure


def simulated(settings: Settings) -> Iterator[tuple[int, Path]]:
    """Numbers of rows, and folders with as many of them."""
    for rows, shards, num_samples in settings.pick(((ROWS, 79, 2), (14_197_122, 2000, 1)), ((300, 1, 2), (900, 9, 1))):
        folder = settings.cache / f"opening-{rows}"
        if not (folder / "rrc" / "reinforcement.json").exists():
            simulate(folder, rows, -(-rows // shards), num_samples)
        yield rows, folder


def status(field: str) -> float:
    """Memory of this process in MB, as Linux counts it: `RssAnon`, or `VmHWM`, the most that was ever resident."""
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024 / 1e6


def _open(folder: Path) -> Any:
    return load_reinforced(str(folder), source=Dataset.from_file(str(folder / "source.arrow")))


@contextmanager
def highest() -> Iterator[list[float]]:
    """The anonymous memory of this process in MB while the context lasts, looked at every 5 ms."""
    ended, seen = threading.Event(), [status("RssAnon")]

    def watch() -> None:
        while not ended.wait(0.005):
            seen.append(status("RssAnon"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
        seen.append(status("RssAnon"))


def _opening(folder: Path) -> Callable[[], dict[str, float]]:
    def measure() -> dict[str, float]:
        before, start = status("RssAnon"), time.perf_counter()
        opened = _open(folder)
        found = {"seconds": time.perf_counter() - start}
        after = status("RssAnon")
        found |= {"MB added": max(after - before, 0.0), "rows": len(opened)}
        start = time.perf_counter()
        with highest() as memory:
            next(iter(EpochSampler(opened)))
        found |= {"order, seconds": time.perf_counter() - start, "order, MB added": max(max(memory) - after, 0.0)}
        rng = np.random.default_rng(0)
        found["us, record"] = _us_a_record(opened, rng.integers(len(opened), size=10_000))
        _us_a_record(opened, np.arange(0, len(opened), 500))  # each chunk is prepared when it is first read
        return found | {"us, record, open": _us_a_record(opened, rng.integers(len(opened), size=10_000))}

    return measure


def _us_a_record(opened: Any, positions: NDArray[np.int64]) -> float:
    start = time.perf_counter()
    for position in positions.tolist():
        opened.params(position, 0)
        opened.target(position, 0)
    return (time.perf_counter() - start) / len(positions) * 1e6


def simulate(folder: Path, rows: int, shard_size: int, num_samples: int) -> None:
    """Valid rows with made-up contents, alike in all shards; an image is eight bytes, and its hash is right."""
    policy, shards, count = load_policy("rrc"), -(-rows // shard_size), shard_size * num_samples
    (folder / "rrc").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    crops, flips = rng.integers(1, 200, (count, 4)).tolist(), (rng.random(count) < 0.5).tolist()
    drawn = [{"crop": dict(zip(schema.BOX, c, strict=True)), "hflip": f} for c, f in zip(crops, flips, strict=True)]
    blank = [""] * shard_size
    made_up = reinforced_table(policy, num_samples, range(shard_size), blank, drawn, made_up_targets(count, 0))
    with ArrowWriter(path=str(folder / "source.arrow"), features=Features({"image": Image()})) as writer:
        for index in tqdm(range(shards), desc=f"simulating {rows:,} rows"):
            numbers = range(index * shard_size, min(rows, (index + 1) * shard_size))
            photos = [number.to_bytes(8, "little") for number in numbers]
            table, hashes = made_up.slice(0, len(photos)), [images.image_hash(photo) for photo in photos]
            for name, values in ((schema.SOURCE_ROW, numbers), (schema.IMAGE_HASH, hashes)):
                table = table.set_column(table.column_names.index(name), table.schema.field(name), pa.array(values))
            write_shard(folder / "rrc" / shard_name("train", index, shards), table, [TARGET])
            writer.write_batch({"image": [{"bytes": photo, "path": None} for photo in photos]})
        writer.finalize()
    made_up_config(policy, num_samples, rows).save(folder / "rrc")
