"""Streams of reinforced data sets: the samples of the map-style loader, each once, whoever reads and resumes."""

import dataclasses
import functools
import hashlib
import multiprocessing
import os
import re
import subprocess
import sys
from collections import Counter

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Image, IterableDataset, concatenate_datasets, load_dataset
from hub_server import Fault, RequestHandler
from PIL import Image as PIL
from tiny import encode_image, tiny_dataset, tiny_teacher
from torch.utils.data import DataLoader

from hf_reinforce import KDTrainer, KDTrainingArguments, ReinforcementConfig, load_policy, load_reinforced, reinforce
from hf_reinforce.images import decode
from hf_reinforce.replay.dataset import WrongImageError
from hf_reinforce.replay.streaming.loader import BatchNumbers, StreamBatches
from hf_reinforce.replay.streaming.partition import Consumer, epoch_blocks, row_blocks, windows
from hf_reinforce.sources.rows import ParquetRows
from hf_reinforce.store.pixel_contract import PixelMismatchError

ROWS, N, SHARD = 200, 3, 64  # four shards, the last one of 8 rows
BROKEN = (5, 64, 65)


@pytest.fixture(scope="module")
def photos():
    return tiny_dataset(ROWS, (16, 24))


@pytest.fixture(scope="module")
def source(photos, tmp_path_factory):
    """A folder with the images: two files, in row groups that end elsewhere than shards and blocks."""
    folder = tmp_path_factory.mktemp("source") / "photos"
    folder.mkdir()
    for index, rows in enumerate((range(90), range(90, ROWS))):
        photos.select(rows).to_parquet(folder / f"train-{index:05d}-of-00002.parquet", batch_size=30)
    return folder


@pytest.fixture(scope="module")
def stored(photos, source, tmp_path_factory):
    """`stored(policy, form)`: folder of the reinforced images; read from a data set, from a stream, or embedded."""

    @functools.cache
    def stored(policy="rrc", form="dataset"):
        folder = tmp_path_factory.mktemp("plus") / "photos-plus"
        images = load_dataset(str(source), split="train", streaming=True) if form == "stream" else photos
        options = {"shard_size": SHARD, "embed_images": form == "embedded", "source_name": str(source)}
        options |= {"num_samples": N, "top_k": 3, "num_workers": 1, "device": "cpu"}
        reinforce(images, tiny_teacher(), load_policy(policy, 16), folder, **options)
        return str(folder)

    return stored


def content(sample):
    """Every value of a sample."""
    parts = [
        f"{key}{value}" if isinstance(value, (int, dict)) else np.asarray(value).tobytes()
        for key, value in sorted(sample.items())
    ]
    return hashlib.md5(b"".join(part if isinstance(part, bytes) else part.encode() for part in parts)).hexdigest()


def contents_of(samples):
    return [content(sample) for sample in samples]


def contents(stream, epoch=0):
    stream.set_epoch(epoch)
    return [content(sample) for sample in stream]


def expected(folder, epoch=0, **options):
    """The samples of the map-style loader."""
    return replayed(folder, epoch, **options) if "source" in options else list(kept(folder, epoch, **options))


@functools.cache
def kept(folder, epoch, **options):
    return tuple(replayed(folder, epoch, **options))


def replayed(folder, epoch, **options):
    dataset = load_reinforced(folder, **options)
    return [content(s) for s in dataset.__getitems__([epoch * len(dataset) + i for i in range(len(dataset))])]


def batches(stream, epoch=0, num_workers=0, batch_size=8, **options):
    """The samples of every batch of a `DataLoader`."""
    stream.set_epoch(epoch)
    loader = DataLoader(
        stream,
        batch_size,
        collate_fn=contents_of,
        num_workers=num_workers,
        **options,
    )
    return list(loader)


FORMS = [("rrc", "dataset"), ("small_mixing_randaug", "stream"), ("rrc", "embedded"), ("mixing", "embedded")]


# -- the samples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "form"), FORMS)
@pytest.mark.parametrize(
    "options", [{}, {"selection": "random", "seed": 7, "plain_fraction": 0.3}], ids=["cycle", "random"]
)
def test_samples_are_those_of_the_map_style_loader(policy, form, options, stored):
    folder = stored(policy, form)
    stream = load_reinforced(folder, streaming=True, **options)
    assert len(stream) == ROWS
    for epoch in (0, 4):
        assert Counter(contents(stream, epoch)) == Counter(expected(folder, epoch, **options))


