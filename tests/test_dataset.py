"""Replay: the view, the target and the label of every sample are those of the stored reinforcement."""

import dataclasses
import functools
import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from tiny import densify, reinforced_rows, tiny_dataset, tiny_image, tiny_teacher
from torch.nn import functional as F
from torch.utils.data import DataLoader

from hf_reinforce import AugmentedDataset, EpochSampler, ImageSource, ReinforcedDataset, images, load_policy
from hf_reinforce.images import ImageError
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.store.pixel_contract import PixelMismatchError
from hf_reinforce.targets.class_distribution import batch_targets

ROWS, N, K, C, SIZE, SEED = 70, 3, 3, 5, 16, 11  # 70 rows: a whole block of mixing partners, and a part of one
PLAIN, MIXED = "randaug", "mixing_randaug"


@pytest.fixture(scope="module")
def source():
    return tiny_dataset(ROWS, labels=C)


@pytest.fixture(scope="module")
def stored(source, tmp_path_factory):
    """`stored(policy)`: rows and configuration of a reinforced dataset, made once."""

    @functools.cache
    def stored(policy=PLAIN, embed_images=False):
        folder = tmp_path_factory.mktemp("plus")
        options = {"num_samples": N, "top_k": K, "seed": SEED, "embed_images": embed_images}
        return reinforced_rows(source, tiny_teacher(C), load_policy(policy, SIZE), folder, **options)

    return stored


@pytest.fixture(scope="module")
def replay(stored, source):
    """`replay(policy, **options)`: a ReinforcedDataset over all rows."""
    return lambda policy=PLAIN, **options: ReinforcedDataset(*stored(policy), **{"source": source, **options})


@pytest.fixture
def made(replay, source):
    """`made("stored" or "fresh", policy)`: a dataset of either kind, with the same augmentations."""

    def made(kind, policy=PLAIN):
        dataset = replay(policy)
        if kind == "stored":
            return dataset
        return AugmentedDataset(ImageSource.of(source), dataset.policy, seed=SEED)

    return made


def decoded(source, row):
    return images.decode(source.data.column("image")[row].as_py()["bytes"])


def slot_of(dataset, epoch, position=0):
    return int(dataset.slots(np.array([epoch]), np.array([position]))[0])


def same(sample, other):
    """Whether two samples or batches are equal."""
    assert sample.keys() == other.keys()
    for name, value in sample.items():
        if name == "mix_params":
            assert value == other[name]
        else:
            np.testing.assert_array_equal(np.asarray(value), np.asarray(other[name]), err_msg=name)


# -- one sample ---------------------------------------------------------------------------------------------------


def test_item_is_the_policy_applied_to_the_stored_parameters(stored, replay, source):
    rows, config = stored(PLAIN)
    dataset = replay(PLAIN, seed=4)
    assert len(dataset) == len(rows) == ROWS
    for epoch in range(2 * N):
        for position in range(0, ROWS, 5):
            row = rows[position]  # read plainly, without this package
            sample, slot = dataset[epoch * ROWS + position], slot_of(dataset, epoch, position)
            view = config.policy.apply(decoded(source, row["source_row"]), row["augmentation_params"][slot])
            assert sample["pixel_values"].dtype == torch.uint8 and torch.equal(sample["pixel_values"], view)
            target = row["teacher_logits"][slot]
            for name in ("label", "value", "tail"):
                assert sample[f"target_{name}"].tolist() == target[name]
            assert sample["labels"] == source[row["source_row"]]["label"] == row["label"]


