"""Streaming a reinforced dataset against the loader of local rows, with two workers."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, concatenate_datasets

from benchmarks.loader import BATCH_SIZE, epoch
from benchmarks.measure import Measure, Row, Settings, in_own_process, interleave
from benchmarks.photos import photos_key
from benchmarks.records import TARGET, both_formats
from hf_reinforce import ReinforcementConfig, load_reinforced, schema
from hf_reinforce.replay.sampler import EpochSampler, Readers
from hf_reinforce.store.shards import shard_name, write_shard

POLICY, SHARD_SIZE = "rrc", 256


def streaming(settings: Settings) -> list[Row]:
    """An epoch of remote rows, from a folder and over HTTP on loopback, against one of the same rows, memory-mapped.

    Medians in ms an image. Who serves takes from the same cores.
    """
    photos, folder = streamed(settings)
    dataset = load_reinforced(str(folder / "plus"), source=photos)
    local = epoch(settings, dataset, sampler=EpochSampler(dataset), collate_fn=dataset.collate)
    variants = {"local": local, "folder": stream_epoch(settings, str(folder / "plus"), str(folder / "photos"))}
    for measure in variants.values():
        measure()  # starts the workers, before there are threads that answer requests
    with over_http(settings, folder) as variants["HTTP"]:
        medians = interleave(variants, settings.repetitions)
    return [
        Row(f"streaming from {where}", "local rows", medians["local"] / medians[variant], 0.9, medians)
        for variant, where in (("folder", "a folder"), ("HTTP", "a Hub on loopback"))
    ]


def stream_epoch(settings: Settings, name: str, source: str) -> Measure:
    """Measures an epoch of remote rows, in ms an image; the workers persist."""
    stream = load_reinforced(name, source=source, streaming=True)
    readers = Readers(min(BATCH_SIZE, len(stream)), max(1, settings.workers))
    return epoch(settings, stream, sampler=EpochSampler(stream, readers=readers), collate_fn=stream.collate)


def streamed(settings: Settings) -> tuple[Dataset, Path]:
    """The photos four times, and a folder with them as Parquet files, `photos`, and reinforced in shards, `plus`."""
    num_samples, copies = settings.pick(50, 3), settings.pick(4, 1)
    photos = concatenate_datasets([settings.photos] * copies)
    folder = settings.cache / f"streaming-{len(photos)}x{num_samples}-{photos_key(settings.photos)}"
    shards = folder / "plus" / POLICY
    if not (shards / "reinforcement.json").exists():
        ours, _ = both_formats(settings, POLICY, num_samples)
        (folder / "photos").mkdir(parents=True, exist_ok=True)
        shards.mkdir(parents=True, exist_ok=True)
        rows = pa.concat_tables([pq.read_table(ours / POLICY / shard_name("train", 0, 1))] * copies)
        place = rows.column_names.index(schema.SOURCE_ROW)
        rows = rows.set_column(place, schema.SOURCE_ROW, pa.array(range(len(rows)), pa.int64()))
        starts = range(0, len(rows), SHARD_SIZE)
        for index, start in enumerate(starts):
            table = rows.slice(start, SHARD_SIZE).combine_chunks()
            write_shard(shards / shard_name("train", index, len(starts)), table, [TARGET])
        for copy in range(copies):
            settings.photos.to_parquet(str(folder / "photos" / shard_name("train", copy, copies)))
        config = ReinforcementConfig.load(ours / POLICY)
        replace(config, shard_size=SHARD_SIZE, source=replace(config.source, num_rows=len(rows))).save(shards)
    return photos, folder


@contextmanager
def over_http(settings: Settings, folder: Path) -> Iterator[Any]:
    """The stream of two repositories of a Hub, the stand-in of the tests, in a process whose clients know of it."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from hub_server import TOKEN, HubServer

    sys.path.pop()
    with HubServer() as hub:
        for name in ("photos", "plus"):
            files = [file for file in (folder / name).rglob("*") if file.is_file()]
            contents = {str(file.relative_to(folder / name)): file.read_bytes() for file in files}
            hub.add_repository("dataset", f"me/{name}", contents)
        options = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(settings.cache / "hub")}
        with patch.dict(os.environ, {**options, **online, "HF_HUB_CACHE": str(settings.cache / "hub" / "hub")}):
            # spawned, because the clients read all this when they are imported
            process = in_own_process(
                replace(settings, start_method="spawn"), None, stream_epoch, settings, "me/plus", "me/photos"
            )
            with process as measure:
                yield measure
