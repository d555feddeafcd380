"""Remote rows: the samples of memory-mapped ones, each once, in an order that reads forward."""

import dataclasses
import functools
import hashlib
import multiprocessing
import os
import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, concatenate_datasets, load_dataset
from hub_server import Fault, RequestHandler
from PIL import Image as PIL
from test_scale_out import in_processes
from tiny import encode_image, tiny_dataset, tiny_teacher
from torch.utils.data import DataLoader

from hf_reinforce import (
    EpochSampler,
    KDTrainer,
    KDTrainingArguments,
    Readers,
    ReinforcementConfig,
    load_policy,
    load_reinforced,
    reinforce,
)
from hf_reinforce.images import decode
from hf_reinforce.replay.dataset import WrongImageError
from hf_reinforce.replay.views import Blocks
from hf_reinforce.store.rows import ParquetRows, column_reader

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
    """`stored(policy, form)`: folder of the reinforced images; read from a dataset, from a stream, or embedded."""

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


def samples(dataset, epoch=0):
    """The samples of an epoch, by position."""
    return contents_of(dataset.__getitems__([epoch * len(dataset) + i for i in range(len(dataset))]))


@functools.cache
def expected(folder, epoch=0, **options):
    return samples(load_reinforced(folder, **options), epoch)


def order_of(dataset, epoch=0, seed=0, **readers):
    """The positions of an epoch in the order in which it visits them."""
    sampler = EpochSampler(dataset, seed, readers=Readers(**readers))
    sampler.set_epoch(epoch)
    return np.array(list(sampler)) - epoch * len(dataset)


def batches_of(order, size, rank=0, ranks=1):
    """The batches of a rank, as accelerate deals them out."""
    return [order[start : start + size] for start in range(0, len(order), size)][rank::ranks]


@pytest.fixture
def decoded_blocks(monkeypatch):
    """How often each block was read, by file and its first row."""
    read, original = Counter(), ParquetRows._blocks_from

    def counted(self, group):
        number, index = self._groups[group]
        row = sum(self._footers[number].row_group(i).num_rows for i in range(index))
        for table in original(self, group):
            read[self.files[number], row] += 1
            row += len(table)
            yield table

    monkeypatch.setattr(ParquetRows, "_blocks_from", counted)
    return read


FORMS = [("rrc", "dataset"), ("small_mixing_randaug", "stream"), ("rrc", "embedded"), ("mixing", "embedded")]


# -- the samples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "form"), FORMS)
@pytest.mark.parametrize(
    "options", [{}, {"selection": "random", "seed": 7, "plain_fraction": 0.3}], ids=["cycle", "random"]
)
def test_samples_are_those_of_memory_mapped_rows(policy, form, options, stored):
    """In whatever order they are asked for."""
    folder = stored(policy, form)
    stream = load_reinforced(folder, streaming=True, **options)
    for epoch in (0, 4):
        everything = expected(folder, epoch, **options)
        positions = np.random.default_rng(epoch).permutation(ROWS)
        found = contents_of(stream.__getitems__((epoch * ROWS + positions).tolist()))
        assert found == [everything[position] for position in positions]
        assert sorted(order_of(stream, epoch)) == list(range(ROWS))


@pytest.mark.parametrize(("policy", "form"), [FORMS[0], FORMS[1], ("mixing", "dataset")])
def test_images_of_a_dataset_in_hand(policy, form, photos, stored):
    stream = load_reinforced(stored(policy, form), source=photos, streaming=True)
    assert samples(stream, 1) == expected(stored(policy, form), 1)


def test_other_formats_are_refused(photos, stored, tmp_path):
    for row, item in enumerate(photos.cast_column("image", Image(decode=False))):
        path = tmp_path / "train" / f"{item['label']}" / f"{row:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item["image"]["bytes"])
    with pytest.raises(ValueError, match=r"is not stored as Parquet.*to_parquet.*--source_name_or_path"):
        load_reinforced(stored(), source=str(tmp_path), streaming=True)
    images = load_dataset("imagefolder", data_dir=str(tmp_path), split="train", streaming=True)
    with pytest.raises(TypeError, match="source is a stream"):
        load_reinforced(stored(), source=images, streaming=True)


def test_first_rows(stored):
    for folder, count in ((stored(), 70), (stored("small_mixing_randaug", "stream"), 128)):
        stream = load_reinforced(folder, streaming=True, max_rows=70, image_size=8)
        assert len(stream) == count
        assert samples(stream, 2) == expected(folder, 2, max_rows=70, image_size=8)
        assert sorted(order_of(stream, batch_size=8, workers=2, ranks=3)) == list(range(count))


