import contextlib
import json
import logging
import os
import zlib
from pathlib import Path

import accelerate
import datasets
import pyarrow as pa
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
from hf_reinforce.targets.class_distribution import KL_BOUND, Targets, encode, rounding_kl, top_k_targets

ROWS, SHARDS, CLASSES, TOP_K = 150, 3, 5, 3
IMAGE = Image(decode=False)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """`load_dataset` finds a folder in its cache by the folder's name alone, and here they all have the same."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def data():
    return tiny_dataset(ROWS, (20, 36), CLASSES)


@pytest.fixture
def run(data, tmp_path):
    """`run(policy, name, **options)`: reinforces the data in `tmp_path / name / "plus"`, returns the configuration."""

    def call(policy="rrc", name="one", dataset=data, teacher=None, **options):
        settings = {"num_samples": 2, "top_k": TOP_K, "shard_size": 64, "seed": 5, "device": "cpu", **options}
        teacher = teacher or tiny_teacher(CLASSES)
        return reinforce(dataset, teacher, named_policy(policy, 16), tmp_path / name / "plus", **settings)

    return call


@pytest.fixture
def place(tmp_path):
    """`place(policy, name)`: where `run` puts its result."""
    return lambda policy, name="one": tmp_path / name / "plus" / policy


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


def largest_divergence(dataset, teacher):
    """Largest KL(teacher on the replayed view || stored target) of all records."""
    worst = 0.0
    for position in range(len(dataset)):
        views = torch.stack([dataset.view(position, slot) for slot in range(dataset.config.num_samples)])
        answers = teacher(views).double()
        for slot, answer in enumerate(answers):
            stored = dataset.target(position, slot)
            label = torch.from_numpy(stored["target_label"])[None]
            others = torch.ones(len(answer), dtype=torch.bool).index_fill(0, label[0], False)
            tail = answer[others].logsumexp(0) if others.any() else torch.tensor(-torch.inf)
            exact = Targets(label, answer[label], tail[None])
            found = Targets(
                label, torch.from_numpy(stored["target_value"])[None], torch.tensor([stored["target_tail"]])
            )
            worst = max(worst, float(rounding_kl(exact, found)))
    return worst


class Stop(Exception):
    """What ends a run in these tests."""


@contextlib.contextmanager
def stopping(monkeypatch, after, error=Stop, ends=Stop):
    """The teacher fails once it has answered to a number of batches."""
    left, forward = after, TinyNet.forward

    def answer(net, pixels):
        nonlocal left
        if len(pixels) > 1:  # a single image is the teacher counting its classes
            left -= 1
            if left < 0:
                raise error
        return forward(net, pixels)

    with monkeypatch.context() as patch, pytest.raises(ends):
        patch.setattr(TinyNet, "forward", answer)
        yield


# What is written


def test_a_folder_opens_with_load_dataset(run, data, tmp_path):
    folder = run("mixing_randaug")
    assert folder == tmp_path / "one" / "plus" / "mixing_randaug"
    write_dataset_card(folder.parent)
    loaded = load_dataset(str(folder.parent), "mixing_randaug", split="train")
    policy = named_policy("mixing_randaug", 16)
    target = tiny_teacher(CLASSES).target(top_k=TOP_K)
    assert loaded.features == schema.reinforced_features(
        {"label": data.features["label"]}, policy.feature, 2, {"teacher_logits": target.column_feature(2)}
    )
    assert loaded.with_format("arrow")[:].to_pylist() == rows(folder)
    assert sorted(loaded[schema.SOURCE_ROW]) == list(range(ROWS))
    streamed = load_dataset(str(folder.parent), "mixing_randaug", split="train", streaming=True)
    assert next(iter(streamed)) == loaded[0]


def test_files_of_a_run(run):
    folder = run()
    names = {path.name for path in folder.iterdir()}
    assert names == {CONFIG_FILE, *(f"train-{i:05d}-of-00003.parquet" for i in range(SHARDS))}
    assert list(folder.parent.iterdir()) == [folder], "cards and pictures are written by others"


def test_rows_say_which_image_they_belong_to(run, data):
    for row in rows(run("mixing")):
        source = data.cast_column("image", IMAGE)[row[schema.SOURCE_ROW]]
        assert row[schema.IMAGE_HASH] == xxhash.xxh3_64_hexdigest(source["image"]["bytes"])
        assert row["label"] == source["label"]
        assert "image" not in row


def test_a_configuration_records_what_made_it(run, data):
    folder = run("mixing", num_samples=3, source_name="me/pets", source_config="big", source_revision="abc")
    config = ReinforcementConfig.load(folder)
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


def test_a_folder_is_no_hub_id_in_the_record(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "pets").mkdir(parents=True)
    assert ReinforcementConfig.load(run(source_name="me/pets", dataset=tiny_dataset(4))).source.name == "./me/pets"
    assert ReinforcementConfig.load(run(name="two", dataset=tiny_dataset(4))).source.name is None


def test_reference_views_are_checksums_of_views(run, data):
    config = ReinforcementConfig.load(run("randaug"))
    assert [(view.row, view.slot) for view in config.pixels.reference_views] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    for reference in config.pixels.reference_views:
        image = images.decode(data.cast_column("image", IMAGE)[reference.row]["image"]["bytes"])
        params = config.policy.sample(5, reference.row, 0, *image.shape[1:])
        view = config.policy.apply(image, params)
        assert reference.checksum == xxhash.xxh3_64_hexdigest(view.permute(1, 2, 0).contiguous().numpy().tobytes())


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_stored_targets_are_the_answers_to_the_replayed_views(run, policy):
    data = tiny_dataset(70, (20, 36), CLASSES)
    dataset = opened(run(policy, dataset=data, num_samples=3), data)
    assert len(dataset) == 70
    assert largest_divergence(dataset, tiny_teacher(CLASSES)) <= KL_BOUND


@pytest.mark.parametrize("top_k", [1, CLASSES])
def test_targets_of_one_class_and_of_all(run, top_k):
    data = tiny_dataset(20, (20, 36), CLASSES)
    dataset = opened(run(dataset=data, top_k=top_k), data)
    assert dataset.target(0, 0)["target_label"].shape == (top_k,)
    assert largest_divergence(dataset, tiny_teacher(CLASSES)) <= KL_BOUND


def test_stored_targets_are_those_of_the_encoder(run, data):
    """The rows of an unmixed policy, made without the package's Reinforcer."""
    policy, teacher = named_policy("rrc", 16), tiny_teacher(CLASSES)
    found = rows(run(num_samples=2))
    encoded = [item["bytes"] for item in data.cast_column("image", IMAGE)["image"]]
    for slot in range(2):
        views, params = [], []
        for row in range(64):
            image = images.decode(encoded[row])
            params.append(policy.sample(5, row, slot, *image.shape[1:]))
            views.append(policy.apply(image, params[-1]))
        targets = encode(top_k_targets(teacher(torch.stack(views)), TOP_K))
        for row in range(64):
            stored = found[row]["teacher_logits"][slot]
            assert found[row][schema.AUGMENTATION_PARAMS][slot] == params[row]
            assert stored["label"] == targets.label[row].tolist()
            assert stored["value"] == targets.value[row].tolist()
            assert stored["tail"] == targets.tail[row].item()