@pytest.mark.parametrize(("policy", "form"), [FORMS[0], FORMS[1]])
@pytest.mark.parametrize("kind", ["dataset", "stream", "image folder"])
def test_any_source_will_do(kind, policy, form, photos, source, stored, tmp_path):
    images = {
        "dataset": photos,
        "stream": load_dataset(str(source), split="train", streaming=True),
        "image folder": None,
    }[kind]
    if kind == "image folder":
        for row, item in enumerate(photos.cast_column("image", Image(decode=False))):
            path = tmp_path / "train" / f"{item['label']}" / f"{row:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(item["image"]["bytes"])
        images = load_dataset("imagefolder", data_dir=str(tmp_path), split="train", streaming=True)
        order = [int(os.path.basename(item["image"]["path"])[:5]) for item in images.decode(False)]
        assert sorted(order) == list(range(ROWS)) and order != list(range(ROWS))
        with pytest.raises(WrongImageError, match="Or load it without streaming, which finds"):
            load_reinforced(stored(policy, form), source=images, streaming=True)
        return
    stream = load_reinforced(stored(policy, form), source=images, streaming=True)
    assert Counter(contents(stream, 1)) == Counter(expected(stored(policy, form), 1))


def test_batches_are_collated_as_those_of_the_map_style_loader(stored):
    folder = stored("small_mixing_randaug", "stream")
    stream = load_reinforced(folder, streaming=True).split(0, 1, 16)
    extra = 0
    for batch in DataLoader(stream, 16, collate_fn=stream.collate):
        size = len(batch["labels"])
        assert batch["target_value"].shape == (size, 3) and batch["partner"].shape == (size,)
        extra += len(batch["pixel_values"]) - size
    assert extra <= len(stream) // 16, "partners come next to each other, so few views are in no sample"


def test_views_of_another_size(stored):
    stream = load_reinforced(stored(), streaming=True, image_size=8)
    assert next(iter(stream))["pixel_values"].shape == (3, 8, 8)


def test_rows_are_shuffled_and_every_epoch_otherwise(stored):
    stream = load_reinforced(stored(), streaming=True)
    in_order = {key: row for row, key in enumerate(expected(stored()))}
    first, again = contents(stream), contents(load_reinforced(stored(), streaming=True))
    rows = np.array([in_order[key] for key in first])
    assert first == again
    assert abs(np.corrcoef(rows, np.arange(ROWS))[0, 1]) < 0.5
    fourth = {key: row for row, key in enumerate(expected(stored(), N))}  # the same reinforcements
    assert [fourth[key] for key in contents(stream, N)] != rows.tolist()
    assert contents(load_reinforced(stored(), streaming=True, seed=1)) != first


def test_first_rows(stored):
    stream = load_reinforced(stored(), streaming=True, max_rows=70)
    assert len(stream) == 70
    assert Counter(contents(stream, 2)) == Counter(expected(stored(), 2, max_rows=70))
    mixed = stored("small_mixing_randaug", "stream")
    stream = load_reinforced(mixed, streaming=True, max_rows=70)
    assert len(stream) == 128
    assert Counter(contents(stream, 2)) == Counter(expected(mixed, 2, max_rows=70))


@pytest.mark.parametrize("form", ["dataset", "stream", "embedded"])
@pytest.mark.parametrize("policy", ["rrc", "small_mixing"])
def test_skipped_images(policy, form, photos, tmp_path):
    rows = photos.cast_column("image", Image(decode=False)).to_list()
    for row in BROKEN:
        rows[row]["image"] = {"bytes": b"no image", "path": None}
    broken = Dataset.from_list(rows, features=photos.features)
    options = {"num_samples": 2, "top_k": 2, "num_workers": 1, "shard_size": 64, "on_error": "skip", "device": "cpu"}
    images = broken.to_iterable_dataset() if form == "stream" else broken
    embed = form == "embedded"
    reinforce(images, tiny_teacher(), load_policy(policy, 16), tmp_path, embed_images=embed, **options)
    given = {} if embed else {"source": broken}
    if form == "dataset" and policy == "small_mixing":
        return  # in shuffled order, see below
    stream = load_reinforced(str(tmp_path), streaming=True, **given)
    assert len(stream) == ROWS - len(BROKEN)
    parts = [part for rank in range(3) for part in contents(stream.split(rank, 3), 1)]
    assert set(parts) == set(expected(str(tmp_path), 1, **given)) and len(parts) == 198