def test_mixed_view_is_the_stored_mix_of_both_stored_views(stored, replay, source):
    rows, config = stored(MIXED)
    dataset = replay(MIXED)
    both = 0
    for position in range(0, ROWS, 2):
        row = rows[position]
        params = row["augmentation_params"][1]
        expected = config.policy.apply(decoded(source, row["source_row"]), params).float()
        if params["partner_row"] is None:
            assert params["mixup"] is None and params["cutmix"] is None
        else:
            theirs = rows[rows["source_row"][:].index(params["partner_row"])]["augmentation_params"][1]
            partner = config.policy.apply(decoded(source, params["partner_row"]), theirs).float()
            if params["mixup"]:
                lam = params["mixup"]["lam"]
                expected = lam * expected + (1 - lam) * partner
            if params["cutmix"]:
                box = params["cutmix"]
                across = slice(box["left"], box["left"] + box["width"])
                down = slice(box["top"], box["top"] + box["height"])
                expected[:, down, across] = partner[:, down, across]
            both += bool(params["mixup"] and params["cutmix"])
        torch.testing.assert_close(dataset.view(position, 1), expected, rtol=0, atol=1e-4)
    assert both


@pytest.mark.parametrize("policy", [PLAIN, MIXED])
def test_stored_target_is_the_teachers_answer_to_the_replayed_view(policy, replay):
    teacher, dataset = tiny_teacher(C), replay(policy)
    answers, others = (
        teacher(torch.stack([dataset.view(position, slot) for position in range(ROWS)])).exp() for slot in (2, 1)
    )
    errors, wrong = [], []
    for position in range(ROWS):
        target = dataset.target(position, 2)
        stored, label = torch.from_numpy(target["target_value"]).exp(), torch.from_numpy(target["target_label"])
        errors.append(float((answers[position][label] - stored).abs().max()))
        wrong.append(float((others[position][label] - stored).abs().max()))
        assert float(stored.sum() + np.exp(target["target_tail"])) == pytest.approx(1, abs=0.02)
    assert max(errors) < 0.01 < 0.1 < np.mean(wrong)


@pytest.mark.parametrize("policy", [PLAIN, MIXED])
def test_epoch_e_of_fresh_augmentations_is_reinforcement_e(policy, replay, made, source):
    dataset, fresh = replay(policy), made("fresh", policy)
    for position in range(0, ROWS, 2):
        row = dataset.row(position)
        for slot in range(N):
            sample, stored = fresh[slot * ROWS + row], dataset.params(position, slot)
            pixels = sample["pixel_values"].float()
            if policy == MIXED:
                partner = stored["partner_row"]
                assert all(sample["mix_params"][name] == stored[name] for name in ("mixup", "cutmix"))
                assert ("partner_pixel_values" in sample) == (partner is not None)
                if partner is not None:
                    assert sample["partner_labels"] == source[partner]["label"]
                    assert fresh.partners(slot)[row] == partner
                    params = fresh.policy.collate_mix([sample["mix_params"]])
                    pixels = fresh.policy.mix(pixels[None], sample["partner_pixel_values"].float()[None], params)[0]
            assert torch.equal(pixels, dataset.view(position, slot))


def test_replay_at_another_size_shows_the_same_view(replay):
    # Cutting, flipping, erasing and mixing at twice the size, then averaging, gives the view at the size itself.
    small, large = replay("mixing"), replay("mixing", image_size=2 * SIZE)
    errors, others = [], []
    for position in range(0, ROWS, 5):
        reduced = F.avg_pool2d(large.view(position, 0)[None], 2)[0]
        assert reduced.shape == (3, SIZE, SIZE)
        errors.append(float((reduced - small.view(position, 0)).abs().mean()))
        others.append(float((reduced - small.view(position, 1)).abs().mean()))
        same(small.target(position, 0), large.target(position, 0))
    assert max(errors) < 8 < np.mean(others)


def test_erased_box_scales_with_the_view(stored, replay):
    rows, _ = stored(PLAIN)
    large = replay(PLAIN, image_size=3 * SIZE)
    boxes = {position: rows[position]["augmentation_params"][0]["erase"] for position in range(ROWS)}
    erased = {position: box for position, box in boxes.items() if box is not None}
    assert len(erased) > 5
    for position, box in erased.items():
        top, left, height, width = (3 * box[side] for side in ("top", "left", "height", "width"))
        assert (large.view(position, 0)[:, top : top + height, left : left + width] == 0).all() and height * width