def test_a_class_map_and_an_ensemble(run):
    data = tiny_dataset(20, (20, 36), 3)
    first, second = tiny_teacher(CLASSES, 16, 1).members[0], tiny_teacher(CLASSES, 24, 2).members[0]
    teacher = type(tiny_teacher())([first, second])
    folder = run(dataset=data, teacher=teacher, class_map=[4, 0, 2], top_k=2)
    config = ReinforcementConfig.load(folder)
    assert config.classes.class_map == (4, 0, 2) and config.num_classes == 3 and len(config.teachers) == 2
    whole = teacher.with_classes(NAMES[:3], [4, 0, 2])
    assert largest_divergence(opened(folder, data), whole) <= KL_BOUND


def test_other_classes_are_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(ValueError, match=r"Dataset \(4\): ant, bee, cat, dog. Teacher \(5\)"):
        run(dataset=tiny_dataset(8, labels=4))
    assert not (tmp_path / "one").exists()


# What does not change a byte


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    """Policy -> rows of a plain run."""
    found = {}

    def get(policy):
        if policy not in found:
            folder = tmp_path_factory.mktemp("expected") / "plus"
            options = {"num_samples": 2, "top_k": TOP_K, "shard_size": 64, "seed": 5, "device": "cpu"}
            found[policy] = reinforce(data, tiny_teacher(CLASSES), named_policy(policy, 16), folder, **options)
        return found[policy]

    return get


@pytest.mark.parametrize(
    ("policy", "shard_size", "files"), [("mixing_randaug", 128, 2), ("mixing_randaug", 4096, 1), ("randaug", 1, 3)]
)
def test_the_shard_size_does_not_change_rows(run, expected, policy, shard_size, files):
    folder = run(policy, shard_size=shard_size)
    assert len(shards(folder)) == files
    assert rows(folder) == rows(expected(policy))


@pytest.mark.parametrize(("policy", "num_workers"), [("randaug", 0), ("mixing_randaug", 1), ("mixing_randaug", 5)])
def test_the_number_of_workers_changes_nothing(run, expected, policy, num_workers):
    assert contents(run(policy, num_workers=num_workers)) == contents(expected(policy))


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

    def __init__(self, index, count, others=None):
        self.process_index, self.num_processes, self.is_main_process = index, count, index == 0
        self.device, self.others = torch.device("cpu"), others

    def main_process_first(self):
        return contextlib.nullcontext()

    def wait_for_everyone(self):
        if self.others is not None:
            others, self.others = self.others, None
            others()