# -- who reads what -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "form"), [FORMS[0], FORMS[1], FORMS[3]])
def test_ranks_and_workers_share_an_epoch(policy, form, stored):
    folder = stored(policy, form)
    stream = load_reinforced(folder, streaming=True)
    parts = [batches(stream.split(rank, 2, 8), 3, num_workers=2) for rank in range(2)]
    assert [len(part) for part in parts] == [13, 13]
    assert sorted(len(batch) for batch in parts[0]) == [4] + [8] * 12, "one batch is smaller"
    everything = [key for part in parts for batch in part for key in batch]
    assert Counter(everything) == Counter(expected(folder, 3))


@pytest.mark.parametrize("world", [3, 7, 64])
def test_ranks_have_equally_many_samples(world, stored):
    stream = load_reinforced(stored(), streaming=True)
    parts = [contents(stream.split(rank, world)) for rank in range(world)]
    assert {len(part) for part in parts} == {len(stream.split(0, world))} == {-(-ROWS // world)}
    everything = Counter(key for part in parts for key in part)
    assert set(everything) == set(expected(stored())) and max(everything.values()) <= 2


def test_more_workers_than_batches(stored, monkeypatch):
    monkeypatch.setattr(torch._utils, "cpu_count", lambda: 8)  # the loader warns of more workers than cores
    stream = load_reinforced(stored(), streaming=True, max_rows=9).split(0, 1, 4)
    assert Counter(key for batch in batches(stream, num_workers=5, batch_size=4) for key in batch) == Counter(
        expected(stored(), max_rows=9)
    )


def test_persistent_workers_see_the_epoch(stored):
    stream = load_reinforced(stored(), streaming=True).split(0, 1, 8)
    loader = DataLoader(stream, 8, num_workers=2, persistent_workers=True, collate_fn=contents_of)
    for epoch in (0, 2):
        stream.set_epoch(epoch)
        assert Counter(key for batch in loader for key in batch) == Counter(expected(stored(), epoch))
    loader._iterator._shutdown_workers()


@pytest.mark.parametrize("shards", [1, 3, 20])
@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("num_workers", [1, 4])
def test_partition(shards, world, num_workers):
    skipped = np.array([3, 130, 131])
    blocks = row_blocks(128, 128 * shards - 20, skipped[skipped < 128 * shards - 20])
    total = sum(block.size for block in blocks)
    seen = Counter()
    for rank in range(world):
        sizes = []
        for worker in range(num_workers):
            mine = epoch_blocks(blocks, 0, 1, Consumer(rank, world, 8, worker, num_workers))
            assert Counter(mine) == Counter(block for window in windows(mine, 8) for block in window)
            sizes.append(sum(block.size for block in mine))
            seen.update((block.shard, row) for block in mine for row in range(block.first, block.last))
            assert all(block.start <= block.first < block.last <= block.stop for block in mine)
        assert sum(sizes) == -(-total // world)
        assert sum(size % 8 > 0 for size in sizes) <= 1 and max(sizes) - min(sizes) <= 16
    assert len(seen) == total and sum(seen.values()) - total < world


def test_windows_take_turns_at_shards():
    blocks = epoch_blocks(row_blocks(128, 128 * 20, np.empty(0, np.int64)), 0, 0, Consumer())
    first = windows(blocks, 8)[0]
    assert len({block.shard for block in first}) == 8
    assert [block.place for block in windows(blocks, 1)[0]] == [block.place for block in blocks[:8]]


@pytest.mark.parametrize("in_run", [3, 20])
def test_shards_of_a_run_stay_together(in_run):
    """So that a row group of the source, which holds the images of a run, is read once."""
    every = row_blocks(128, 128 * 20, np.empty(0, np.int64))
    blocks = epoch_blocks(every, 0, 1, Consumer(), in_run)
    assert Counter(blocks) == Counter(every) and (blocks == every) == (in_run == 20)
    in_turn = [block for window in windows(blocks, 2, in_run) for block in window]
    assert Counter(in_turn) == Counter(every)
    for run in range(-(-20 // in_run)):
        places = [block.place for block in in_turn if block.shard // in_run == run]
        assert places == sorted(places)


def test_one_process_reads_about_half(stored, monkeypatch):
    """And of that, nothing twice."""
    read = Counter()
    original = ParquetRows._batches

    def counted(self, start):
        for table in original(self, start):
            read[self.files[0]] += len(table)
            yield table

    stream = load_reinforced(stored(), streaming=True)
    monkeypatch.setattr(ParquetRows, "_batches", counted)
    contents(stream.split(1, 2))
    images = sum(count for file, count in read.items() if "photos-plus" not in file)
    assert ROWS // 2 <= images <= ROWS // 2 + 2 * 30, "a row group more at each end"


@pytest.fixture
def counted_source(photos):
    """A source that can only be read forward, and `read`: how often each row of it was read so far."""
    items, read = photos.cast_column("image", Image(decode=False)).to_list(), Counter()

    def rows():
        for row, item in enumerate(items):
            read[row] += 1
            yield item

    return IterableDataset.from_generator(rows, features=photos.features), read


def test_a_source_that_reads_forward_is_read_once(stored, counted_source):
    source, read = counted_source
    stream = load_reinforced(stored(), source=source, streaming=True)
    for epoch in range(2):
        read.clear()
        assert Counter(contents(stream, epoch)) == Counter(expected(stored(), epoch))
        assert read == Counter(range(ROWS))
    assert contents(stream) != contents(stream, N), "the windows are shuffled all the same"
    read.clear()
    contents(stream.split(0, 2))
    assert read == Counter(range(2 * SHARD)), "no further than the part, but for what is read at once"
    everything = [key for rank in range(2) for batch in batches(stream.split(rank, 2, 8), 1, 2) for key in batch]
    assert Counter(everything) == Counter(expected(stored(), 1))


def test_a_source_that_reads_forward_goes_back_once(stored, counted_source):
    source, read = counted_source
    stream = load_reinforced(stored(), source=source, streaming=True).split(2, 3)  # 201 rows, the last is the first
    read.clear()
    assert len(contents(stream)) == 67
    assert sum(read.values()) <= ROWS + SHARD


def test_files_of_an_image_folder_are_opened_once(stored, photos, tmp_path, monkeypatch):
    for row, item in enumerate(photos.cast_column("image", Image(decode=False))):
        path = tmp_path / "train" / f"{row // 100}" / f"{row:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item["image"]["bytes"])
    source = load_dataset("imagefolder", data_dir=str(tmp_path), split="train", streaming=True)
    stream = load_reinforced(stored(), source=source, streaming=True)
    opened, original = Counter(), fsspec.open
    monkeypatch.setattr(fsspec, "open", lambda path, *args: opened.update([path]) or original(path, *args))
    assert Counter(contents(stream)) == Counter(expected(stored()))
    assert len(opened) == sum(opened.values()) == ROWS


# -- resuming -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "form"), [FORMS[0], FORMS[1]])
@pytest.mark.parametrize("done", [0, 1, 99, ROWS - 1, ROWS])
def test_stream_resumes(done, policy, form, stored):
    stream = load_reinforced(stored(policy, form), streaming=True)
    whole = contents(stream, 2)
    iterator = iter(stream)
    for _ in range(done):
        next(iterator)
    state = stream.state_dict()
    iterator.close()
    other = load_reinforced(stored(policy, form), streaming=True)
    other.load_state_dict(state)
    assert [content(sample) for sample in other] == whole[done:]
    assert contents(other, 2) == whole, "only the next iteration is shorter"


def load_in_worker(states, worker_id):
    torch.utils.data.get_worker_info().dataset.load_state_dict(states[worker_id])


class WithState(torch.utils.data.IterableDataset):
    """Gives the state of a worker's stream with each sample, as loaders that keep the states of their workers ask."""

    def __init__(self, stream):
        self.stream, self.load_state_dict = stream, stream.load_state_dict

    def __iter__(self):
        for sample in self.stream:
            yield torch.utils.data.get_worker_info().id, self.stream.state_dict(), content(sample)


def test_each_worker_resumes_from_its_own_state(stored):
    """As torchdata's StatefulDataLoader does it: the state is loaded inside the worker."""
    stream = load_reinforced(stored(), streaming=True).split(0, 1, 8)
    stream.set_epoch(1)
    options = {"batch_size": 8, "num_workers": 2, "collate_fn": list, "multiprocessing_context": "fork"}
    whole = list(DataLoader(WithState(stream), **options))
    done = 6  # three batches of each worker
    states = {batch[-1][0]: batch[-1][1] for batch in whole[:done]}
    assert states == {worker: {"epoch": 1, "samples": 24} for worker in range(2)}
    other = load_reinforced(stored(), streaming=True).split(0, 1, 8)
    loader = DataLoader(WithState(other), worker_init_fn=functools.partial(load_in_worker, states), **options)
    rest = [[key for _, _, key in batch] for batch in loader]
    assert rest == [[key for _, _, key in batch] for batch in whole[done:]]
    other.load_state_dict(states[0])
    with pytest.raises(ValueError, match="resumes by batches: .*or use torchdata's StatefulDataLoader"):
        list(DataLoader(WithState(other), **options))


def test_another_epoch_begins_at_its_beginning(stored):
    stream = load_reinforced(stored(), streaming=True)
    assert len(list(stream)) == ROWS == stream.state_dict()["samples"]
    stream.set_epoch(1)
    assert stream.state_dict() == {"epoch": 1, "samples": 0}
    stream.load_state_dict({"epoch": 1, "samples": 50})
    assert stream.state_dict() == {"epoch": 1, "samples": 50}
    assert len(list(stream)) == ROWS - 50


def test_workers_refuse_to_resume_by_samples(stored):
    stream = load_reinforced(stored(), streaming=True)
    stream.load_state_dict({"epoch": 0, "samples": 40})
    loader = DataLoader(stream, 8, num_workers=2, collate_fn=stream.collate, multiprocessing_context="fork")
    with pytest.raises(ValueError, match="resumes by batches"):
        next(iter(loader))


def test_repeated_augmentation_is_refused(stored, tmp_path):
    args = KDTrainingArguments(output_dir=str(tmp_path), use_cpu=True, repeated_augmentation=2)
    with pytest.raises(ValueError, match="no streaming"):
        KDTrainer(torch.nn.Linear(1, 1), args, load_reinforced(stored(), streaming=True))


def test_resuming_reads_nothing_of_what_is_done(stored, monkeypatch):
    stream = load_reinforced(stored(), streaming=True)
    stream.load_state_dict({"epoch": 0, "samples": ROWS})
    monkeypatch.setattr(ParquetRows, "_batches", None)
    assert list(stream) == []


@pytest.mark.parametrize(("num_workers", "done"), [(0, 6), (2, 1), (2, 6), (3, 5), (3, 13)])
def test_loader_resumes_behind_a_batch(num_workers, done, stored, monkeypatch):
    monkeypatch.setattr(torch._utils, "cpu_count", lambda: 8)
    stream = load_reinforced(stored(), streaming=True).split(1, 2, 8)
    whole = batches(stream, 1, num_workers)
    stream.load_state_dict({"epoch": 1, "batches": done})
    assert batches(stream, 1, num_workers) == whole[done:]
    if num_workers == 0:
        assert batches(stream, 1, num_workers) == whole, "only the next iteration is shorter"


# -- what cannot be streamed --------------------------------------------------------------------------------------


def test_shuffled_rows_are_refused(stored):
    with pytest.raises(
        ValueError,
        match=r"shuffled order.* Leave out streaming=True .*--embed_images.*load_dataset\(\.\.\., streaming=True\)",
    ):
        load_reinforced(stored("mixing"), streaming=True)


def test_partners_from_anywhere_are_refused(stored, tmp_path, photos):
    folder = stored("small_mixing_randaug", "stream")
    config = ReinforcementConfig.load(f"{folder}/small_mixing_randaug")
    half = dataclasses.replace(config, shard_size=32, source=dataclasses.replace(config.source, num_rows=40))
    (tmp_path / "small_mixing_randaug").mkdir()
    half.save(tmp_path / "small_mixing_randaug")
    table = pq.read_table(f"{folder}/small_mixing_randaug/train-00000.parquet")
    for index, rows in enumerate((table.slice(0, 32), table.slice(32, 8))):
        pq.write_table(rows, tmp_path / "small_mixing_randaug" / f"train-{index:05d}.parquet")
    with pytest.raises(ValueError, match="from anywhere"):
        load_reinforced(str(tmp_path), source=photos, streaming=True)


def test_reordered_source(stored, photos):
    with pytest.raises(WrongImageError, match=r"Row 0 of the source.*Or load it without streaming"):
        load_reinforced(stored(), source=photos.shuffle(seed=0), streaming=True)
    late = concatenate_datasets([photos.select(range(100)), photos.select(range(101, ROWS)), photos.select([100])])
    stream = load_reinforced(stored(), source=late, streaming=True)
    with pytest.raises(WrongImageError, match=r"Row 1\d\d of the source.*without streaming"):
        list(stream)
    assert len(load_reinforced(stored(), source=late)) == ROWS


def test_shorter_source(stored, photos, caplog):
    short = photos.select(range(150))
    with pytest.raises(ValueError, match=r"has 150 rows, but 200 were reinforced.*allow_missing=True"):
        load_reinforced(stored(), source=short, streaming=True)
    stream = load_reinforced(stored(), source=short, streaming=True, allow_missing=True)
    (record,) = caplog.records
    assert "Training on 150 of 200 images; 50 are missing: the source has only 150 rows" in record.getMessage()
    assert "42 of them are replaced by rows whose images are there, and 8 are left out." in record.getMessage()
    found = contents(stream)
    assert len(stream) == 192 and len(caplog.records) == 1
    assert set(found) == set(expected(stored(), source=short, allow_missing=True))
    assert len(found) == len(stream) and len(found) < ROWS
    endless = short.to_iterable_dataset()
    with pytest.raises(ValueError, match="The source has no image for row 150"):
        list(load_reinforced(stored(), source=endless, streaming=True))
    assert set(contents(load_reinforced(stored(), source=endless, streaming=True, allow_missing=True))) == set(found)


@pytest.mark.parametrize(("policy", "form"), [FORMS[0], FORMS[1]])
def test_missing_images(policy, form, stored, photos, caplog):
    rows = photos.cast_column("image", Image(decode=False)).to_list()
    for row in BROKEN:
        rows[row]["image"] = None
    holes = Dataset.from_list(rows, features=photos.features)
    folder = stored(policy, form)
    with pytest.raises(ValueError, match=r"no image for row (5|64) \(hash [0-9a-f]{16}\).*allow_missing"):
        list(load_reinforced(folder, source=holes, streaming=True))
    stream = load_reinforced(folder, source=holes, streaming=True, allow_missing=True)
    found = contents(stream, 1)
    every = {key for epoch in range(N) for key in expected(folder, epoch)}
    assert len(found) == len(stream) == ROWS, "others take their places, so that processes stay in step"
    assert set(found) <= every and len(set(found)) >= ROWS - 6
    contents(stream, 2)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1, "not for every image, window or epoch"
    (message,) = warnings
    assert re.match(r"The source has no image for row (5|64) \(hash .*how many is not known before", message)


def test_other_pixels(stored, monkeypatch):
    monkeypatch.setattr("hf_reinforce.replay.dataset.view_checksum", lambda view: "0" * 16)
    with pytest.raises(PixelMismatchError):
        load_reinforced(stored(), streaming=True)
    assert len(load_reinforced(stored(), streaming=True, accept_pixel_mismatch=True)) == ROWS


def test_missing_and_damaged_shards(stored, tmp_path):
    import shutil

    folder = shutil.copytree(stored(), tmp_path / "plus")
    file = folder / "rrc" / "train-00001-of-00004.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(
        ValueError,
        match=r"00001-of-00004.parquet cannot be read, .*cut short.* Delete /\S+00001-of-00004.parquet and load it",
    ):
        list(load_reinforced(str(folder), streaming=True))
    shutil.copy(folder / "rrc" / "train-00002-of-00004.parquet", file)
    with pytest.raises(ValueError, match="does not hold the rows that it should"):
        list(load_reinforced(str(folder), streaming=True))
    file.unlink()
    with pytest.raises(ValueError, match="should have 4 shards, but 3 are there"):
        load_reinforced(str(folder), streaming=True)


def test_source_without_its_column(stored, source):
    renamed = load_dataset(str(source), split="train").rename_column("image", "picture")
    folder = source.parent / "renamed"
    folder.mkdir()
    renamed.to_parquet(folder / "train-0.parquet")
    with pytest.raises(
        ValueError, match=r"should have the columns \['image', 'label'\],.* but has \['picture', 'label'\]"
    ):
        load_reinforced(stored(), source=str(folder), streaming=True)


# -- training -----------------------------------------------------------------------------------------------------


def run_of(stream, folder, resume=None, **options):
    """The batches that a `KDTrainer` trains on, as their targets, and its student."""
    torch.manual_seed(0)
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.2), torch.nn.Linear(3 * 16 * 16, 5))
    seen = []
    arguments = {
        "output_dir": str(folder),
        "use_cpu": True,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "learning_rate": 0.01,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    trainer = KDTrainer(student, KDTrainingArguments(**{**arguments, **options}), stream)
    compute_loss = trainer.compute_loss

    def recording(model, inputs, *args, **kwargs):
        seen.append(inputs["target_value"].clone())
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = recording
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.num_examples(trainer.get_train_dataloader()) == ROWS
    return seen, student[2].weight.detach()


@pytest.fixture
def decoded(monkeypatch):
    """How many images were decoded so far, in forked workers too."""
    count, original = multiprocessing.Value("i", 0), decode

    def counting(*args):
        with count.get_lock():
            count.value += 1
        return original(*args)

    monkeypatch.setattr("hf_reinforce.images.decode", counting)
    return count


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("policy", "form"), [FORMS[0], FORMS[1]])
def test_training_and_resuming(num_workers, policy, form, stored, decoded, tmp_path):
    """A resumed run sees the samples that are left, and ends where an uninterrupted one does."""
    stream = load_reinforced(stored(policy, form), streaming=True)
    options = {"dataloader_num_workers": num_workers, "gradient_accumulation_steps": 2}
    seen, weight = run_of(stream, tmp_path / "whole", save_strategy="steps", save_steps=9, **options)
    assert len(seen) == 26 and sum(map(len, seen)) == 2 * ROWS
    dataset = load_reinforced(stored(policy, form))
    for epoch, part in ((0, seen[:13]), (1, seen[13:])):
        values = [dataset[epoch * ROWS + row]["target_value"].tolist() for row in range(ROWS)]
        assert sorted(torch.cat(part).tolist()) == sorted(values)
    checkpoint, decoded.value = str(tmp_path / "whole" / "checkpoint-9"), 0  # 7 steps of 13 batches, and 2 of 4
    rest, again = run_of(stream, tmp_path / "again", checkpoint, **options)
    assert len(rest) == 9 and all(torch.equal(a, b) for a, b in zip(rest, seen[17:], strict=True))
    assert torch.equal(again, weight)
    left = sum(map(len, rest))
    assert decoded.value == left if policy == "rrc" else left <= decoded.value < ROWS, "no more than what is left"


def test_resuming_with_spawned_workers(stored, tmp_path):
    stream = load_reinforced(stored(), streaming=True)
    seen, weight = run_of(stream, tmp_path / "whole", save_strategy="steps", save_steps=9)
    options = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn"}
    rest, again = run_of(stream, tmp_path / "again", str(tmp_path / "whole" / "checkpoint-18"), **options)
    assert len(rest) == 8 and all(torch.equal(a, b) for a, b in zip(rest, seen[18:], strict=True))
    assert torch.equal(again, weight)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_by_their_numbers(num_workers, stored):
    stream = load_reinforced(stored(), streaming=True)
    whole = batches(stream.split(1, 2, 8), 1, num_workers)
    found = StreamBatches(stream, Consumer(1, 2, 8), num_workers)
    assert len(found) == 13 and found.num_rows == ROWS
    assert len(BatchNumbers(found, 8, drop_last=True)) == 12
    numbers = BatchNumbers(found, 8, drop_last=False)
    numbers.set_epoch(1)
    assert list(numbers) == [[number] for number in range(13, 26)]
    in_order = [contents_of(found.__getitems__(number)) for number in numbers]
    assert in_order == whole
    assert [len(batch) for batch in in_order] == [found.size(batch) for batch in range(13)]
    assert sorted(map(len, in_order)) == [4] + [8] * 12
    for batch in (7, 2, 3, 12, 0):
        assert contents_of(found.__getitems__([13 + batch])) == in_order[batch]


# -- over HTTP ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A folder with images that do not compress, 15 KB each, in row groups of 10; and the images reinforced."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("noise")
    images = [
        {"bytes": encode_image(PIL.fromarray(rng.integers(0, 256, (72, 72, 3), dtype=np.uint8)))} for _ in range(256)
    ]
    photos = Dataset.from_dict({"image": images, "label": [row % 5 for row in range(256)]})
    photos = photos.cast_column("image", Image())
    (folder / "noise").mkdir()
    for index in range(2):
        file = folder / "noise" / f"train-{index:05d}-of-00002.parquet"
        photos.shard(2, index, contiguous=True).to_parquet(file, batch_size=10)
    options = {"num_samples": 2, "top_k": 2, "shard_size": 64, "device": "cpu", "source_name": "me/noise"}
    reinforce(photos, tiny_teacher(), load_policy("rrc", 8), folder / "noise-plus", **options)
    return folder


@pytest.fixture(scope="module")
def published(hub, noise):
    """The two repositories, and `sent`: bytes by repository and file that the hub has sent so far."""
    for name in ("noise", "noise-plus"):
        files = [path for path in (noise / name).rglob("*") if path.is_file()]
        hub.add_repository("dataset", f"me/{name}", {str(f.relative_to(noise / name)): f.read_bytes() for f in files})
    sent = Counter()
    original = RequestHandler._find_answer

    def counted(self, path, fault):
        answer = original(self, path, fault)
        if self.command == "GET" and path.endswith(".parquet"):
            sent[path.split("/")[3]] += len(answer.content)
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RequestHandler, "_find_answer", counted)
        yield sent


def streamed(rank, world, num_workers=0, epoch=0):
    """In the client: the contents of one process's part."""
    stream = load_reinforced("me/noise-plus", streaming=True).split(rank, world, 8)
    context = {"multiprocessing_context": "fork"} if num_workers else {}
    return [key for batch in batches(stream, epoch, num_workers, **context) for key in batch]


def test_processes_fetch_their_part(client, published, noise):
    whole = sum(file.stat().st_size for file in (noise / "noise").rglob("*.parquet"))
    parts = []
    for rank in range(2):
        published.clear()
        parts += client(streamed, rank, 2)
        # Footers, the first rows, which are checked, and what lies beside the part in the same row groups.
        assert 0.5 <= published["noise"] / whole <= 0.65
    assert Counter(parts) == Counter(expected(str(noise / "noise-plus"), source=str(noise / "noise")))
    published.clear()
    assert Counter(client(streamed, 0, 1, 2)) == Counter(parts)
    assert published["noise"] / whole <= 1.25
    assert not [file for file in client(cached_files) if file.endswith((".parquet", ".arrow"))], "nothing is kept"


def cached_files():
    """In the client."""
    return [os.path.join(place, file) for place, _, files in os.walk(os.environ["HF_HOME"]) for file in files]


def test_errors_over_http(hub, client, published):
    files = {path: file.content for path, file in hub.repositories["datasets", "me/noise-plus"].files().items()}
    files["rrc/train-00001-of-00004.parquet"] = files["rrc/train-00001-of-00004.parquet"][:-100]
    hub.add_repository("dataset", "me/cut", files)
    message = client(refused, "me/cut")
    assert "train-00001-of-00004.parquet cannot be read, probably because it was cut short" in message
    assert message.endswith("Load it again; if that does not help, ask whoever published it to publish it again.")
    assert "There is no data set 'me/nothing'" in client(refused, "me/noise-plus", source="me/nothing")
    hub.faults.append(Fault("GET .*me/noise/resolve/.*parquet", status=503))
    assert client(refused, "me/noise-plus") == "nothing went wrong"


def refused(name, **options):
    """In the client: the error of streaming it."""
    try:
        list(load_reinforced(name, streaming=True, **options))
    except ValueError as error:
        return str(error)
    return "nothing went wrong"


# -- processes ----------------------------------------------------------------------------------------------------

TRAINING = """
import sys, torch
from torch import nn
from hf_reinforce import KDTrainer, KDTrainingArguments, images, load_reinforced

folder, output = sys.argv[1:]
stream, decoded, decode = load_reinforced(folder, streaming=True), [], images.decode
images.decode = lambda *args: decoded.append(1) or decode(*args)

def run(num_workers, **resume):
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    args = KDTrainingArguments(output, use_cpu=True, num_train_epochs=2, per_device_train_batch_size=7, save_steps=20,
                               disable_tqdm=True, dataloader_num_workers=num_workers)
    trainer = KDTrainer(student, args, stream)
    seen = []
    compute_loss = trainer.compute_loss
    def recording(model, inputs, *rest, **more):
        seen.append(inputs["target_value"].clone())
        return compute_loss(model, inputs, *rest, **more)
    trainer.compute_loss = recording
    decoded.clear()
    trainer.train(**resume)
    return {"seen": seen, "weight": student[1].weight.detach(), "decoded": len(decoded)}, args.process_index

whole, rank = run(1)
again, _ = run(0, resume_from_checkpoint=f"{output}/checkpoint-20")
torch.save({"whole": whole, "again": again}, f"{output}/{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_train_in_step(stored, tmp_path):
    folder = stored("small_mixing_randaug", "stream")
    script, output = tmp_path / "train.py", tmp_path / "out"
    script.write_text(TRAINING)
    output.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    result = subprocess.run([*command, script, folder, output], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    saved = [torch.load(output / f"{rank}.pt", weights_only=True) for rank in range(2)]
    runs = [item["whole"] for item in saved]
    for run, again in ((item["whole"], item["again"]) for item in saved):
        assert torch.equal(run["weight"], again["weight"]) and len(again["seen"]) == 10
        assert all(torch.equal(a, b) for a, b in zip(run["seen"][20:], again["seen"], strict=True))
        assert sum(map(len, again["seen"])) <= again["decoded"] < ROWS // 2
    assert torch.equal(runs[0]["weight"], runs[1]["weight"])
    dataset = load_reinforced(folder)
    for epoch in range(2):
        seen = [torch.cat(run["seen"][15 * epoch : 15 * (epoch + 1)]).tolist() for run in runs]
        assert [len(part) for part in seen] == [ROWS // 2, ROWS // 2]
        values = [dataset[epoch * ROWS + row]["target_value"].tolist() for row in range(ROWS)]
        assert sorted(seen[0] + seen[1]) == sorted(values)
