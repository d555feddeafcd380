"""`reinforce` and `Reinforcer`: what is stored, what changes no byte of it, interruption, adding, bad input."""

import contextlib
import json
import logging
from pathlib import Path

import accelerate
import datasets
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from datasets import Dataset, Features, Image, IterableDataset, Value, load_dataset
from PIL import Image as PILImage
from tiny import NAMES, TinyNet, encode_image, stored_rows, tiny_dataset, tiny_image, tiny_teacher

from hf_reinforce import images, schema
from hf_reinforce.augmentations.policies import POLICY_NAMES, named_policy
from hf_reinforce.cards.dataset_card import write_dataset_card
from hf_reinforce.generation import reinforce as run_of_files
from hf_reinforce.generation.reinforce import reinforce
from hf_reinforce.generation.reinforcer import Reinforcer
from hf_reinforce.hub.load import load_reinforced
from hf_reinforce.images import ImageError
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.store.config import CONFIG_FILE, ReinforcementConfig
from hf_reinforce.targets.class_distribution import KL_BOUND, Targets, rounding_kl

ROWS, SHARDS, CLASSES, TOP_K = 150, 3, 5, 3
OPTIONS = {"num_samples": 2, "top_k": TOP_K, "shard_size": 64, "seed": 5, "device": "cpu"}
DATA = tiny_dataset(ROWS, (20, 36), CLASSES)
RAW = DATA.cast_column("image", Image(decode=False))["image"]
ENCODED = [item["bytes"] for item in RAW]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """`load_dataset` finds a folder in its cache by the folder's name alone, and here they all have the same."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path):
    """`run(policy, name, **options)`: reinforces the data in `tmp_path / name / "plus"`, returns the configuration."""

    def call(policy="rrc", name="one", dataset=DATA, teacher=None, **options):
        policy = named_policy(policy, 16) if isinstance(policy, str) else policy
        teacher = teacher or tiny_teacher(CLASSES)
        return reinforce(dataset, teacher, policy, tmp_path / name / "plus", **OPTIONS | options)

    return call


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """`expected(policy, num_samples)`: the folder of a plain run."""
    found = {}

    def get(policy, num_samples=2):
        if (policy, num_samples) not in found:
            arguments = DATA, tiny_teacher(CLASSES), named_policy(policy, 16), tmp_path_factory.mktemp("e") / "plus"
            found[policy, num_samples] = reinforce(*arguments, **OPTIONS | {"num_samples": num_samples})
        return found[policy, num_samples]

    return get


def place(tmp_path, policy="rrc"):
    return tmp_path / "one" / "plus" / policy


def shards(folder):
    return sorted(folder.glob("*.parquet"))


def rows(folder):
    return [row for shard in shards(folder) for row in pq.read_table(shard).to_pylist()]


def contents(folder):
    """Every file of the repository that holds a configuration, with its bytes."""
    root = folder.parent
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def identities(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards(folder)}


def opened(folder, source=None):
    return load_reinforced(str(folder.parent), folder.name, source=source)


def with_items(broken, length=ROWS, path=None):
    """The first rows of the data, with other bytes, or None, in some."""
    items = [{"bytes": item["bytes"], "path": path and path(row)} for row, item in enumerate(RAW[:length])]
    for row, content in broken.items():
        items[row] = content if content is None else {**items[row], "bytes": content}
    return Dataset.from_dict({"image": items, "label": DATA["label"][:length]}, features=DATA.features)


def largest_divergence(dataset, teacher):
    """Largest KL(teacher on the replayed view || stored target) of all records."""
    worst = 0.0
    for position in range(len(dataset)):
        views = torch.stack([dataset.view(position, slot) for slot in range(dataset.config.num_samples)])
        for slot, answer in enumerate(teacher(views).double()):
            stored = dataset.target(position, slot)
            label, value = (torch.from_numpy(stored[f"target_{name}"])[None] for name in ("label", "value"))
            others = torch.ones(len(answer), dtype=torch.bool).index_fill(0, label[0], False)
            exact = Targets(label, answer[label], answer[others].logsumexp(0)[None])
            worst = max(worst, float(rounding_kl(exact, Targets(label, value, torch.tensor([stored["target_tail"]])))))
    return worst


class Stop(Exception):
    """What ends a run in these tests."""


@contextlib.contextmanager
def stopping(after, error=Stop, ends=Stop):
    """The teacher fails once it has answered to a number of batches; two are a shard."""
    left, forward = after, TinyNet.forward

    def answer(net, pixels):
        nonlocal left
        left -= len(pixels) > 1  # a single image is the teacher counting its classes
        if left < 0:
            raise error
        return forward(net, pixels)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ends):
        patch.setattr(TinyNet, "forward", answer)
        yield


@contextlib.contextmanager
def stopping_at_the_end():
    """The run ends when the first shard with added reinforcements was moved into place."""
    replace, moved = Path.replace, []

    def move(path, target):
        if path.suffix == ".parquet":
            moved.append(path)
            if len(moved) > 1:
                raise Stop
        return replace(path, target)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Path, "replace", move)
        yield


# What is written


def test_a_folder_opens_with_load_dataset(run, tmp_path):
    folder = run("mixing_randaug")
    assert folder == place(tmp_path, "mixing_randaug")
    assert list(folder.parent.iterdir()) == [folder], "cards and pictures are written by others"
    names = {path.name for path in folder.iterdir()}
    assert names == {CONFIG_FILE, *(f"train-{i:05d}-of-00003.parquet" for i in range(SHARDS))}
    write_dataset_card(folder.parent)
    loaded = load_dataset(str(folder.parent), "mixing_randaug", split="train")
    columns = {"teacher_logits": tiny_teacher(CLASSES).target(top_k=TOP_K).column_feature(2)}
    feature = named_policy("mixing_randaug", 16).feature
    assert loaded.features == schema.reinforced_features({"label": DATA.features["label"]}, feature, 2, columns)
    assert loaded.with_format("arrow")[:].to_pylist() == rows(folder)
    assert sorted(loaded[schema.SOURCE_ROW]) == list(range(ROWS))
    streamed = load_dataset(str(folder.parent), "mixing_randaug", split="train", streaming=True)
    assert next(iter(streamed)) == loaded[0]
    for row in rows(folder):
        assert row[schema.IMAGE_HASH] == xxhash.xxh3_64_hexdigest(ENCODED[row[schema.SOURCE_ROW]])
        assert row["label"] == DATA["label"][row[schema.SOURCE_ROW]] and "image" not in row


def test_a_configuration_records_what_made_it(run, tmp_path, monkeypatch):
    config = ReinforcementConfig.load(
        run("mixing", num_samples=3, source_name="me/pets", source_config="big", source_revision="abc")
    )
    assert config.policy == named_policy("mixing", 16)
    assert (config.num_samples, config.classes.top_k, config.num_classes, config.seed) == (3, TOP_K, CLASSES, 5)
    assert config.class_names == NAMES[:CLASSES] and config.classes.class_map is None
    assert config.teachers == tuple(json.loads(json.dumps(tiny_teacher(CLASSES).describe())))
    source = config.source
    assert (source.name, source.config_name, source.revision, source.split) == ("me/pets", "big", "abc", "train")
    assert (source.num_rows, source.image_column, source.label_column) == (ROWS, "image", "label")
    assert source.columns == ("label",)
    assert config.complete and config.shuffled and not config.embed_images and config.skipped == ()
    assert config.shard_size == 64 and config.classes.temperature == 1.0
    monkeypatch.chdir(tmp_path)
    Path("me/pets").mkdir(parents=True)  # a folder is no Hub id
    assert ReinforcementConfig.load(run(source_name="me/pets", dataset=tiny_dataset(4))).source.name == "./me/pets"


def test_reference_views_are_checksums_of_views(expected):
    config = ReinforcementConfig.load(expected("randaug"))
    assert [(view.row, view.slot) for view in config.pixels.reference_views] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    for reference in config.pixels.reference_views:
        image = images.decode(ENCODED[reference.row])
        view = config.policy.apply(image, config.policy.sample(5, reference.row, 0, *image.shape[1:]))
        assert reference.checksum == xxhash.xxh3_64_hexdigest(view.permute(1, 2, 0).contiguous().numpy().tobytes())


def odd_images(encoded, photo):
    small, exif = photo.resize((50, 35)), PILImage.Exif()
    exif[0x0112] = 6  # rotated
    modes = [("WEBP", "RGBA"), ("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "LA"), ("PNG", "1")]
    others = [encode_image(small.quantize(40), "GIF"), encoded(image=small.crop((0, 0, 1, 1)))]
    return [encoded("JPEG", image=small, exif=exif), *(encoded(*mode, small) for mode in modes), *others]


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_stored_targets_are_the_answers_to_the_replayed_views(run, encoded, photo, policy):
    data = with_items(dict(enumerate(odd_images(encoded, photo))), 70)
    dataset = opened(run(policy, dataset=data), data)
    assert len(dataset) == 70
    assert largest_divergence(dataset, tiny_teacher(CLASSES)) <= KL_BOUND
    assert tuple(dataset.image(dataset.position(0)).shape) == (3, 50, 35), "EXIF rotation is applied"


@pytest.mark.parametrize("top_k", [1, CLASSES, None])
def test_targets_of_one_class_of_all_and_of_an_ensemble(run, top_k):
    data, whole, options = tiny_dataset(20, (20, 36), CLASSES), tiny_teacher(CLASSES), {"top_k": top_k}
    if top_k is None:
        data = tiny_dataset(20, (20, 36), 3)
        members = [tiny_teacher(CLASSES, 16, 1).members[0], tiny_teacher(CLASSES, 24, 2).members[0]]
        teacher = type(whole)(members)
        options = {"teacher": teacher, "class_map": [4, 0, 2], "top_k": 2}
        whole = teacher.with_classes(NAMES[:3], [4, 0, 2])
    folder = run(dataset=data, **options)
    assert opened(folder, data).target(0, 0)["target_label"].shape == (options["top_k"],)
    assert largest_divergence(opened(folder, data), whole) <= KL_BOUND
    config = ReinforcementConfig.load(folder)
    assert top_k or (config.classes.class_map, config.num_classes, len(config.teachers)) == ((4, 0, 2), 3, 2)


# What does not change a byte


@pytest.mark.parametrize(
    ("policy", "options", "files"),
    [
        ("mixing_randaug", {"shard_size": 128}, 2),
        ("mixing_randaug", {"shard_size": 4096}, 1),
        ("randaug", {"shard_size": 1}, 3),
        ("randaug", {"num_workers": 0}, 3),
        ("mixing_randaug", {"num_workers": 5}, 3),
    ],
)
def test_neither_shards_nor_workers_change_rows(run, expected, policy, options, files):
    folder = run(policy, **options)
    assert len(shards(folder)) == files and rows(folder) == rows(expected(policy))
    assert "shard_size" in options or contents(folder) == contents(expected(policy))


@pytest.mark.parametrize("policy", ["randaug", "mixing_randaug"])
def test_the_batch_size_changes_no_augmentation(run, expected, policy):
    found, wanted = rows(run(policy, batch_size=2 * PARTNER_BLOCK)), rows(expected(policy))
    for row, other in zip(found, wanted, strict=True):
        assert row[schema.AUGMENTATION_PARAMS] == other[schema.AUGMENTATION_PARAMS]
        for mine, theirs in zip(row["teacher_logits"], other["teacher_logits"], strict=True):
            # The last bits of the network's answer may move it to the next level of the codebook.
            assert mine["value"] == pytest.approx(theirs["value"], abs=0.05)


class Rank:
    """One process of several, as accelerate describes it."""

    def __init__(self, index, count, others):
        self.process_index, self.num_processes, self.is_main_process = index, count, index == 0
        self.device, self.others = torch.device("cpu"), others

    def wait_for_everyone(self):
        if self.others is not None:
            others, self.others = self.others, None
            others()


@pytest.mark.parametrize("world", [2, 5])
def test_the_number_of_processes_changes_nothing(run, expected, monkeypatch, world):
    written, write = [], run_of_files.write_shard

    def run_as(index, others=None):
        def note(path, *arguments):
            written.append((index, path.name))
            write(path, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(accelerate, "PartialState", lambda *args, **options: Rank(index, world, others))
            patch.setattr(run_of_files, "write_shard", note)
            return run("mixing_randaug")

    folder = run_as(0, lambda: [run_as(index) for index in range(1, world)])
    assert contents(folder) == contents(expected("mixing_randaug"))
    assert sorted(written) == sorted((i % world, f"train-{i:05d}-of-00003.parquet") for i in range(SHARDS))


def test_a_stream_gives_the_same_rows(run, expected):
    folder = run("randaug", dataset=DATA.to_iterable_dataset(num_shards=7))
    assert rows(folder) == rows(expected("randaug"))
    assert [path.name for path in shards(folder)] == [f"train-{i:05d}.parquet" for i in range(SHARDS)]
    config = ReinforcementConfig.load(folder)
    assert config.source.num_rows is None and config.complete
    assert config.pixels == ReinforcementConfig.load(expected("randaug")).pixels
    assert opened(folder, DATA)._rows.tolist() == list(range(ROWS))


def test_a_stream_is_mixed_in_its_own_order_as_a_map_is(run):
    folder = run("mixing", dataset=DATA.to_iterable_dataset())
    assert [row[schema.SOURCE_ROW] for row in rows(folder)] == list(range(ROWS))
    assert not ReinforcementConfig.load(folder).shuffled
    assert largest_divergence(opened(folder, DATA), tiny_teacher(CLASSES)) <= KL_BOUND
    reinforcer = Reinforcer(tiny_teacher(CLASSES), named_policy("mixing", 16), 2, 5, label_column="label", top_k=TOP_K)
    mapped = DATA.with_format("arrow").map(
        reinforcer,
        batched=True,
        batch_size=PARTNER_BLOCK,
        with_indices=True,
        remove_columns=["image"],
        features=reinforcer.features(DATA.features),
    )
    assert mapped.with_format("arrow")[:].to_pylist() == rows(folder)
    assert mapped.features == stored_rows(folder).features


def test_a_stream_whose_columns_change_their_order(run):
    def samples():
        for row, item in enumerate(RAW):
            pairs = [("image", item), ("label", row % CLASSES), ("__url__", "somewhere.tar")]
            yield dict(pairs if row < 5 else pairs[::-1])

    features = Features({**DATA.cast_column("image", Image(decode=False)).features, "__url__": Value("string")})
    folder = run(dataset=IterableDataset.from_generator(samples, features=features), num_samples=1)
    assert "__url__" not in ReinforcementConfig.load(folder).source.columns and len(rows(folder)) == ROWS


# Mixing


def test_partners_are_reciprocal_in_the_same_shard_and_of_all_classes(run):
    by_label = DATA.select(sorted(range(ROWS), key=DATA["label"].__getitem__))
    pairing, label = {}, by_label["label"]
    for shard in shards(run("mixing", dataset=by_label, num_samples=4)):
        table = pq.read_table(shard).to_pylist()
        there = {row[schema.SOURCE_ROW] for row in table}
        for row in table:
            for slot, params in enumerate(row[schema.AUGMENTATION_PARAMS]):
                mixed = params["mixup"] is not None or params["cutmix"] is not None
                assert (params[schema.PARTNER_ROW] is not None) == mixed
                if mixed:
                    assert params[schema.PARTNER_ROW] in there
                    pairing[row[schema.SOURCE_ROW], slot] = params[schema.PARTNER_ROW]
    for (row, slot), partner in pairing.items():
        assert pairing.get((partner, slot), row) == row
    partners_of_first = [pairing[key] for key in pairing if key[0] == next(iter(pairing))[0]]
    assert len(set(partners_of_first)) == len(partners_of_first), "every slot has a pairing of its own"
    seen = [(label[row], label[partner]) for (row, _), partner in pairing.items()]
    assert len(seen) > ROWS and len(set(seen)) == CLASSES**2
    assert sum(mine != theirs for mine, theirs in seen) / len(seen) > 0.7  # 0.8 by chance


# Interruption


BROKEN = {3: b"", 70: ENCODED[70][: len(ENCODED[70]) // 2], 149: b"x"}
SKIPPING = {"dataset": with_items(BROKEN), "on_error": "skip"}


@pytest.mark.parametrize(
    ("policy", "options", "error"),
    [
        ("randaug", {}, Stop),
        ("mixing_randaug", {}, KeyboardInterrupt),
        ("mixing", SKIPPING, Stop),
        ("randaug", {"dataset": DATA.to_iterable_dataset(num_shards=3)}, Stop),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(run, expected, tmp_path, caplog, policy, options, error):
    with stopping(5, error, Stop if error is Stop else SystemExit):  # two answers a shard: the third is under way
        run(policy, **options)
    folder = place(tmp_path, policy)
    finished = identities(folder)
    assert len(finished) == 2 and not ReinforcementConfig.load(folder).complete
    assert error is Stop or "2 of 3 shards are done" in caplog.text
    with pytest.raises(ValueError, match="not finished"):
        opened(folder)
    with pytest.raises(ValueError, match="not complete yet; finish it with num_samples=2"):
        run(policy, num_samples=4, **options)
    (folder / ".train-00001-of-00003.parquet.tmp-123").write_bytes(b"half")  # that a killed run left
    assert run(policy, **options) == folder
    assert contents(folder) == contents(run(policy, "whole", **options) if options else expected(policy))
    assert finished.items() <= identities(folder).items(), "a finished shard is not written again"


# Raising num_samples


def cut(found, num_samples):
    """Rows with their first reinforcements alone."""
    lists = (schema.AUGMENTATION_PARAMS, "teacher_logits")
    return [{**row, **{name: row[name][:num_samples] for name in lists}} for row in found]


@pytest.mark.parametrize("policy", ["randaug", "mixing_randaug"])
def test_more_reinforcements_are_added_to_the_existing_ones(run, expected, monkeypatch, policy):
    folder = run(policy)
    before, views, forward = rows(folder), [], TinyNet.forward
    assert opened(folder, DATA).config.num_samples == 2
    with monkeypatch.context() as patch:
        patch.setattr(TinyNet, "forward", lambda net, pixels: views.append(len(pixels)) or forward(net, pixels))
        run(policy, num_samples=4)
    assert sum(size for size in views if size > 2) == 2 * ROWS, "only what is new is computed"
    assert cut(rows(folder), 2) == before and contents(folder) == contents(expected(policy, 4))
    dataset = opened(folder, DATA)  # which was loaded before
    position = dataset.position(7)
    stored = next(row for row in rows(folder) if row[schema.SOURCE_ROW] == 7)
    assert [dataset.params(position, slot) for slot in range(4)] == stored[schema.AUGMENTATION_PARAMS]


@pytest.mark.parametrize("options", [{"embed_images": True}, SKIPPING], ids=["embedded", "skipped"])
def test_added_with_embedded_and_with_skipped_images(run, options):
    folder = run("mixing", **options)
    before, skipped = rows(folder), ReinforcementConfig.load(folder).skipped
    run("mixing", num_samples=4, **options)
    assert cut(rows(folder), 2) == before and ReinforcementConfig.load(folder).skipped == skipped
    assert contents(folder) == contents(run("mixing", "fresh", num_samples=4, **options))


@pytest.mark.parametrize("policy", ["randaug", "mixing_randaug"])
def test_an_interrupted_addition_is_resumed(run, expected, policy):
    folder = run(policy)
    before = rows(folder)
    with stopping(3):
        run(policy, num_samples=4)
    assert rows(folder) == before and ReinforcementConfig.load(folder).num_samples == 2
    assert len(opened(folder, DATA)) == ROWS, "the folder holds a complete dataset at any time"
    (staged,) = folder.glob(".*/*.parquet")
    (staged.parent / ".train-00001-of-00003.parquet.tmp-123").write_bytes(b"half")
    finished = staged.stat().st_ino
    run(policy, num_samples=4)
    assert contents(folder) == contents(expected(policy, 4))
    assert (folder / staged.name).stat().st_ino == finished, "a finished shard is not written again"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_an_addition_interrupted_at_its_very_end_is_resumed_and_nothing_else(run, expected):
    run("randaug")
    with stopping_at_the_end():
        run("randaug", num_samples=4)
    for asked in (2, 5):  # neither the old data nor a larger number
        with pytest.raises(ValueError, match="finish it with num_samples=4 first"):
            run("randaug", num_samples=asked)
    assert contents(run("randaug", num_samples=4)) == contents(expected("randaug", 4))


def test_a_larger_number_may_be_given_up(run, expected):
    run("randaug")
    with stopping(3):
        run("randaug", num_samples=5)
    assert contents(run("randaug", num_samples=4)) == contents(expected("randaug", 4))


def test_more_reinforcements_of_changed_images_are_refused(run):
    folder = run()
    before = contents(folder)
    with pytest.raises(ValueError, match="not those that the existing reinforcements belong to"):
        run(dataset=with_items({100: encode_image(tiny_image(1000))}), num_samples=3)
    assert before.items() <= contents(folder).items()


# Other sources


@pytest.mark.parametrize("policy", ["randaug", "mixing"])
def test_embedded_images(run, expected, policy):
    folder = run(policy, embed_images=True)
    loaded = stored_rows(folder)
    assert loaded.features["image"] == Image()
    for row, stored in zip(rows(folder), rows(expected(policy)), strict=True):
        assert row["image"]["bytes"] == ENCODED[row[schema.SOURCE_ROW]]
        assert {name: row[name] for name in stored} == stored
    dataset, replayed = opened(folder), opened(expected(policy), DATA)  # the first needs no source
    for position in range(0, ROWS, 30):
        assert dataset[position]["labels"] == DATA["label"][int(dataset._rows[position])]
        assert torch.equal(dataset.view(position, 1), replayed.view(position, 1))


def test_a_data_set_without_labels(run):
    data = tiny_dataset(20, (20, 36), labels=0)
    folder = run("mixing", dataset=data)
    config = ReinforcementConfig.load(folder)
    assert config.source.label_column is None and config.class_names is None and config.num_classes == CLASSES
    assert set(rows(folder)[0]) == {*schema.REINFORCEMENT_COLUMNS, "teacher_logits"}
    dataset = opened(folder, data)
    assert "labels" not in dataset[0] and largest_divergence(dataset, tiny_teacher(CLASSES)) <= KL_BOUND
    left_out = run(dataset=tiny_dataset(8, labels=7), label_column="")  # these would not fit the teacher
    source = ReinforcementConfig.load(left_out).source
    assert source.label_column is None and source.columns == ("label",)


def test_further_columns_are_kept_and_columns_chosen(run):
    data = tiny_dataset(8, (20, 36), CLASSES).add_column("note", [f"n{i}" for i in range(8)])
    data = data.add_column("coarse", list(range(8))).rename_columns({"image": "picture", "label": "fine"})
    data = data.add_column("depth", RAW[:8]).cast_column("depth", Image())
    with pytest.raises(ValueError, match=r"\['picture', 'depth'\] hold images. Name one with image_column"):
        run(dataset=data)
    folder = run(dataset=data, image_column="depth", label_column="fine")
    names = ["picture", "fine", "note", "coarse"]
    assert list(rows(folder)[0]) == [*names, *schema.REINFORCEMENT_COLUMNS, "teacher_logits"]
    assert [row["note"] for row in rows(folder)] == data["note"]
    source = ReinforcementConfig.load(folder).source
    assert (source.image_column, source.label_column, source.columns) == ("depth", "fine", tuple(names))


def test_images_that_are_files(run, tmp_path):
    for row, image in enumerate(tiny_dataset(12, (20, 36), CLASSES)["image"]):
        path = tmp_path / "pictures" / NAMES[row % CLASSES] / f"{row:02d}.{'jpg' if row % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    source = load_dataset("imagefolder", data_dir=str(tmp_path / "pictures"), split="train")
    paths = [item["path"] for item in source.cast_column("image", Image(decode=False))["image"]]
    folder = run("mixing", dataset=source, source_name=str(tmp_path / "pictures"))
    for row in rows(folder):
        file = Path(paths[row[schema.SOURCE_ROW]])
        assert row[schema.IMAGE_HASH] == xxhash.xxh3_64_hexdigest(file.read_bytes())
        assert NAMES[row["label"]] == file.parent.name
    assert largest_divergence(opened(folder), tiny_teacher(CLASSES)) <= KL_BOUND  # found by its recorded name
    stream = load_dataset("imagefolder", data_dir=str(tmp_path / "pictures"), split="train", streaming=True)
    assert rows(run("rrc", "stream", stream)) == rows(run("rrc", "map", source))


# Images that cannot be read


@pytest.mark.parametrize("content", [BROKEN[70], b"", b"<html>not found</html>", None])
def test_an_unreadable_image_stops_the_run(run, expected, tmp_path, content):
    path = lambda row: f"pictures/{row}.png"
    said = "there is no image" if content is None else "the image cannot be decoded"
    named = "None" if content is None else "'pictures/70.png'"
    with pytest.raises(ImageError, match=f"Row 70 .path {named}.: {said}"):
        run(dataset=with_items({70: content}, path=path))
    assert not ReinforcementConfig.load(place(tmp_path)).complete
    assert [path.name for path in shards(place(tmp_path))] == ["train-00000-of-00003.parquet"]
    assert rows(run(dataset=with_items({}, path=path))) == rows(expected("rrc")), "once mended the run goes on"


@pytest.mark.parametrize("policy", ["randaug", "mixing"])
def test_an_unreadable_image_is_recorded_and_left_out(run, expected, policy, caplog):
    broken = with_items({**BROKEN, 149: None})
    with caplog.at_level(logging.INFO, "hf_reinforce"):
        folder = run(policy, dataset=broken, on_error="skip")
    assert f"{folder} holds {ROWS - 3} images with 2 reinforcements each, in {SHARDS} shards" in caplog.text
    assert f"3 images were skipped and are missing; {folder / CONFIG_FILE} lists them, the first: Row " in caplog.text
    config = ReinforcementConfig.load(folder)
    assert sorted(item.row for item in config.skipped) == [3, 70, 149]
    assert all(item.error.startswith(f"Row {item.row} (path None): ") for item in config.skipped)
    assert not any(" at 0x" in item.error for item in config.skipped), "an address differs from run to run"
    found, alike = rows(folder), 0
    assert sorted(row[schema.SOURCE_ROW] for row in found) == [i for i in range(ROWS) if i not in BROKEN]
    whole = {row[schema.SOURCE_ROW]: row for row in rows(expected(policy))}
    for row in found:
        other = whole[row[schema.SOURCE_ROW]][schema.AUGMENTATION_PARAMS]
        for mine, theirs in zip(row[schema.AUGMENTATION_PARAMS], other, strict=True):
            if policy == "randaug" or theirs[schema.PARTNER_ROW] not in BROKEN:
                assert mine == theirs
                alike += 1
            else:
                assert mine["mixup"] is mine["cutmix"] is mine[schema.PARTNER_ROW] is None
                assert mine["crop"] == theirs["crop"]
    assert alike >= 2 * (ROWS - 3) - 6
    assert largest_divergence(opened(folder, broken), tiny_teacher(CLASSES)) <= KL_BOUND


@pytest.mark.parametrize("bad", [range(64), range(70, ROWS), range(64, 128)], ids=["first", "last", "middle"])
def test_a_shard_without_a_readable_image(run, bad):
    folder = run(dataset=with_items(dict.fromkeys(bad, b"")), on_error="skip")
    config = ReinforcementConfig.load(folder)
    assert config.complete and {item.row for item in config.skipped} == set(bad)
    assert list(stored_rows(folder)[schema.SOURCE_ROW]) == [row for row in range(ROWS) if row not in bad]


def test_an_image_whose_boxes_do_not_fit_is_an_error_of_its_row(run):
    narrow = with_items({4: encode_image(PILImage.new("L", (3000, 1)))}, 6)
    with pytest.raises(ImageError, match="Row 4 .*too narrow"):
        run("small_crop", dataset=narrow)
    assert len(rows(run(dataset=narrow))) == 6
    config = ReinforcementConfig.load(run("small_crop", "skip", narrow, on_error="skip"))
    assert [item.row for item in config.skipped] == [4]


# What else is refused


def labelled(labels, feature):
    features = Features({"image": Image(), "label": feature})
    return Dataset.from_dict({"image": RAW[: len(labels)], "label": labels}, features=features)


INTEGERS = {label: labelled([0, 1, label, 4], Value("int64")) for label in (-1, CLASSES)}
EMPTY = IterableDataset.from_generator(lambda: iter(()), features=DATA.features)
REFUSED = [
    ({"dataset": tiny_dataset(8, labels=4)}, r"Dataset \(4\): ant, bee, cat, dog. Teacher \(5\)"),
    ({"dataset": INTEGERS[-1]}, "Row 2 has the label -1, but the teacher's classes are 0 to 4"),
    ({"dataset": INTEGERS[CLASSES]}, "Row 2 has the label 5, but the teacher's classes are 0 to 4"),
    ({"dataset": labelled([0, -1], DATA.features["label"])}, "Row 1 has the label -1"),
    ({"dataset": labelled(["ant", "bee"], Value("string"))}, "The label column 'label' holds .*not class indices"),
    ({"dataset": tiny_dataset(4).add_column(schema.IMAGE_HASH, ["x"] * 4)}, "rename_column"),
    ({"dataset": tiny_dataset(4).to_iterable_dataset().map(lambda row: row)}, "does not know its columns"),
    ({"dataset": DATA.select([]), "split": "test"}, "'test' has no rows; there is nothing to reinforce"),
    ({"dataset": EMPTY, "split": "test"}, "'test' has no rows; there is nothing to reinforce"),
    ({"top_k": CLASSES + 1}, f"top_k must lie between 1 and the {CLASSES} classes, not 6"),
    ({"top_k": 0}, f"top_k must lie between 1 and the {CLASSES} classes, not 0"),
    ({"num_samples": 0}, "^num_samples must be at least 1, not 0"),
    ({"shard_size": -5}, "^shard_size must be at least 1, not -5"),
    ({"batch_size": 0}, "^batch_size must be at least 1, not 0"),
    ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip', not 'ignore'"),
    ({"num_worker": 1}, "keyword argument 'num_worker'"),
    ({"temperature": 2.0}, "keyword argument 'temperature'"),
    ({"first_sample": 1}, "keyword argument 'first_sample'"),
    ({"teacher": "me/teacher"}, "Pass what load_teacher.NAME. and load_policy"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_does_not_fit_is_refused_before_anything_is_written(run, tmp_path, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(**options)
    assert not place(tmp_path).exists()


def test_what_shows_only_while_it_runs(run, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="No image could be decoded; Row 0 "):
        run(dataset=with_items(dict.fromkeys(range(10), b""), 10), on_error="skip")
    teacher = tiny_teacher(CLASSES)
    monkeypatch.setattr(TinyNet, "forward", lambda net, pixels: torch.full((len(pixels), CLASSES), torch.nan))
    with pytest.raises(ValueError, match="answered with nan"):
        run("randaug", teacher=teacher)
    assert shards(place(tmp_path, "randaug")) == []


def test_a_reinforcer_refuses_other_batches():
    reinforcer = Reinforcer(tiny_teacher(CLASSES), named_policy("mixing", 16), 1, top_k=TOP_K)
    batch = DATA.cast_column("image", Image(decode=False)).with_format("arrow")[:100]
    with pytest.raises(ValueError, match="batch_size=64, or a multiple of it"):
        reinforcer(batch.slice(0, 50), range(50, 100))
    with pytest.raises(ValueError, match='with_format."arrow"'):
        reinforcer({"image": []}, [])
    with pytest.raises(TypeError, match="not the names"):
        Reinforcer(tiny_teacher(CLASSES), "mixing", 1)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("seed", {"seed": 6}),
        ("top_k: 2, not 3; .*seed: 6, not 5; .*shard_size", {"top_k": 2, "seed": 6, "shard_size": 128}),
        ("embed_images", {"embed_images": True}),
        ("source", {"source_name": "me/pets"}),
        ("source", {"split": "test"}),
        ("teachers", {"teacher": tiny_teacher(CLASSES, 16, 9)}),
        ("teachers", {"teacher": tiny_teacher(CLASSES, 24)}),
        ("class_map", {"class_map": [0, 1, 2, 3, 4]}),
        ("policy.operations", {"policy": named_policy("rrc", 24)}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_another_configuration_is_refused(run, expected, tmp_path, field, options):
    folder = place(tmp_path)
    folder.mkdir(parents=True)
    before = contents(expected("rrc"))
    for name, content in before.items():
        (folder.parent / name).write_bytes(content)
    for num_samples in (2, 4):
        with pytest.raises(ValueError, match=rf"made differently: .*{field}[.a-z]*: .*, not .*another output folder"):
            run(**{"num_samples": num_samples, **options})
    with pytest.raises(ValueError, match="already has 2 reinforcements per image"):
        run(num_samples=1)
    assert contents(folder) == before


def test_a_folder_that_cannot_be_read_is_not_overwritten(run):
    file = run() / CONFIG_FILE
    file.write_text("{")
    with pytest.raises(ValueError, match=f"{CONFIG_FILE} cannot be used"):
        run()
    assert file.read_text() == "{"