@pytest.mark.parametrize(("policy", "world"), [("randaug", 2), ("mixing_randaug", 3), ("mixing_randaug", 5)])
def test_the_number_of_processes_changes_nothing(run, expected, monkeypatch, policy, world):
    written, write = [], run_of_files.write_shard

    def run_as(index, others=None):
        def note(path, *arguments):
            written.append((index, path.name))
            write(path, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(accelerate, "PartialState", lambda *args, **options: Rank(index, world, others))
            patch.setattr(run_of_files, "write_shard", note)
            return run(policy)

    folder = run_as(0, lambda: [run_as(index) for index in range(1, world)])
    assert contents(folder) == contents(expected(policy))
    assert sorted(written) == sorted((i % world, f"train-{i:05d}-of-00003.parquet") for i in range(SHARDS))


@pytest.mark.parametrize("policy", ["rrc", "randaug"])
def test_a_stream_gives_the_same_rows(run, data, expected, policy):
    folder = run(policy, dataset=data.to_iterable_dataset(num_shards=7))
    assert rows(folder) == rows(expected(policy))
    assert [path.name for path in shards(folder)] == [f"train-{i:05d}.parquet" for i in range(SHARDS)]
    config = ReinforcementConfig.load(folder)
    assert config.source.num_rows is None and config.complete
    assert config.pixels == ReinforcementConfig.load(expected(policy)).pixels
    assert opened(folder, data)._rows.tolist() == list(range(ROWS))


def test_a_stream_is_mixed_in_its_own_order(run, data):
    folder = run("mixing", dataset=data.to_iterable_dataset(), num_samples=3)
    found = rows(folder)
    assert [row[schema.SOURCE_ROW] for row in found] == list(range(ROWS))
    assert not ReinforcementConfig.load(folder).shuffled
    assert largest_divergence(opened(folder, data), tiny_teacher(CLASSES)) <= KL_BOUND


def test_a_stream_is_resumed(run, data, monkeypatch):
    stream = data.to_iterable_dataset(num_shards=3)
    whole = run("randaug", "whole", stream)
    with stopping(monkeypatch, after=5):
        run("randaug", "stopped", stream)
    assert contents(run("randaug", "stopped", stream)) == contents(whole)


@pytest.mark.parametrize("policy", ["randaug", "mixing"])
def test_mapping_a_reinforcer_gives_the_same_rows(run, data, policy):
    reinforcer = Reinforcer(tiny_teacher(CLASSES), named_policy(policy, 16), 2, 5, label_column="label", top_k=TOP_K)
    mapped = data.with_format("arrow").map(
        reinforcer,
        batched=True,
        batch_size=PARTNER_BLOCK,
        with_indices=True,
        remove_columns=["image"],
        features=reinforcer.features(data.features),
    )
    # A map walks the dataset in its own order, as a stream does.
    folder = run(policy, dataset=data.to_iterable_dataset())
    assert mapped.with_format("arrow")[:].to_pylist() == rows(folder)
    assert mapped.features == stored_rows(folder).features


def test_a_reinforcer_refuses_other_batches(data):
    reinforcer = Reinforcer(tiny_teacher(CLASSES), named_policy("mixing", 16), 1, top_k=TOP_K)
    batch = data.cast_column("image", IMAGE).with_format("arrow")[:100]
    with pytest.raises(ValueError, match="batch_size=64, or a multiple of it"):
        reinforcer(batch.slice(0, 50), range(50, 100))
    with pytest.raises(ValueError, match='with_format."arrow"'):
        reinforcer({"image": []}, [])


@pytest.mark.parametrize("policy", ["rrc", "mixing"])
def test_several_blocks_at_once_are_the_blocks_one_by_one(data, policy):
    data = data.cast_column("image", IMAGE).with_format("arrow")
    told = []

    def table(*starts):
        reinforcer = Reinforcer(tiny_teacher(CLASSES), named_policy(policy, 16), 3, top_k=TOP_K)
        reinforcer.report = told.append
        stops = [*starts[1:], len(data)]
        tables = [reinforcer(data[a:b], range(a, b)) for a, b in zip(starts, stops, strict=True)]
        return pa.concat_tables(tables)

    assert table(0) == table(0, 64, 128) == table(0, 128)
    assert sum(told) == 3 * 3 * len(data), "every view is reported once"


def test_another_seed_gives_other_augmentations(run, expected):
    found, other = rows(run(seed=6)), rows(expected("rrc"))
    same = [a[schema.AUGMENTATION_PARAMS] == b[schema.AUGMENTATION_PARAMS] for a, b in zip(found, other, strict=True)]
    assert not any(same)


# Mixing


def test_a_sorted_data_set_is_mixed_across_classes(run, data):
    by_label = data.select(sorted(range(ROWS), key=data["label"].__getitem__))
    folder = run("mixing", dataset=by_label, num_samples=4)
    label = by_label["label"]
    seen = [
        (label[row[schema.SOURCE_ROW]], label[params[schema.PARTNER_ROW]])
        for row in rows(folder)
        for params in row[schema.AUGMENTATION_PARAMS]
        if params[schema.PARTNER_ROW] is not None
    ]
    assert len(seen) > ROWS
    across = sum(mine != theirs for mine, theirs in seen) / len(seen)
    assert across > 0.7  # 0.8 by chance
    assert len(set(seen)) == CLASSES**2


def test_partners_are_reciprocal_and_in_the_same_shard(run):
    folder = run("mixing", num_samples=4)
    pairing = {}
    for shard in shards(folder):
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


# Interruption


@pytest.mark.parametrize(("policy", "error"), [("randaug", Stop), ("mixing_randaug", KeyboardInterrupt)])
def test_interrupted_and_resumed_equals_uninterrupted(run, expected, place, monkeypatch, caplog, policy, error):
    ends = Stop if error is Stop else SystemExit
    with stopping(monkeypatch, after=5, error=error, ends=ends):  # two answers a shard: the third one is under way
        run(policy)
    folder = place(policy)
    finished = identities(folder)
    assert len(finished) == 2 and not ReinforcementConfig.load(folder).complete
    assert error is Stop or "2 of 3 shards are done" in caplog.text
    with pytest.raises(ValueError, match="not finished"):
        opened(folder)
    assert run(policy) == folder
    assert contents(folder) == contents(expected(policy))
    after = identities(folder)
    assert {name: after[name] for name in finished} == finished, "a finished shard is not written again"


def test_a_finished_run_is_not_computed_again(run, expected, monkeypatch):
    folder = run()
    before = identities(folder)
    monkeypatch.setattr(Reinforcer, "__call__", None)
    run()
    assert identities(folder) == before and contents(folder) == contents(expected("rrc"))


def test_a_file_that_a_killed_run_left_behind_is_no_shard(run, expected, place, monkeypatch):
    with stopping(monkeypatch, after=3):
        run()
    left = place("rrc") / ".train-00001-of-00003.parquet.tmp-123"
    left.write_bytes(b"half")
    folder = run()
    left.unlink(missing_ok=True)
    assert contents(folder) == contents(expected("rrc"))


# Raising num_samples


@pytest.fixture(scope="module")
def four(data, tmp_path_factory):
    """Policy -> a plain run of four reinforcements."""
    found = {}

    def get(policy):
        if policy not in found:
            folder = tmp_path_factory.mktemp("four") / "plus"
            options = {"num_samples": 4, "top_k": TOP_K, "shard_size": 64, "seed": 5, "device": "cpu"}
            found[policy] = reinforce(data, tiny_teacher(CLASSES), named_policy(policy, 16), folder, **options)
        return found[policy]

    return get


def cut(found, num_samples):
    """Rows with their first reinforcements alone."""
    lists = (schema.AUGMENTATION_PARAMS, "teacher_logits")
    return [{**row, **{name: row[name][:num_samples] for name in lists}} for row in found]


@pytest.mark.parametrize("policy", ["randaug", "mixing_randaug"])
def test_more_reinforcements_are_added_to_the_existing_ones(run, data, four, policy):
    before = rows(run(policy))
    folder = run(policy, num_samples=4)
    after = rows(folder)
    assert cut(after, 2) == before
    assert contents(folder) == contents(four(policy))
    assert len(opened(folder, data)) == ROWS


def test_added_reinforcements_are_found_by_whoever_has_loaded_the_folder_before(run, data):
    folder = run()
    assert opened(folder, data).config.num_samples == 2
    dataset = opened(run(num_samples=4), data)
    assert dataset.config.num_samples == 4
    assert [dataset.params(7, slot) for slot in range(4)] == rows(folder)[7][schema.AUGMENTATION_PARAMS]


def test_folders_of_the_same_name_are_not_confused(run, data):
    opened(run(name="one"), data)
    folder = run(name="two", seed=6)
    dataset = opened(folder, data)
    assert dataset.params(0, 0) == rows(folder)[0][schema.AUGMENTATION_PARAMS][0]


def test_only_what_is_new_is_computed(run, monkeypatch):
    run()
    views, forward = [], TinyNet.forward

    def count(net, pixels):
        views.append(len(pixels))
        return forward(net, pixels)

    monkeypatch.setattr(TinyNet, "forward", count)
    run(num_samples=3)
    assert sum(size for size in views if size > 1) == ROWS


def test_embedded_images_stay_when_reinforcements_are_added(run):
    data = tiny_dataset(70, (20, 36), CLASSES)
    before = rows(run(dataset=data, embed_images=True))
    after = rows(run(dataset=data, embed_images=True, num_samples=3))
    assert cut(after, 2) == before


@pytest.mark.parametrize("policy", ["randaug", "mixing_randaug"])
def test_an_interrupted_addition_is_resumed(run, data, four, place, monkeypatch, policy):
    folder = run(policy)
    before = rows(folder)
    with stopping(monkeypatch, after=3):
        run(policy, num_samples=4)
    assert rows(folder) == before and ReinforcementConfig.load(folder).num_samples == 2
    assert len(opened(folder, data)) == ROWS, "the folder holds a complete dataset at any time"
    (staged,) = folder.glob(".*/*.parquet")
    finished = staged.stat().st_ino
    run(policy, num_samples=4)
    assert contents(folder) == contents(four(policy))
    assert (folder / staged.name).stat().st_ino == finished, "a finished shard is not written again"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@contextlib.contextmanager
def stopping_after_moves(monkeypatch, moves):
    """The run ends while added reinforcements are moved into place."""
    replace, left = Path.replace, moves

    def move(path, target):
        nonlocal left
        if path.suffix == ".parquet":
            left -= 1
            if left < 0:
                raise Stop
        return replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Path, "replace", move)
        yield


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_an_addition_interrupted_at_its_very_end_is_resumed(run, four, monkeypatch, moves):
    run("randaug")
    with stopping_after_moves(monkeypatch, moves):
        run("randaug", num_samples=4)
    assert contents(run("randaug", num_samples=4)) == contents(four("randaug"))