@pytest.mark.parametrize(
    ("policy", "form"), [("rrc", "dataset"), ("small_mixing", "stream"), ("small_mixing", "embedded")]
)
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
    stream = load_reinforced(str(tmp_path), streaming=True, **given)
    assert len(stream) == ROWS - len(BROKEN)
    assert samples(stream, 1) == samples(load_reinforced(str(tmp_path), **given), 1)
    assert sorted(order_of(stream, 1, batch_size=8, workers=2)) == list(range(len(stream)))


# -- the order ----------------------------------------------------------------------------------------------------


def test_rows_are_shuffled_and_every_epoch_otherwise(stored):
    stream = load_reinforced(stored("small_mixing_randaug", "stream"), streaming=True)
    orders = [order_of(stream), order_of(stream, 1), order_of(stream, seed=1)]
    assert (order_of(stream) == orders[0]).all() and len(set(map(tuple, orders))) == 3
    for epoch, order in enumerate(orders[:2]):
        assert abs(np.corrcoef(order, np.arange(ROWS))[0, 1]) < 0.5
        place, partners = np.argsort(order), stream.partners(epoch)
        assert (abs(place - place[partners]) == 1)[partners != np.arange(ROWS)].mean() > 0.9, "partners are neighbours"


class Rows:
    """A dataset that does nothing but have rows, in blocks of 64."""

    policy = load_policy("rrc", 16)

    def __init__(self, sizes, shards_in_run=1):
        blocks = [(shard, min(64, size - first)) for shard, size in enumerate(sizes) for first in range(0, size, 64)]
        runs = np.array([shard // shards_in_run for shard, _ in blocks])
        self.blocks = Blocks(np.cumsum([0, *(size for _, size in blocks)]), runs)
        self.shards = np.repeat(np.arange(len(sizes)), sizes)

    def __len__(self):
        return len(self.shards)

    def partners(self, epoch):
        return np.full(len(self), -1)


@pytest.mark.parametrize("shards", [1, 3, 20])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 1), (1, 4), (5, 4)])
def test_readers_have_parts_of_their_own(shards, ranks, workers):
    rows = Rows([128] * (shards - 1) + [108])
    order = order_of(rows, 1, batch_size=8, workers=workers, ranks=ranks)
    assert sorted(order) == list(range(len(rows)))
    seen, blocks = [], 0
    for rank in range(ranks):
        own = batches_of(order, 8, rank, ranks)
        for worker in range(workers):
            part = np.concatenate([np.empty(0, np.int64), *own[worker::workers]])
            blocks += len(np.unique(part // 64))
            seen.append(set(part.tolist()))
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert blocks <= -(-len(rows) // 64) + 2 * ranks * workers, "blocks are shared at the ends of a part alone"


def test_windows_take_turns_at_shards():
    rows = Rows([128] * 20)
    windows = order_of(rows).reshape(-1, 512)
    assert all(len(set(rows.shards[window].tolist())) == 8 for window in windows[:2])
    assert all(len(set((window // 64).tolist())) == 8 for window in windows)


def test_shards_of_a_run_stay_together():
    """So that a row group of the source, which holds the images of a run, is read once."""
    rows = Rows([128] * 20, shards_in_run=5)
    blocks = [sorted(set((window // 64).tolist())) for window in order_of(rows).reshape(-1, 512)]
    for run in range(4):
        in_turn = [block for window in blocks for block in window if block // 10 == run]
        assert in_turn == sorted(in_turn)


@pytest.mark.parametrize(("ranks", "workers", "most"), [(1, 1, 1.0), (1, 2, 1.1), (2, 2, 1.15), (8, 4, 1.8)])
def test_blocks_are_read_once(tmp_path, decoded_blocks, ranks, workers, most):
    """Of 38 shards in row groups of 1,000, by each reader for itself; also by more readers than there are shards."""
    sizes, rows = [1024] * 37 + [500], Dataset.from_dict({"row": np.arange(37 * 1024 + 500)})
    for shard, start in enumerate(range(0, len(rows), 1024)):
        rows.select(range(start, min(start + 1024, len(rows)))).to_parquet(tmp_path / f"{shard:02d}.parquet")
    order = order_of(Rows(sizes), batch_size=32, workers=workers, ranks=ranks)
    for rank in range(ranks):
        for worker in range(workers):
            files = sorted(map(str, tmp_path.glob("*.parquet")))
            reader = ParquetRows(files, ["row"])
            read = column_reader(reader, "row")
            part = np.concatenate(batches_of(order, 32, rank, ranks)[worker::workers]).tolist()
            assert [read(row) for row in part] == part
            reader._pool.shutdown()
    assert sum(decoded_blocks.values()) <= most * len(Rows(sizes).blocks.runs)


def test_one_reader_reads_about_half(stored, decoded_blocks):
    """And of that, nothing twice."""
    stream = load_reinforced(stored(), streaming=True)
    part = np.concatenate(batches_of(order_of(stream, batch_size=10, ranks=2), 10, 1, 2))
    decoded_blocks.clear()
    contents_of(stream.__getitems__(part.tolist()))
    assert set(decoded_blocks.values()) == {1}
    images = sum(30 for file, _ in decoded_blocks if "photos-plus" not in file)
    assert ROWS // 2 <= images <= ROWS // 2 + 4 * 30, "a row group more at each end"


# -- training -----------------------------------------------------------------------------------------------------


def run_of(stream, folder, resume=None, **options):
    """The batches that a `KDTrainer` trains on, as their targets, and its student."""
    torch.manual_seed(0)
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.2), torch.nn.Linear(3 * 16 * 16, 5))
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "save_strategy": "no", **options}
    args = KDTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **options)
    trainer, seen = KDTrainer(student, args, stream), []
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


@pytest.mark.parametrize(
    ("policy", "form", "num_workers", "streaming"),
    [(*FORMS[0], 2, True), (*FORMS[1], 0, True), (*FORMS[1], 2, True), (*FORMS[0], 2, False)],
)
def test_training_and_resuming(policy, form, num_workers, streaming, stored, decoded, tmp_path):
    """A resumed run sees the samples that are left, and ends where an uninterrupted one does."""
    stream = load_reinforced(stored(policy, form), streaming=streaming)
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


def in_a_rank(folder, output):
    stream, options = load_reinforced(folder, streaming=True), {"per_device_train_batch_size": 7}
    whole = run_of(stream, output, save_strategy="steps", save_steps=20, **options)
    again = run_of(stream, output, str(output / "checkpoint-20"), **options)
    torch.save((whole, again), output / f"{os.environ['RANK']}.pt")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of Python 3.12
def test_two_ranks_train_in_step_and_resume_with_the_same_samples(stored, tmp_path):
    folder = stored("small_mixing_randaug", "stream")
    in_processes(2, in_a_rank, folder, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for (seen, weight), (rest, again) in ranks:
        assert len(rest) == 10 and all(torch.equal(a, b) for a, b in zip(rest, seen[20:], strict=True))
        assert torch.equal(weight, again) and torch.equal(weight, ranks[0][0][1])
    dataset = load_reinforced(folder)
    for epoch in range(2):  # 29 batches each, of which the first comes once more
        seen = [torch.cat(seen[15 * epoch : 15 * epoch + 15]).tolist() for (seen, _), _ in ranks]
        assert [len(part) for part in seen] == [15 * 7, 15 * 7]
        values = [dataset[epoch * ROWS + row]["target_value"].tolist() for row in range(ROWS)]
        assert set(map(tuple, seen[0] + seen[1])) == set(map(tuple, values))


def test_a_spawned_worker_gets_the_same_samples(stored):
    stream = load_reinforced(stored(), streaming=True)
    stream[0]  # reading goes on in a thread, and nothing of that travels
    assert samples(pickle.loads(pickle.dumps(stream))) == expected(stored())


# -- what cannot be streamed --------------------------------------------------------------------------------------


def test_what_needs_local_rows_is_refused(stored, photos, tmp_path):
    stream = load_reinforced(stored(), streaming=True)
    with pytest.raises(ValueError, match="--streaming False"):
        EpochSampler(stream, repeats=2)
    with pytest.raises(ValueError, match="streamed are not kept"):
        stream.cache_images()
    message = r"shuffled order.* Leave out streaming=True .*--embed_images.*load_dataset\(\.\.\., streaming=True\)"
    with pytest.raises(ValueError, match=message):
        load_reinforced(stored("mixing"), streaming=True)


def test_partners_from_anywhere_are_refused(stored, tmp_path, photos):
    """Here the configuration is wrong about the order in which the rows were mixed."""
    folder = shutil.copytree(stored("small_mixing_randaug", "stream"), tmp_path / "plus") / "small_mixing_randaug"
    config = ReinforcementConfig.load(folder)
    dataclasses.replace(config, shuffled=True, source=dataclasses.replace(config.source, num_rows=ROWS)).save(folder)
    with pytest.raises(ValueError, match="from anywhere"):
        load_reinforced(str(folder.parent), source=photos, streaming=True)


def test_reordered_source(stored, photos, tmp_path):
    with pytest.raises(WrongImageError, match=r"Row 0 of the source"):
        load_reinforced(stored(), source=photos.shuffle(seed=0), streaming=True)
    late = concatenate_datasets([photos.select(range(100)), photos.select(range(101, ROWS)), photos.select([100])])
    (tmp_path / "late").mkdir()
    late.to_parquet(tmp_path / "late" / "train.parquet")
    stream = load_reinforced(stored(), source=str(tmp_path / "late"), streaming=True)
    with pytest.raises(WrongImageError, match=r"Row 1\d\d of the source.*, or load it without streaming=True"):
        samples(stream)
    assert len(load_reinforced(stored(), source=late)) == ROWS


def test_shorter_source(stored, photos, caplog):
    short = photos.select(range(150))
    with pytest.raises(ValueError, match=r"holds 150 of the 200 images.*50 are missing: row 150 .*allow_missing=True"):
        load_reinforced(stored(), source=short, streaming=True)
    stream = load_reinforced(stored(), source=short, streaming=True, allow_missing=True)
    (record,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "holds 150 of the 200 images that were reinforced; 50 are missing: row 150 (hash " in record.getMessage()
    assert samples(stream) == samples(load_reinforced(stored(), source=short, allow_missing=True))
    assert sorted(order_of(stream, batch_size=8, ranks=3)) == list(range(150))


def test_missing_and_damaged_shards(stored, tmp_path):
    folder = shutil.copytree(stored(), tmp_path / "plus")
    file = folder / "rrc" / "train-00001-of-00004.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"cut short: .* Delete /\S+00001-of-00004.parquet and load it again"):
        load_reinforced(str(folder), streaming=True)
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    file.write_bytes(whole[:4] + bytes(len(whole) - footer - 4) + whole[-footer:])
    with pytest.raises(ValueError, match=r"00001-of-00004.parquet cannot be read, .* Delete /\S+ and load it again"):
        load_reinforced(str(folder), streaming=True)
    shutil.copy(folder / "rrc" / "train-00002-of-00004.parquet", file)
    with pytest.raises(ValueError, match="is there twice, in "):
        load_reinforced(str(folder), streaming=True)
    file.unlink()
    with pytest.raises(ValueError, match="holds 136 rows, not 200: shards are missing"):
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


def streamed(rank, ranks, num_workers=0):
    """In the client: the contents of one rank's part."""
    stream = load_reinforced("me/noise-plus", streaming=True)
    order = order_of(stream, batch_size=8, ranks=ranks, workers=max(1, num_workers))
    part = np.concatenate(batches_of(order, 8, rank, ranks)).tolist()
    context = {"multiprocessing_context": "fork"} if num_workers else {}
    loader = DataLoader(stream, 8, sampler=part, collate_fn=contents_of, num_workers=num_workers, **context)
    return [key for batch in loader for key in batch]


def test_ranks_fetch_their_part(client, published, noise):
    whole = sum(file.stat().st_size for file in (noise / "noise").rglob("*.parquet"))
    before, parts = set(client(cached_files)), []
    for rank in range(2):
        published.clear()
        parts += client(streamed, rank, 2)
        # Footers, the first rows, which are checked, and what lies beside the part in the same row groups.
        assert 0.5 <= published["noise"] / whole <= 0.7
    assert Counter(parts) == Counter(expected(str(noise / "noise-plus"), source=str(noise / "noise")))
    published.clear()
    assert Counter(client(streamed, 0, 1, 2)) == Counter(parts)
    assert published["noise"] / whole <= 1.35
    kept = set(client(cached_files)) - before
    assert not [file for file in kept if file.endswith((".parquet", ".arrow"))]


def cached_files():
    """In the client."""
    return [os.path.join(place, file) for place, _, files in os.walk(os.environ["HF_HOME"]) for file in files]


def test_errors_over_http(hub, client, published):
    files = {path: file.content for path, file in hub.repositories["datasets", "me/noise-plus"].files().items()}
    files["rrc/train-00001-of-00004.parquet"] = files["rrc/train-00001-of-00004.parquet"][:-100]
    hub.add_repository("dataset", "me/cut", files)
    message = client(refused, "me/cut")
    assert "00001-of-00004.parquet cannot be read, probably because it was cut short" in message
    assert message.endswith("Load it again; if that does not help, publish it again, or ask whoever published it.")
    assert "There is no dataset 'me/nothing'" in client(refused, "me/noise-plus", source="me/nothing")
    hub.faults.append(Fault("GET .*me/noise/resolve/.*parquet", status=503))
    assert client(refused, "me/noise-plus") == "nothing went wrong"


def refused(name, **options):
    """In the client: the error of streaming it."""
    try:
        samples(load_reinforced(name, streaming=True, **options))
    except ValueError as error:
        return str(error)
    return "nothing went wrong"