@pytest.mark.parametrize("kind", ["stored", "fresh"])
def test_iteration_ends_after_an_epoch(kind, made):
    dataset = made(kind)
    samples = list(islice(dataset, ROWS + 1))
    assert len(samples) == ROWS
    same(samples[-1], dataset[ROWS - 1])


# -- which reinforcement ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [PLAIN, MIXED])
def test_cycle_uses_every_reinforcement_once_before_any_twice(policy, replay):
    dataset = replay(policy, seed=3)
    slots = np.stack([dataset.slots(np.full(ROWS, epoch), np.arange(ROWS)) for epoch in range(2 * N)])
    for first in (0, N):
        assert (np.sort(slots[first : first + N], axis=0) == np.arange(N)[:, None]).all()
    different = [len(np.unique(epoch)) for epoch in slots]
    assert different[0] == N if policy == PLAIN else set(different) == {1}, "only partners share a slot"


def test_random_selection_draws_with_replacement(replay):
    def slots(epochs, seed=3):
        dataset = replay(selection="random", seed=seed)
        return np.stack([dataset.slots(np.full(ROWS, epoch), np.arange(ROWS)) for epoch in epochs])

    drawn = slots(range(60))
    assert abs(np.bincount(drawn.reshape(-1), minlength=N) / drawn.size - 1 / N).max() < 0.03
    assert (np.sort(drawn[:N], axis=0) != np.arange(N)[:, None]).any()
    assert (slots([5]) == drawn[5]).all() and (slots([5], seed=4) != drawn[5]).any()


# -- batches and their order --------------------------------------------------------------------------------------


@pytest.fixture
def decodes(monkeypatch):
    """Hashes of the images that were decoded."""
    calls, decode = [], images.decode

    def counting(encoded, box=None):
        calls.append(images.image_hash(encoded))
        return decode(encoded, box)

    monkeypatch.setattr(images, "decode", counting)
    return calls


@pytest.mark.parametrize("kind", ["stored", "fresh"])
def test_batch_names_the_partner_of_every_sample(kind, made, source, decodes):
    dataset = made(kind, MIXED)
    decodes.clear()
    slot, partner_of = slot_of(dataset, 1), dataset.partners(1)
    samples = dataset.__getitems__([ROWS + position for position in range(12)])  # some partners come as extras
    batch = dataset.collate(samples)
    mixed = ["partner_pixel_values" in sample for sample in samples]
    needed = {*range(12), *(int(partner_of[position]) for position in range(12) if mixed[position])}
    assert len(set(decodes)) == len(decodes) == len(needed) > 12, "an image is decoded once in a batch"
    assert batch["pixel_values"].shape == (len(needed), 3, SIZE, SIZE)
    for position, sample in enumerate(samples):
        assert torch.equal(batch["pixel_values"][position], sample["pixel_values"])
        index, other = int(batch["partner"][position]), int(partner_of[position])
        if not mixed[position]:
            assert index == position and batch["partner_labels"][position] == batch["labels"][position]
            continue
        row = dataset.row(other)
        view = dataset.policy.apply(decoded(source, row), dataset.params(other, slot))
        assert torch.equal(batch["pixel_values"][index], view)
        assert int(batch["partner_labels"][position]) == source[row]["label"]
        assert index == other if other < 12 else index >= 12


def test_batch_of_a_policy_that_does_not_mix(replay):
    dataset = replay()
    batch = dataset.collate(dataset.__getitems__([5, 4]))
    kinds = {"pixel_values": torch.uint8, "labels": torch.int64, "target_label": torch.int64}
    kinds |= {"target_value": torch.float32, "target_tail": torch.float32}
    assert {name: value.dtype for name, value in batch.items()} == kinds
    assert batch["target_label"].shape == (2, K) and batch["target_tail"].shape == (2,)