def test_an_addition_interrupted_before_its_configuration_is_written_is_resumed(run, four, monkeypatch):
    run("randaug")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(ReinforcementConfig, "save", lambda config, folder: (_ for _ in ()).throw(Stop()))
        run("randaug", num_samples=4)
    assert contents(run("randaug", num_samples=4)) == contents(four("randaug"))


def test_an_addition_is_resumed_after_a_killed_run(run, four, monkeypatch):
    folder = run("randaug")
    with stopping(monkeypatch, after=3):
        run("randaug", num_samples=4)
    (staged,) = folder.glob(".*/*.parquet")
    (staged.parent / ".train-00001-of-00003.parquet.tmp-123").write_bytes(b"half")
    run("randaug", num_samples=4)
    assert contents(folder) == contents(four("randaug"))


def test_an_addition_interrupted_at_its_end_may_change_its_number(run, monkeypatch):
    folder = run("randaug")
    with stopping_after_moves(monkeypatch, 1):
        run("randaug", num_samples=3)
    try:
        run("randaug", num_samples=4)
    except ValueError as error:
        assert "num_samples=3" in str(error)
        return
    assert rows(folder) == rows(run("randaug", "fresh", num_samples=4))


def test_an_addition_interrupted_at_its_end_is_not_taken_for_the_old_data(run, data, monkeypatch):
    folder = run("randaug")
    with stopping_after_moves(monkeypatch, 1):
        run("randaug", num_samples=3)
    try:
        run("randaug")
    except ValueError as error:
        assert "num_samples=3" in str(error)
        return
    lengths = {len(row["teacher_logits"]) for row in rows(folder)}
    assert lengths == {ReinforcementConfig.load(folder).num_samples}


