"""Opening a reinforced data set as large as ImageNet."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image
from datasets.arrow_writer import ArrowWriter
from tqdm import tqdm

from benchmarks.measure import Row, Settings, in_own_process
from benchmarks.records import made_up_config, made_up_targets, reinforced_table
from hf_reinforce import images, load_policy, load_reinforced, schema
from hf_reinforce.ml_dr.records import params_array
from hf_reinforce.storage import shard_name, write_shard


def opening(settings: Settings) -> list[Row]:
    """`load_reinforced` in a fresh process, of 1.28 M rows and their source, both simulated.

    Whatever the first opening makes and keeps on the disk is there already. Counted is the anonymous memory that
    opening adds to what the imported libraries take; pages of mapped files can be taken back at any time.
    """
    rows = settings.pick(1_281_167, 300)
    folder = settings.cache / f"opening-{rows}"
    if not (folder / "rrc" / "reinforcement.json").exists():
        simulate(folder, rows)
    _open(folder)
    runs = []
    for _ in range(settings.pick(3, 1)):
        with in_own_process(settings, None, _opening, folder) as measure:
            runs.append(measure())
    medians = {name: float(np.median([run[name] for run in runs])) for name in runs[0]}
    name = f"opening {rows:,} rows"
    return [
        Row(name, "the clock", medians["seconds"], 5, medians, at_most=True, unit="s"),
        Row(name, "memory", medians["MB added"], 500, medians, at_most=True, unit="MB"),
    ]


def status(field: str) -> float:
    """Memory of this process in MB, as Linux counts it: `RssAnon`, or `VmHWM`, the most that was ever resident."""
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024 / 1e6


def _open(folder: Path) -> Any:
    return load_reinforced(str(folder), source=Dataset.from_file(str(folder / "source.arrow")))


def _opening(folder: Path) -> Callable[[], dict[str, float]]:
    def measure() -> dict[str, float]:
        before, start = status("RssAnon"), time.perf_counter()
        opened = _open(folder)
        seconds = time.perf_counter() - start
        after = status("RssAnon")
        return {"seconds": seconds, "MB added": max(after - before, 0.0), "MB in all": after, "rows": len(opened)}

    return measure


def simulate(folder: Path, rows: int, shard_size: int = 16384, num_samples: int = 2) -> None:
    """Valid rows with made-up contents; an image is eight bytes, and its hash is right."""
    policy, shards = load_policy("rrc"), -(-rows // shard_size)
    (folder / "rrc").mkdir(parents=True, exist_ok=True)
    kind = Features({"params": policy.feature}).arrow_schema.field("params").type
    rng, encoded = np.random.default_rng(0), []
    for index in tqdm(range(shards), desc=f"simulating {rows:,} rows"):
        numbers = range(index * shard_size, min(rows, (index + 1) * shard_size))
        photos = [number.to_bytes(8, "little") for number in numbers]
        count = len(numbers) * num_samples
        columns = {
            schema.CROP: rng.integers(1, 200, (count, 4)),
            f"{schema.CROP}?": np.ones(count, bool),
            schema.HFLIP: rng.random(count) < 0.5,
            f"{schema.HFLIP}?": np.ones(count, bool),
        }
        targets, hashes = made_up_targets(count, index), [images.image_hash(photo) for photo in photos]
        table = reinforced_table(policy, num_samples, numbers, hashes, params_array(columns, kind), targets)
        write_shard(folder / "rrc" / shard_name("train", index, shards), table)
        encoded += photos
    with ArrowWriter(path=str(folder / "source.arrow"), features=Features({"image": Image()})) as writer:
        for start in range(0, rows, shard_size):
            chunk = encoded[start : start + shard_size]
            writer.write_batch({"image": [{"bytes": photo, "path": None} for photo in chunk]})
        writer.finalize()
    made_up_config(policy, num_samples, rows).save(folder / "rrc")