@pytest.mark.parametrize("kind", ["stored", "fresh"])
@pytest.mark.parametrize("policy", [PLAIN, MIXED])
def test_order_of_the_epochs(kind, policy, made, decodes):
    """A permutation that depends on seed and epoch, in which partners are neighbours."""
    dataset, orders = made(kind, policy), set()
    for seed in (0, 1):
        sampler = EpochSampler(dataset, seed)
        for epoch in (0, 1, 5):
            sampler.set_epoch(epoch)
            order = list(sampler)
            assert order == list(sampler) and sorted(order) == list(range(epoch * ROWS, (epoch + 1) * ROWS))
            orders.add(tuple(item % ROWS for item in order))
            place, partners = np.argsort(order), dataset.partners(epoch)
            paired = np.flatnonzero((partners >= 0) & (partners != np.arange(ROWS)))
            assert (place[paired] // 2 == place[partners[paired]] // 2).all()
            assert (partners[partners[paired]] == paired).all() and (len(paired) > ROWS / 2) == (policy == MIXED)
            assert kind == "fresh" or (paired // PARTNER_BLOCK == partners[paired] // PARTNER_BLOCK).all()
    assert len(orders) == 6 and tuple(range(ROWS)) not in orders
    decodes.clear()
    for batch in DataLoader(dataset, 8, sampler=sampler, collate_fn=dataset.collate):
        assert len(batch["pixel_values"]) == len(batch["labels"]), "no partner comes from outside of the batch"
    assert len(decodes) == ROWS, "no image is decoded twice in an epoch"


@pytest.mark.parametrize("repeats", [2, 3])
@pytest.mark.parametrize("kind", ["stored", "fresh"])
def test_repeated_augmentation_reorders_the_samples_of_several_epochs(kind, repeats, made, decodes):
    dataset, part = made(kind), ROWS // repeats
    sampler = EpochSampler(dataset, 2, repeats)
    assert len(sampler) == part * repeats
    for group in range(2):
        seen = []
        for epoch in range(group * repeats, (group + 1) * repeats):
            sampler.set_epoch(epoch)
            order = list(sampler)
            assert order == list(sampler) and len(order) == len(sampler)
            rows = np.array(order).reshape(part, repeats) % ROWS
            assert (rows == rows[:, :1]).all(), "the augmentations of an image follow each other"
            seen += order
        epochs, positions = np.divmod(np.array(seen), ROWS)
        assert set(epochs) == set(range(group * repeats, (group + 1) * repeats))
        assert len(set(seen)) == len(seen), "no sample comes twice"
        assert len(set(positions)) == part * repeats
    decodes.clear()
    first, *_ = DataLoader(dataset, 2 * repeats, sampler=sampler, collate_fn=dataset.collate)
    assert len(decodes) == part, "an image is decoded once for all of its augmentations"
    same(first, dataset.collate([dataset[index] for index in order[: 2 * repeats]]))


@pytest.mark.parametrize(("policy", "workers"), [(PLAIN, 2), (MIXED, 1), (MIXED, 2)])
def test_workers_change_nothing(policy, workers, replay):
    dataset = replay(policy, plain_fraction=0.2)
    options = {"batch_size": 4, "sampler": list(range(ROWS, ROWS + 16)), "collate_fn": dataset.collate}
    found = DataLoader(dataset, num_workers=workers, multiprocessing_context="fork", **options)
    for batch, alone in zip(found, DataLoader(dataset, **options), strict=True):
        same(batch, alone)


@pytest.mark.parametrize("policy", [PLAIN, MIXED])
def test_a_spawned_worker_gets_the_same_samples(policy, replay):
    dataset = replay(policy)
    pickled = pickle.dumps(dataset)
    for index in range(0, 3 * ROWS, 11):
        same(pickle.loads(pickled)[index], dataset[index])


# -- the pixels ---------------------------------------------------------------------------------------------------


def test_other_pixels_are_refused_unless_accepted(stored, replay, monkeypatch):
    expected, resize = replay()[5], images.resize
    monkeypatch.setattr(images, "resize", lambda *args, **options: resize(*args, **options) | 1)
    with pytest.raises(
        PixelMismatchError, match=r"row 0, reinforcement 0.*same libraries.*accept_pixel_mismatch True"
    ):
        replay()
    accepted = replay(accept_pixel_mismatch=True)[5]
    assert not torch.equal(accepted["pixel_values"], expected["pixel_values"])
    assert accepted["target_label"].tolist() == expected["target_label"].tolist()


def test_pixel_mismatch_names_the_libraries_that_differ(stored, source):
    rows, config = stored(PLAIN)
    pixels = dataclasses.replace(
        config.pixels,
        versions={**config.pixels.versions, "pillow": "1.0"},
        backend={**config.pixels.backend, "decoder": "crayon"},
        reference_views=tuple(dataclasses.replace(v, checksum="0" * 16) for v in config.pixels.reference_views),
    )
    with pytest.raises(PixelMismatchError, match="pillow 1.0 then, .* now; backend .*crayon.* then") as caught:
        ReinforcedDataset(rows, dataclasses.replace(config, pixels=pixels), source)
    assert "torchvision" not in str(caught.value)


# -- plain samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [PLAIN, MIXED])
def test_plain_fraction(policy, replay):
    pure, some, again = replay(policy), replay(policy, plain_fraction=0.25), replay(policy, plain_fraction=0.25)
    plain, epochs = 0, 3
    for epoch in range(epochs):
        indices = [epoch * ROWS + position for position in range(ROWS)]
        for kept, sample, twin in zip(*(d.__getitems__(indices) for d in (pure, some, again)), strict=True):
            same(sample, twin)
            label = sample["labels"]
            assert label == kept["labels"]
            probabilities = densify(batch_targets(some.collate([sample])), C).exp()[0]
            if torch.equal(probabilities, F.one_hot(torch.tensor(label), C).float()):
                plain += 1
                assert not torch.equal(sample["pixel_values"], kept["pixel_values"])
                if policy == MIXED:
                    assert "partner_pixel_values" not in sample
                    assert sample["mix_params"]["mixup"] is None and sample["mix_params"]["cutmix"] is None
            else:
                same(sample, kept)  # also with a partner that is itself shown plain
    assert abs(plain / (epochs * ROWS) - 0.25) < 4 * (0.25 * 0.75 / (epochs * ROWS)) ** 0.5


def test_plain_views_are_fresh_every_epoch_and_everything_can_be_plain(replay):
    dataset = replay(plain_fraction=1.0)
    views = [dataset[epoch * ROWS + 8]["pixel_values"] for epoch in range(4)]
    assert all(not torch.equal(views[0], view) for view in views[1:])
    batch = dataset.collate(dataset.__getitems__(list(range(ROWS))))
    assert (batch["target_label"].sort(-1).values.diff() > 0).all(), "the classes of a target differ"
    assert torch.equal(densify(batch_targets(batch), C).exp(), F.one_hot(batch["labels"], C).float())


# -- selections ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["shuffle", "filter", "concatenate"])
def test_part_of_a_reinforced_set_keeps_every_row_as_it_was(kind, stored, replay, source):
    rows, config = stored(PLAIN)
    part = {
        "shuffle": lambda: rows.shuffle(seed=1),
        "filter": lambda: rows.filter(lambda label: label == 2, input_columns="label"),
        "concatenate": lambda: concatenate_datasets([rows.select([57, 50, 69]), rows.select(range(5))]),
    }[kind]()
    whole, dataset = replay(seed=9), ReinforcedDataset(part, config, source, seed=9)
    assert len(dataset) == len(part) > 0
    for epoch in range(2):
        for position, row in enumerate(part["source_row"]):
            same(dataset[epoch * len(dataset) + position], whole[epoch * ROWS + row])
    assert [dataset.image_source().label(i) for i in range(len(part))] == part["label"][:]


def test_partner_that_is_missing_from_a_selection(stored, source):
    rows, config = stored(MIXED)
    assert len(ReinforcedDataset(rows.select([]), config, source)) == 0
    dataset = ReinforcedDataset(rows.select(range(1)), config, source, accept_pixel_mismatch=True)
    partners = [params["partner_row"] for params in rows[0]["augmentation_params"]]
    assert any(partners)
    for epoch in range(N):
        assert dataset.partners(epoch).tolist() == [-1]
        partner = partners[slot_of(dataset, epoch)]
        if partner is None:
            assert "partner_pixel_values" not in dataset[epoch]
            continue
        with pytest.raises(ValueError, match=f"mixed with row {partner}, which is missing from this selection"):
            dataset[epoch]


@pytest.mark.parametrize("policy", [PLAIN, MIXED])
def test_embedded_images_need_no_source(policy, stored, replay):
    rows, config = stored(policy, embed_images=True)
    assert "image" in rows.column_names and "image" not in stored(policy)[0].column_names
    embedded, joined = ReinforcedDataset(rows, config), replay(policy)
    for index in range(0, 2 * ROWS, 7):
        same(embedded[index], joined[index])
    assert embedded.image_source().label(3) == joined.image_source().label(3)
    shuffled = ReinforcedDataset(rows.shuffle(seed=0), config)
    same(shuffled[shuffled.position(embedded.row(10))], embedded[10])


# -- sources ------------------------------------------------------------------------------------------------------


def test_source_without_labels():
    images_of = ImageSource.of(tiny_dataset(3, labels=0))
    assert images_of.label(0) is None and not images_of.has_labels and images_of.class_names is None
    fresh = AugmentedDataset(images_of, load_policy(MIXED, SIZE))
    batch = fresh.collate(fresh.__getitems__([0, 1, 2]))
    assert "labels" not in batch and "partner_labels" not in batch and "partner" in batch


def test_source_of_files(tmp_path):
    tiny_image(1).save(tmp_path / "one.png")
    (tmp_path / "two.png").write_bytes(b"not an image")
    paths = [{"bytes": None, "path": str(tmp_path / name)} for name in ("one.png", "two.png", "none.png")]
    dataset = Dataset.from_dict({"image": [*paths, None]}, features=tiny_dataset(1, labels=0).features)
    images_of = ImageSource.of(dataset)
    assert bytes(images_of.encoded(0)) == (tmp_path / "one.png").read_bytes()
    fresh = AugmentedDataset(images_of, load_policy(PLAIN, SIZE))
    assert fresh[0]["pixel_values"].shape == (3, SIZE, SIZE)
    for row, message in ((2, r"Row 2 \(path .*none.png'\)"), (3, "Row 3"), (1, "Row 1")):
        with pytest.raises(ImageError, match=message):
            fresh[row]


# -- mistakes -----------------------------------------------------------------------------------------------------


MISTAKES = {
    "'cycle' or 'random', not 'twice'": lambda r: r(selection="twice"),
    r"plain_fraction must lie in \[0, 1\].*-0.1": lambda r: r(plain_fraction=-0.1),
    r"plain_fraction must lie in \[0, 1\].*1.5": lambda r: r(plain_fraction=1.5),
    "not stored with it; pass the source: the same dataset, split 'train'": lambda r: r(source=None),
    f"between 1 and the {ROWS} images, not 0": lambda r: EpochSampler(r(), repeats=0),
    f"between 1 and the {ROWS} images, not {ROWS + 1}": lambda r: EpochSampler(r(), repeats=ROWS + 1),
    "works with policies that do not mix": lambda r: EpochSampler(r(MIXED), repeats=2),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(message, replay):
    with pytest.raises(ValueError, match=message):
        MISTAKES[message](replay)


def test_shards_of_another_number_of_reinforcements_are_refused(stored, source):
    rows, config = stored(PLAIN)
    with pytest.raises(ValueError, match=f"hold {N} reinforcements of each image, but reinforcement.json says 9"):
        ReinforcedDataset(rows, dataclasses.replace(config, num_samples=9), source)