def test_more_reinforcements_of_changed_images_are_refused(run, data):
    folder = run()
    before = contents(folder)
    images_then = data.cast_column("image", IMAGE)["image"]
    images_then = [{"bytes": item["bytes"], "path": None} for item in images_then]
    images_then[100] = {"bytes": encode_image(tiny_image(1000)), "path": None}
    changed = Dataset.from_dict({"image": images_then, "label": data["label"]}, features=data.features)
    with pytest.raises(ValueError, match="not those that the existing reinforcements belong to"):
        run(dataset=changed, num_samples=3)
    after = contents(folder)
    assert {name: after[name] for name in before} == before


def test_reinforcements_are_added_where_images_were_skipped(run, data):
    broken = with_broken(data, {3: b"", 70: b"GIF89a"})
    folder = run("mixing", dataset=broken, on_error="skip")
    before, skipped = rows(folder), ReinforcementConfig.load(folder).skipped
    run("mixing", dataset=broken, on_error="skip", num_samples=4)
    assert cut(rows(folder), 2) == before
    fresh = run("mixing", "fresh", broken, on_error="skip", num_samples=4)
    assert contents(folder) == contents(fresh)
    assert ReinforcementConfig.load(folder).skipped == skipped


# Other sources


@pytest.mark.parametrize("policy", ["randaug", "mixing"])
def test_embedded_images(run, data, expected, policy):
    folder = run(policy, embed_images=True)
    loaded = stored_rows(folder)
    assert loaded.features["image"] == Image()
    source = data.cast_column("image", IMAGE)["image"]
    for row, stored in zip(rows(folder), rows(expected(policy)), strict=True):
        assert row["image"]["bytes"] == source[row[schema.SOURCE_ROW]]["bytes"]
        assert {name: row[name] for name in stored} == stored
    assert loaded[0]["image"].size == data[rows(folder)[0][schema.SOURCE_ROW]]["image"].size
    dataset = opened(folder)  # no source is needed
    few = range(0, ROWS, 30)
    for position in few:
        row = int(dataset._rows[position])
        assert dataset[position]["labels"] == data["label"][row]
    replayed = opened(expected(policy), data)
    for position in few:
        assert torch.equal(dataset.view(position, 1), replayed.view(position, 1))


def test_a_data_set_without_labels(run):
    data = tiny_dataset(20, (20, 36), labels=0)
    folder = run("mixing", dataset=data)
    config = ReinforcementConfig.load(folder)
    assert config.source.label_column is None and config.class_names is None and config.num_classes == CLASSES
    assert set(rows(folder)[0]) == {*schema.REINFORCEMENT_COLUMNS, "teacher_logits"}
    dataset = opened(folder, data)
    assert "labels" not in dataset[0]
    assert largest_divergence(dataset, tiny_teacher(CLASSES)) <= KL_BOUND


def test_labels_can_be_left_out(run):
    data = tiny_dataset(8, labels=7)  # these would not fit the teacher
    config = ReinforcementConfig.load(run(dataset=data, label_column=""))
    assert config.source.label_column is None and config.source.columns == ("label",)


def test_further_columns_are_kept(run):
    data = tiny_dataset(8, (20, 36), CLASSES).add_column("note", [f"n{i}" for i in range(8)])
    data = data.add_column("coarse", list(range(8))).rename_columns({"image": "picture", "label": "fine"})
    folder = run(dataset=data, label_column="fine")
    assert list(rows(folder)[0]) == ["fine", "note", "coarse", *schema.REINFORCEMENT_COLUMNS, "teacher_logits"]
    assert [row["note"] for row in rows(folder)] == data["note"]
    config = ReinforcementConfig.load(folder)
    assert (config.source.image_column, config.source.label_column) == ("picture", "fine")


def test_images_that_are_files(run, tmp_path):
    data = tiny_dataset(12, (20, 36), CLASSES)
    for row, image in enumerate(data["image"]):
        path = tmp_path / "pictures" / NAMES[row % CLASSES] / f"{row:02d}.{'jpg' if row % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    source = load_dataset("imagefolder", data_dir=str(tmp_path / "pictures"), split="train")
    paths = [item["path"] for item in source.cast_column("image", IMAGE)["image"]]
    assert all(os.path.exists(path) for path in paths)
    folder = run("mixing", dataset=source, source_name=str(tmp_path / "pictures"), embed_images=False)
    for row in rows(folder):
        file = Path(paths[row[schema.SOURCE_ROW]])
        assert row[schema.IMAGE_HASH] == xxhash.xxh3_64_hexdigest(file.read_bytes())
        assert NAMES[row["label"]] == file.parent.name
    dataset = opened(folder)  # the source is found by its recorded name
    assert largest_divergence(dataset, tiny_teacher(CLASSES)) <= KL_BOUND
    stream = load_dataset("imagefolder", data_dir=str(tmp_path / "pictures"), split="train", streaming=True)
    assert rows(run("rrc", "stream", stream)) == rows(run("rrc", "map", source))


def test_a_selection_of_a_data_set(run, data):
    few = data.shuffle(seed=1).select(range(70))
    folder = run("mixing", dataset=few)
    assert sorted(row[schema.SOURCE_ROW] for row in rows(folder)) == list(range(70))
    assert largest_divergence(opened(folder, few), tiny_teacher(CLASSES)) <= KL_BOUND


def varied_images(encoded, photo):
    small = photo.resize((50, 35))
    exif = PILImage.Exif()
    exif[0x0112] = 6
    palette = small.quantize(40)
    deep = PILImage.fromarray(
        torch.arange(50 * 35, dtype=torch.int32).mul(37).reshape(35, 50).numpy().astype("uint16")
    )
    return {
        "png": encoded(image=small),
        "jpeg": encoded("JPEG", image=small),
        "webp": encoded("WEBP", image=small),
        "gray": encoded("PNG", "L", small),
        "gray jpeg": encoded("JPEG", "L", small),
        "gray alpha": encoded("PNG", "LA", small),
        "palette": encode_image(palette),
        "transparent palette": encode_image(palette, transparency=3),
        "gif": encode_image(palette, "GIF"),
        "rgba": encoded("PNG", "RGBA", small),
        "rgba webp": encoded("WEBP", "RGBA", small),
        "cmyk": encoded("JPEG", "CMYK", small),
        "rotated": encoded("JPEG", image=small, exif=exif),
        "16 bits": encode_image(deep),
        "black and white": encoded("PNG", "1", small),
        "one pixel": encoded(image=small.crop((0, 0, 1, 1))),
    }


@pytest.mark.parametrize("policy", ["small_mixing_randaug", "mixing_randaug"])
def test_images_of_every_kind(run, encoded, photo, policy):
    varied = varied_images(encoded, photo)
    items = [{"bytes": data, "path": None} for data in varied.values()]
    data = Dataset.from_dict({"image": items, "label": [0] * len(items)}, features=tiny_dataset(1).features)
    folder = run(policy, dataset=data, num_samples=3)
    assert len(rows(folder)) == len(varied)
    dataset = opened(folder, data)
    assert largest_divergence(dataset, tiny_teacher(CLASSES)) <= KL_BOUND
    position = dataset.position(list(varied).index("rotated"))
    assert tuple(dataset.image(position).shape) == (3, 50, 35), "EXIF rotation is applied"


# What bad input gets


def with_broken(data, broken, path=None):
    """The dataset with other bytes in some rows."""
    items = [{"bytes": item["bytes"], "path": path and path(i)} for i, item in enumerate(raw(data))]
    for row, content in broken.items():
        items[row]["bytes"] = content
    return Dataset.from_dict({"image": items, "label": list(data["label"])}, features=data.features)


def raw(data):
    return data.cast_column("image", IMAGE)["image"]


def truncated(data, row):
    content = raw(data)[row]["bytes"]
    return content[: len(content) // 2]


@pytest.mark.parametrize("kind", ["truncated", "empty", "text"])
@pytest.mark.parametrize("policy", ["rrc", "mixing"])
def test_an_unreadable_image_stops_the_run(run, data, place, kind, policy):
    content = {"truncated": truncated(data, 70), "empty": b"", "text": b"<html>not found</html>"}[kind]
    broken = with_broken(data, {70: content}, lambda row: f"pictures/{row}.png")
    with pytest.raises(ImageError, match="Row 70 .path 'pictures/70.png'.: the image cannot be decoded"):
        run(policy, dataset=broken)
    assert not ReinforcementConfig.load(place(policy)).complete
    if policy == "rrc":
        assert [path.name for path in shards(place(policy))] == ["train-00000-of-00003.parquet"]
    # Once the file is mended the same command goes on.
    mended = run(policy, dataset=with_broken(data, {}, lambda row: f"pictures/{row}.png"))
    assert rows(mended) == rows(run(policy, "whole"))


@pytest.mark.parametrize("item", [None, {"bytes": None, "path": "nowhere.png"}])
def test_a_missing_image_stops_the_run(run, data, item):
    items = [dict(image) for image in raw(data)]
    items[5] = item
    broken = Dataset.from_dict(
        {"image": items, "label": list(data["label"])}, features=data.cast_column("image", IMAGE).features
    )
    with pytest.raises(ImageError, match="Row 5 .path .*: (the file cannot be read|there is no image)"):
        run(dataset=broken)


@pytest.mark.parametrize("policy", ["randaug", "mixing"])
def test_an_unreadable_image_is_recorded_and_left_out(run, data, expected, policy, caplog):
    broken = with_broken(data, {3: b"", 70: truncated(data, 70), 149: b"x"})
    with caplog.at_level(logging.WARNING):
        folder = run(policy, dataset=broken, on_error="skip")
    assert "3 images were skipped" in caplog.text
    config = ReinforcementConfig.load(folder)
    assert sorted(item.row for item in config.skipped) == [3, 70, 149]
    assert all(item.error.startswith(f"Row {item.row} (path None): ") for item in config.skipped)
    assert not any(" at 0x" in item.error for item in config.skipped), "an address differs from run to run"
    found = rows(folder)
    assert sorted(row[schema.SOURCE_ROW] for row in found) == [i for i in range(ROWS) if i not in (3, 70, 149)]
    params = [item for row in found for item in row[schema.AUGMENTATION_PARAMS]]
    if policy == "mixing":
        assert not {item[schema.PARTNER_ROW] for item in params} & {3, 70, 149}
    whole = {row[schema.SOURCE_ROW]: row for row in rows(expected(policy))}
    alike = 0
    for row in found:
        other = whole[row[schema.SOURCE_ROW]][schema.AUGMENTATION_PARAMS]
        for mine, theirs in zip(row[schema.AUGMENTATION_PARAMS], other, strict=True):
            if policy == "randaug" or theirs[schema.PARTNER_ROW] not in (3, 70, 149):
                assert mine == theirs
                alike += 1
            else:
                assert mine["mixup"] is None and mine["cutmix"] is None
                assert mine["crop"] == theirs["crop"]
    assert alike >= 2 * (ROWS - 3) - 6
    assert largest_divergence(opened(folder, broken), tiny_teacher(CLASSES)) <= KL_BOUND


def test_skipping_is_resumed(run, data, monkeypatch):
    broken = with_broken(data, {3: b"", 70: b"x", 149: b"x"})
    whole = run("mixing", "whole", broken, on_error="skip")
    with stopping(monkeypatch, after=3):
        run("mixing", "stopped", broken, on_error="skip")
    assert contents(run("mixing", "stopped", broken, on_error="skip")) == contents(whole)


@pytest.mark.parametrize("bad", [range(64), range(70, ROWS), range(64, 128)], ids=["first", "last", "middle"])
def test_a_shard_without_a_readable_image(run, data, bad):
    broken = with_broken(data, dict.fromkeys(bad, b""))
    folder = run(dataset=broken, on_error="skip")
    config = ReinforcementConfig.load(folder)
    assert config.complete and {item.row for item in config.skipped} == set(bad)
    loaded = stored_rows(folder)
    assert list(loaded[schema.SOURCE_ROW]) == [row for row in range(ROWS) if row not in bad]


def test_a_data_set_without_a_readable_image_is_refused(run, data):
    broken = with_broken(data.select(range(10)), dict.fromkeys(range(10), b""))
    with pytest.raises(ValueError, match="image"):
        run(dataset=broken, on_error="skip")


def integer_labels(labels):
    features = Features({"image": Image(), "label": Value("int64")})
    return Dataset.from_dict({"image": raw(tiny_dataset(len(labels))), "label": labels}, features=features)


@pytest.mark.parametrize("label", [CLASSES, -1, 10**6])
def test_a_label_out_of_range(run, label):
    with pytest.raises(ValueError, match=f"Row 2 has the label {label}, but the teacher's classes are 0 to 4"):
        run(dataset=integer_labels([0, 1, label, 4]))


def test_an_unlabelled_row_of_a_class_label(run):
    data = Dataset.from_dict({"image": raw(tiny_dataset(3)), "label": [0, -1, 2]}, features=tiny_dataset(3).features)
    with pytest.raises(ValueError, match="Row 1 has the label -1"):
        run(dataset=data)


def test_integer_labels_that_fit(run):
    config = ReinforcementConfig.load(run(dataset=integer_labels([4, 0, 1, 4])))
    assert config.source.label_column == "label" and config.class_names is None


def test_labels_that_are_words_are_refused(run):
    features = Features({"image": Image(), "label": Value("string")})
    data = Dataset.from_dict({"image": raw(tiny_dataset(2)), "label": ["ant", "bee"]}, features=features)
    with pytest.raises(ValueError, match="label"):
        run(dataset=data)


@pytest.mark.parametrize("top_k", [CLASSES + 1, 0, -1])
def test_top_k_out_of_range(run, place, top_k):
    with pytest.raises(ValueError, match=f"top_k must lie between 1 and the {CLASSES} classes, not {top_k}"):
        run(top_k=top_k)
    assert not place("rrc").exists()


@pytest.mark.parametrize("num_samples", [0, -3])
def test_too_few_samples(run, place, num_samples):
    with pytest.raises(ValueError, match=f"num_samples must be at least 1, not {num_samples}"):
        run(num_samples=num_samples)
    assert not place("rrc").exists()


@pytest.mark.parametrize("shard_size", [0, -5])
def test_a_shard_size_that_holds_no_row(run, shard_size):
    with pytest.raises(ValueError, match="shard_size"):
        run(shard_size=shard_size)


def test_an_unknown_way_to_handle_errors(run):
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'skip', not 'ignore'"):
        run(on_error="ignore")


def test_a_missing_image_column_lists_the_columns(run, data):
    with pytest.raises(ValueError, match=r"no image column 'photo'; its columns are \['image', 'label'\]"):
        run(image_column="photo")
    with pytest.raises(ValueError, match=r"no image column 'label'.*\['image'\] hold images"):
        run(image_column="label")
    with pytest.raises(ValueError, match=r"its columns are \['label'\], of which none hold images"):
        run(dataset=data.remove_columns("image"))
    with pytest.raises(ValueError, match=r"no label column 'class'; its columns are \['image', 'label'\]"):
        run(label_column="class")


def test_two_image_columns_need_a_name(run, data):
    two = tiny_dataset(4).add_column("depth", raw(tiny_dataset(4))).cast_column("depth", Image())
    with pytest.raises(ValueError, match=r"\['image', 'depth'\] hold images. Name one with image_column"):
        run(dataset=two)
    config = ReinforcementConfig.load(run(dataset=two, image_column="depth"))
    assert config.source.image_column == "depth" and config.source.columns == ("image", "label")


def test_a_source_column_with_a_name_of_ours(run):
    data = tiny_dataset(4).add_column(schema.IMAGE_HASH, ["x"] * 4)
    with pytest.raises(ValueError, match="rename_column"):
        run(dataset=data)


def test_a_stream_without_features(run):
    stream = tiny_dataset(4).to_iterable_dataset().map(lambda row: row)
    assert stream.features is None
    with pytest.raises(ValueError, match="does not know its columns"):
        run(dataset=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_an_empty_split(run, data, stream):
    empty = data.select([])
    if stream:
        empty = IterableDataset.from_generator(lambda: iter(()), features=data.features)
    with pytest.raises(ValueError, match="'test' has no rows; there is nothing to reinforce"):
        run(dataset=empty, split="test")


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("seed", {"seed": 6}),
        ("top_k", {"top_k": 2}),
        ("shard_size", {"shard_size": 128}),
        ("embed_images", {"embed_images": True}),
        ("source", {"source_name": "me/pets"}),
        ("source", {"split": "test"}),
        ("teachers", {"teacher": tiny_teacher(CLASSES, 16, 9)}),
        ("teachers", {"teacher": tiny_teacher(CLASSES, 24)}),
        ("class_map", {"class_map": [0, 1, 2, 3, 4]}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_another_configuration_is_refused(run, expected, place, field, options):
    folder = place("rrc")
    for name, content in contents(expected("rrc")).items():
        (folder.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.parent / name).write_bytes(content)
    before = contents(folder)
    for num_samples in (2, 4):
        with pytest.raises(ValueError, match=rf"made differently: .*{field}[.a-z]*: .*, not .*another output folder"):
            run(**{"num_samples": num_samples, **options})
    assert contents(folder) == before


def test_another_policy_of_the_same_name_is_refused(run, data):
    folder = run()
    with pytest.raises(ValueError, match="made differently: policy.operations: "):
        reinforce(
            data,
            tiny_teacher(CLASSES),
            named_policy("rrc", 24),
            folder.parent,
            num_samples=2,
            top_k=TOP_K,
            seed=5,
            shard_size=64,
            device="cpu",
        )


def test_several_differences_are_all_named(run):
    run()
    with pytest.raises(ValueError, match="top_k: 2, not 3; .*seed: 6, not 5; .*shard_size: 128, not 64"):
        run(top_k=2, seed=6, shard_size=128)


def test_fewer_reinforcements_are_refused(run):
    folder = run(num_samples=3)
    before = contents(folder)
    with pytest.raises(ValueError, match="already has 3 reinforcements .*raised but not lowered to 2"):
        run(num_samples=2)
    assert contents(folder) == before


def test_more_reinforcements_of_an_unfinished_data_set_are_refused(run, monkeypatch):
    with stopping(monkeypatch, after=3):
        run()
    with pytest.raises(ValueError, match="not complete yet; finish it with num_samples=2"):
        run(num_samples=4)


def wide_png(width):
    """A PNG of one row of pixels."""
    header = width.to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    pixels = zlib.compress(bytes(width + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_an_image_that_is_too_large(run, data):
    few = data.select(range(6))
    with pytest.raises(ImageError, match="Row 4 .*32768x1 pixels.*int16.*32767"):
        run(dataset=with_broken(few, {4: wide_png(32768)}))
    with pytest.raises(ImageError, match="Row 4 .*too narrow"):
        run("small_crop", dataset=with_broken(few, {4: wide_png(3000)}))
    folder = run("rrc", "skip", with_broken(few, {4: wide_png(32768)}), on_error="skip")
    assert [item.row for item in ReinforcementConfig.load(folder).skipped] == [4]
    folder = run("rrc", "largest", with_broken(few, {4: wide_png(32767)}))
    assert len(rows(folder)) == 6


def test_a_teacher_that_answers_nan(run, monkeypatch, place):
    teacher = tiny_teacher(CLASSES)
    monkeypatch.setattr(TinyNet, "forward", lambda net, pixels: torch.full((len(pixels), CLASSES), torch.nan))
    with pytest.raises(ValueError, match="answered with nan"):
        run(teacher=teacher)
    assert shards(place("rrc")) == []


def test_a_folder_that_cannot_be_read_is_not_overwritten(run, place):
    run()
    file = place("rrc") / CONFIG_FILE
    file.write_text("{")
    with pytest.raises(ValueError, match=f"{CONFIG_FILE} cannot be used"):
        run()
    assert file.read_text() == "{"


def test_a_missing_image_is_skipped(data, tmp_path):
    items = [dict(image) for image in raw(data)]
    items[0] = None
    broken = Dataset.from_dict(
        {"image": items, "label": list(data["label"])}, features=data.cast_column("image", IMAGE).features
    )
    folder = reinforce(
        broken, tiny_teacher(), named_policy("rrc", 16), tmp_path, num_samples=1, top_k=2, on_error="skip"
    )
    assert [item.row for item in ReinforcementConfig.load(folder).skipped] == [0]


def test_a_stream_whose_columns_change_their_order(data, tmp_path):
    def samples():
        for row, item in enumerate(data.cast_column("image", IMAGE)):
            pairs = [("image", item["image"]), ("label", item["label"]), ("__url__", "somewhere.tar")]
            yield dict(pairs if row < 5 else pairs[::-1])

    features = Features({**data.cast_column("image", IMAGE).features, "__url__": Value("string")})
    stream = IterableDataset.from_generator(samples, features=features)
    folder = reinforce(stream, tiny_teacher(), named_policy("rrc", 16), tmp_path, num_samples=1, top_k=2)
    assert "__url__" not in ReinforcementConfig.load(folder).source.columns
    assert sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet")) == len(data)


def test_what_a_larger_number_left_is_cleared_when_it_was_given_up(tmp_path):
    policy, options = named_policy("rrc", 16), {"top_k": 2, "num_workers": 1, "device": "cpu"}
    folder = reinforce(tiny_dataset(10), tiny_teacher(), policy, tmp_path, num_samples=1, **options)
    given_up = folder / ".num_samples-3"
    given_up.mkdir()
    (given_up / "train-00000-of-00001.parquet").write_bytes(b"half of it")
    reinforce(tiny_dataset(10), tiny_teacher(), policy, tmp_path, num_samples=2, **options)
    assert not list(folder.glob(".num_samples-*"))


@pytest.mark.parametrize("unknown", [{"num_worker": 1}, {"temperature": 2.0}])
def test_an_argument_that_nobody_knows_is_refused(unknown, tmp_path):
    with pytest.raises(TypeError, match=f"keyword argument '{next(iter(unknown))}'"):
        reinforce(tiny_dataset(5), tiny_teacher(), named_policy("rrc", 16), tmp_path, num_samples=1, **unknown)
