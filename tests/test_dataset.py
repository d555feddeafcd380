"""Replay: the view, the target and the label of every sample are those of the stored reinforcement."""

import dataclasses
import functools
from itertools import islice

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from tiny import densify, reinforced_rows, tiny_dataset, tiny_image, tiny_teacher
from torch.nn import functional as F
from torch.utils.data import DataLoader

from hf_reinforce import AugmentedDataset, ImageSource, ReinforcedDataset, images, load_policy
from hf_reinforce.images import ImageError
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.replay.dataset import WrongImageError
from hf_reinforce.replay.sampler import EpochSampler
from hf_reinforce.sources.image_source import find_columns
from hf_reinforce.store.pixel_contract import PixelMismatchError
from hf_reinforce.targets.class_distribution import batch_targets

ROWS, N, K, C, SIZE, SEED = 70, 3, 3, 5, 16, 11
PLAIN, MIXED = "randaug", "mixing_randaug"


@pytest.fixture(scope="module")
def source():
    """70 rows: a whole block of mixing partners, and a part of one."""
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
    return lambda policy=PLAIN, **options: ReinforcedDataset(*stored(policy), source=source, **options)


def decoded(source, row):
    return images.decode(source.data.column("image")[row].as_py()["bytes"])


def swap_images(source, first, second):
    rows = np.arange(len(source))
    rows[[first, second]] = rows[[second, first]]
    return source.select(rows)


def same(sample, other):
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
        for position in range(0, ROWS, 3):
            row = rows[position]  # read plainly, without this package
            sample = dataset[epoch * ROWS + position]
            slot = int(dataset.slots(np.array([epoch]), np.array([position]))[0])
            view = config.policy.apply(decoded(source, row["source_row"]), row["augmentation_params"][slot])
            assert sample["pixel_values"].dtype == torch.uint8
            assert torch.equal(sample["pixel_values"], view)
            target = row["teacher_logits"][slot]
            assert sample["target_label"].tolist() == target["label"]
            assert sample["target_value"].tolist() == target["value"]
            assert float(sample["target_tail"]) == target["tail"]
            assert sample["labels"] == source[row["source_row"]]["label"] == row["label"]


def test_mixed_view_is_the_stored_mix_of_both_stored_views(stored, replay, source):
    rows, config = stored(MIXED)
    dataset = replay(MIXED)
    where = {row: position for position, row in enumerate(rows["source_row"])}
    both = 0
    for position in range(0, ROWS, 2):
        row = rows[position]
        params = row["augmentation_params"][1]
        expected = config.policy.apply(decoded(source, row["source_row"]), params).float()
        if params["partner_row"] is None:
            assert params["mixup"] is None and params["cutmix"] is None
        else:
            theirs = rows[where[params["partner_row"]]]["augmentation_params"][1]
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
    answers = teacher(torch.stack([dataset.view(position, 2) for position in range(ROWS)])).exp()
    others = teacher(torch.stack([dataset.view(position, 1) for position in range(ROWS)])).exp()
    errors, wrong = [], []
    for position in range(ROWS):
        target = dataset.target(position, 2)
        stored = torch.from_numpy(target["target_value"]).exp()
        label = torch.from_numpy(target["target_label"])
        errors.append(float((answers[position][label] - stored).abs().max()))
        wrong.append(float((others[position][label] - stored).abs().max()))
        assert float(stored.sum() + np.exp(target["target_tail"])) == pytest.approx(1, abs=0.02)
    assert max(errors) < 0.01 < 0.1 < np.mean(wrong)


@pytest.mark.parametrize("policy", [PLAIN, MIXED])
def test_epoch_e_of_fresh_augmentations_is_reinforcement_e(policy, replay, source):
    dataset = replay(policy)
    fresh = AugmentedDataset(ImageSource.of(source), dataset.policy, seed=SEED)
    assert len(fresh) == ROWS
    mixed = 0
    for position in range(ROWS):
        row = int(dataset._rows[position])
        for slot in range(N):
            sample = fresh[slot * ROWS + row]
            pixels = sample["pixel_values"].float()
            if policy == MIXED:
                stored = dataset.params(position, slot)
                for operation in dataset.policy.mix_operations:
                    assert sample["mix_params"][operation.field] == stored[operation.field]
                partner = stored["partner_row"]
                assert ("partner_pixel_values" in sample) == (partner is not None)
                if partner is not None:
                    mixed += 1
                    assert sample["partner_labels"] == source[partner]["label"]
                    assert fresh.partners(slot)[row] == partner
                    params = fresh.policy.collate_mix([sample["mix_params"]])
                    pixels = fresh.policy.mix(pixels[None], sample["partner_pixel_values"].float()[None], params)[0]
            assert torch.equal(pixels, dataset.view(position, slot))
    assert mixed > ROWS or policy == PLAIN


def test_source_of_a_reinforced_set_is_in_its_order(replay, source):
    dataset = replay(MIXED)
    rows = dataset.image_source()
    assert dataset._rows.tolist() != list(range(ROWS)), "a policy that mixes shuffles"
    assert [rows.label(position) for position in range(ROWS)] == [source[int(r)]["label"] for r in dataset._rows]
    assert bytes(rows.encoded(7)) == source.data.column("image")[int(dataset._rows[7])].as_py()["bytes"]


def test_replay_at_another_size_shows_the_same_view(replay):
    # Cutting, flipping, erasing and mixing at twice the size, then averaging, gives the view at the size itself.
    small, large = replay("mixing"), replay("mixing", image_size=2 * SIZE)
    errors, others = [], []
    for position in range(0, ROWS, 5):
        view = large.view(position, 0)
        assert view.shape == (3, 2 * SIZE, 2 * SIZE)
        reduced = F.avg_pool2d(view[None], 2)[0]
        errors.append(float((reduced - small.view(position, 0)).abs().mean()))
        others.append(float((reduced - small.view(position, 1)).abs().mean()))
        assert np.array_equal(small.target(position, 0)["target_label"], large.target(position, 0)["target_label"])
    assert max(errors) < 8 < np.mean(others)


def test_erased_box_scales_with_the_view(stored, replay, source):
    rows, _ = stored(PLAIN)
    large = replay(PLAIN, image_size=3 * SIZE)
    erased = 0
    for position in range(ROWS):
        box = rows[position]["augmentation_params"][0]["erase"]
        if box is not None:
            erased += 1
            top, left = 3 * box["top"], 3 * box["left"]
            inside = large.view(position, 0)[:, top : top + 3 * box["height"], left : left + 3 * box["width"]]
            assert inside.numel() and (inside == 0).all()
    assert erased > 5


@pytest.mark.parametrize("kind", ["stored", "fresh"])
def test_iteration_ends_after_an_epoch(kind, replay, source):
    dataset = replay()
    if kind == "fresh":
        dataset = AugmentedDataset(ImageSource.of(source), dataset.policy, seed=SEED)
    samples = list(islice(dataset, ROWS + 1))
    assert len(samples) == ROWS
    for position in (0, ROWS - 1):
        same(samples[position], dataset[position])


# -- which reinforcement ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [PLAIN, MIXED])
def test_cycle_uses_every_reinforcement_once_before_any_twice(policy, replay):
    dataset = replay(policy, seed=3)
    positions = np.arange(ROWS)
    slots = np.stack([dataset.slots(np.full(ROWS, epoch), positions) for epoch in range(2 * N)])
    for first in (0, N):
        assert (np.sort(slots[first : first + N], axis=0) == np.arange(N)[:, None]).all()
    if policy == PLAIN:
        assert len(np.unique(slots[0])) == N, "rows start at different reinforcements"
    else:
        assert all(len(np.unique(epoch)) == 1 for epoch in slots), "partners share a slot"


def test_random_selection_draws_with_replacement(replay):
    dataset = replay(selection="random", seed=3)
    positions = np.arange(ROWS)
    slots = np.stack([dataset.slots(np.full(ROWS, epoch), positions) for epoch in range(60)])
    counts = np.bincount(slots.reshape(-1), minlength=N)
    assert abs(counts / counts.sum() - 1 / N).max() < 0.03
    assert (np.sort(slots[:N], axis=0) != np.arange(N)[:, None]).any()
    again = replay(selection="random", seed=3)
    other = replay(selection="random", seed=4)
    assert np.array_equal(again.slots(np.full(ROWS, 5), positions), slots[5])
    assert not np.array_equal(other.slots(np.full(ROWS, 5), positions), slots[5])


def test_shards_of_another_number_of_reinforcements_are_refused(stored, source):
    rows, config = stored(PLAIN)
    with pytest.raises(ValueError, match=f"hold {N} reinforcements of each image, but reinforcement.json says 9"):
        ReinforcedDataset(rows, dataclasses.replace(config, num_samples=9), source)


def test_unknown_selection(replay):
    with pytest.raises(ValueError, match="'cycle' or 'random', not 'twice'"):
        replay(selection="twice")


# -- batches ------------------------------------------------------------------------------------------------------


def count_decodes(monkeypatch):
    calls = []
    decode = images.decode

    def counting(encoded, box=None):
        calls.append(images.image_hash(encoded))
        return decode(encoded, box)

    monkeypatch.setattr(images, "decode", counting)
    return calls


@pytest.mark.parametrize("kind", ["stored", "fresh"])
def test_batch_names_the_partner_of_every_sample(kind, replay, source, monkeypatch):
    dataset = replay(MIXED)
    if kind == "fresh":
        dataset = AugmentedDataset(ImageSource.of(source), dataset.policy, seed=SEED)
    calls = count_decodes(monkeypatch)
    positions = list(range(12))  # not chosen with their partners, so some come as extras
    samples = dataset.__getitems__([ROWS + position for position in positions])
    batch = dataset.collate(samples)
    slot = int(dataset.slots(np.array([1]), np.array([0]))[0])
    partners = [sample.get("partner_pixel_values") for sample in samples]
    needed = set(positions)
    for position, view in zip(positions, partners, strict=True):
        if view is not None:
            needed.add(int(dataset.partners(1)[position]))
    assert sorted(calls) == sorted(set(calls)), "an image is decoded once in a batch"
    assert len(calls) == len(needed) > len(positions)
    assert batch["pixel_values"].shape == (len(needed), 3, SIZE, SIZE)
    for i, (position, sample) in enumerate(zip(positions, samples, strict=True)):
        assert torch.equal(batch["pixel_values"][i], sample["pixel_values"])
        index = int(batch["partner"][i])
        if partners[i] is None:
            assert index == i and batch["partner_labels"][i] == batch["labels"][i]
            continue
        other = int(dataset.partners(1)[position])
        if kind == "stored":
            row = dataset.params(position, slot)["partner_row"]
            assert int(dataset._rows[other]) == row
        else:
            row = other
        view = dataset.policy.apply(decoded(source, row), dataset.params(other, slot))
        assert torch.equal(batch["pixel_values"][index], view)
        assert int(batch["partner_labels"][i]) == source[row]["label"]
        assert (index < len(positions)) == (other in positions)
        if other in positions:
            assert index == positions.index(other)


def test_batch_of_a_policy_that_does_not_mix(replay):
    dataset = replay()
    batch = dataset.collate(dataset.__getitems__([5, 4]))
    assert set(batch) == {"pixel_values", "labels", "target_label", "target_value", "target_tail"}
    assert batch["pixel_values"].dtype == torch.uint8 and batch["target_label"].shape == (2, K)
    assert batch["target_label"].dtype == batch["labels"].dtype == torch.int64
    assert batch["target_tail"].shape == (2,) and batch["target_value"].dtype == torch.float32


@pytest.mark.parametrize("kind", ["stored", "stored mixed", "fresh mixed"])
def test_sampler_is_a_permutation_that_depends_on_seed_and_epoch(kind, replay, source):
    dataset = replay(MIXED if "mixed" in kind else PLAIN)
    if kind == "fresh mixed":
        dataset = AugmentedDataset(ImageSource.of(source), dataset.policy, seed=SEED)
    orders = {}
    for seed in (0, 1):
        sampler = EpochSampler(dataset, seed)
        assert len(sampler) == ROWS
        for epoch in (0, 1, 5):
            sampler.set_epoch(epoch)
            order = list(sampler)
            assert order == list(sampler)
            assert sorted(order) == list(range(epoch * ROWS, (epoch + 1) * ROWS))
            orders[seed, epoch] = [item % ROWS for item in order]
            assert orders[seed, epoch] != sorted(orders[seed, epoch])
    assert len({tuple(order) for order in orders.values()}) == len(orders)


@pytest.mark.parametrize("kind", ["stored", "fresh"])
@pytest.mark.parametrize("batch_size", [2, 8])
def test_sampler_puts_partners_into_the_same_batch(kind, batch_size, replay, source, monkeypatch):
    dataset = replay(MIXED)
    if kind == "fresh":
        dataset = AugmentedDataset(ImageSource.of(source), dataset.policy, seed=SEED)
    sampler = EpochSampler(dataset, 2)
    calls = count_decodes(monkeypatch)
    for epoch in range(N):
        sampler.set_epoch(epoch)
        order = [item % ROWS for item in sampler]
        place = {position: index for index, position in enumerate(order)}
        partners = dataset.partners(epoch)
        for position in range(ROWS):
            partner = int(partners[position])
            if partner >= 0 and partner != position:
                assert abs(place[position] - place[partner]) == 1
                assert place[position] // batch_size == place[partner] // batch_size
    calls.clear()
    for batch in DataLoader(dataset, batch_size, sampler=sampler, collate_fn=dataset.collate):
        assert len(batch["pixel_values"]) == len(batch["labels"]), "no partner comes from outside of the batch"
    assert len(calls) == ROWS, "no image is decoded twice in an epoch"


@pytest.mark.parametrize("repeats", [2, 3])
@pytest.mark.parametrize("kind", ["stored", "fresh"])
def test_repeated_augmentation_reorders_the_samples_of_several_epochs(kind, repeats, replay, source, monkeypatch):
    dataset = replay(PLAIN)
    if kind == "fresh":
        dataset = AugmentedDataset(ImageSource.of(source), dataset.policy, seed=SEED)
    sampler = EpochSampler(dataset, 2, repeats)
    part = ROWS // repeats
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
    calls = count_decodes(monkeypatch)
    batches = list(DataLoader(dataset, 2 * repeats, sampler=sampler, collate_fn=dataset.collate))
    assert len(calls) == part, "an image is decoded once for all of its augmentations"
    single = dataset.collate([dataset[index] for index in order[: 2 * repeats]])
    assert_same_batches(batches[:1], [single])


def test_repeated_augmentation_must_fit(replay):
    for repeats in (0, ROWS + 1):
        with pytest.raises(ValueError, match=f"between 1 and the {ROWS} images, not {repeats}"):
            EpochSampler(replay(PLAIN), repeats=repeats)
    with pytest.raises(ValueError, match="works with policies that do not mix"):
        EpochSampler(replay(MIXED), repeats=2)


def test_pairs_are_reciprocal(replay):
    dataset = replay(MIXED)
    partners = dataset.partners(0)
    paired = np.flatnonzero(partners >= 0)
    assert len(paired) > ROWS / 2
    assert (partners[partners[paired]] == paired).all()
    assert (paired // PARTNER_BLOCK == partners[paired] // PARTNER_BLOCK).all()
    assert (replay(PLAIN).partners(0) == -1).all()


def batches(dataset, epoch=1, **options):
    sampler = EpochSampler(dataset, 0)
    sampler.set_epoch(epoch)
    return list(DataLoader(dataset, 16, sampler=sampler, collate_fn=dataset.collate, **options))


def assert_same_batches(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("policy", [PLAIN, MIXED])
def test_workers_change_nothing(policy, replay):
    dataset = replay(policy, plain_fraction=0.2)
    alone = batches(dataset)
    for workers in (1, 2):
        assert_same_batches(alone, batches(dataset, num_workers=workers, multiprocessing_context="fork"))


def test_spawned_worker_changes_nothing(stored, source):
    rows, config = stored(MIXED)
    dataset = ReinforcedDataset(rows, config, source)
    sampler = list(range(8))
    options = {"batch_size": 4, "sampler": sampler, "collate_fn": dataset.collate}
    spawned = list(DataLoader(dataset, num_workers=1, multiprocessing_context="spawn", **options))
    assert_same_batches(list(DataLoader(dataset, **options)), spawned)


# -- the wrong image, the wrong pixels ----------------------------------------------------------------------------


def test_reordered_source_is_refused_and_never_gives_a_label(stored, source):
    rows, config = stored(PLAIN)
    backwards = source.select(range(ROWS - 1, -1, -1))
    with pytest.raises(WrongImageError, match="Row 0 of the source holds another image"):
        ReinforcedDataset(rows, config, backwards)
    dataset = ReinforcedDataset(rows, config, backwards, accept_pixel_mismatch=True)
    for position in range(ROWS):
        with pytest.raises(WrongImageError, match=f"Row {position} of the source .*split 'train', in its original"):
            dataset[position]


def test_one_replaced_image_is_refused_when_it_is_read(stored, source):
    rows, config = stored(PLAIN)
    swapped = swap_images(source, 40, 45)
    dataset = ReinforcedDataset(rows, config, swapped)
    for position in range(ROWS):
        if position in (40, 45):
            with pytest.raises(WrongImageError, match=f"Row {position} of the source holds another image"):
                dataset[position]
        else:
            assert dataset[position]["labels"] == source[position]["label"]
    with pytest.raises(WrongImageError, match="Row 40"):
        list(DataLoader(dataset, 10, collate_fn=dataset.collate))


def test_replaced_partner_is_refused(stored, source):
    rows, config = stored(MIXED)
    intact = ReinforcedDataset(rows, config, source)
    position = next(p for p in range(10, ROWS) if intact.params(p, 0)["partner_row"] not in (None, 0, 1, 2, 3))
    partner = intact.params(position, 0)["partner_row"]
    stranger = next(r for r in range(4, ROWS) if r not in (partner, intact._rows[position]))
    dataset = ReinforcedDataset(rows, config, swap_images(source, partner, stranger))
    epoch = next(e for e in range(N) if dataset.slots(np.array([e]), np.array([0]))[0] == 0)
    with pytest.raises(WrongImageError, match=f"Row {partner} of the source"):
        dataset[epoch * ROWS + position]


def test_reencoded_image_is_another_image(stored, source):
    rows, config = stored(PLAIN)
    columns = source.to_dict()
    columns["image"][50] = {"bytes": columns["image"][51]["bytes"], "path": columns["image"][50]["path"]}
    dataset = ReinforcedDataset(rows, config, Dataset.from_dict(columns, features=source.features))
    assert dataset[51]["labels"] == 1
    with pytest.raises(WrongImageError, match="Row 50 .*expected [0-9a-f]{16}"):
        dataset[50]


def test_shorter_source_is_refused(stored, source):
    rows, config = stored(PLAIN)
    dataset = ReinforcedDataset(rows, config, source.select(range(20)))
    assert dataset[19]["labels"] == 19 % C
    with pytest.raises(WrongImageError, match="20 rows, but row 20 was reinforced"):
        dataset[20]


def test_longer_source_is_accepted(stored, source, replay):
    rows, config = stored(PLAIN)
    longer = concatenate_datasets([source, tiny_dataset(5, labels=C)])
    same(ReinforcedDataset(rows, config, longer)[60], replay()[60])


def test_other_pixels_are_refused_unless_accepted(stored, source, replay, monkeypatch):
    expected = replay()[5]
    resize = images.resize

    def brighter(image, height, width, interpolation="bilinear"):
        return resize(image, height, width, interpolation) | 1

    monkeypatch.setattr(images, "resize", brighter)
    rows, config = stored(PLAIN)
    with pytest.raises(PixelMismatchError, match=r"accept_pixel_mismatch=True \(--accept_pixel_mismatch True\)"):
        ReinforcedDataset(rows, config, source)
    with pytest.raises(PixelMismatchError, match="row 0, reinforcement 0.*same libraries"):
        ReinforcedDataset(rows, config, source)
    accepted = ReinforcedDataset(rows, config, source, accept_pixel_mismatch=True)[5]
    assert not torch.equal(accepted["pixel_values"], expected["pixel_values"])
    assert accepted["target_label"].tolist() == expected["target_label"].tolist()


def test_pixel_mismatch_names_the_libraries_that_differ(stored, source, monkeypatch):
    import dataclasses

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
    pure, some = replay(policy), replay(policy, plain_fraction=0.25)
    again = replay(policy, plain_fraction=0.25)
    plain = 0
    epochs = range(6)
    for epoch in epochs:
        indices = [epoch * ROWS + position for position in range(ROWS)]
        for kept, sample, twin in zip(*(d.__getitems__(indices) for d in (pure, some, again)), strict=True):
            same(sample, twin)
            label = sample["labels"]
            assert label == kept["labels"]
            batch = some.collate([sample])
            probabilities = densify(batch_targets(batch), C).exp()[0]
            if torch.equal(probabilities, F.one_hot(torch.tensor(label), C).float()):
                plain += 1
                assert not torch.equal(sample["pixel_values"], kept["pixel_values"])
                if policy == MIXED:
                    assert "partner_pixel_values" not in sample
                    assert sample["mix_params"]["mixup"] is None and sample["mix_params"]["cutmix"] is None
            else:
                same(sample, kept)
    share = plain / (len(epochs) * ROWS)
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / (len(epochs) * ROWS)) ** 0.5


def test_plain_views_are_fresh_every_epoch_and_everything_can_be_plain(replay):
    dataset = replay(plain_fraction=1.0)
    views = [dataset[epoch * ROWS + 8]["pixel_values"] for epoch in range(4)]
    assert all(not torch.equal(views[0], view) for view in views[1:])
    batch = dataset.collate(dataset.__getitems__(list(range(ROWS))))
    assert batch["target_label"].shape == (ROWS, K)
    assert (batch["target_label"].sort(-1).values.diff() > 0).all(), "the classes of a target differ"
    expected = F.one_hot(batch["labels"], C).float()
    assert torch.equal(densify(batch_targets(batch), C).exp(), expected)


def test_plain_partner_is_mixed_as_it_was_stored(replay):
    pure, some = replay(MIXED), replay(MIXED, plain_fraction=0.5)
    kept, found = (d.collate(d.__getitems__(list(range(ROWS)))) for d in (pure, some))
    stored = (found["target_value"] == kept["target_value"]).all(-1)
    assert 0.3 < stored.float().mean() < 0.7
    partners = kept["pixel_values"][kept["partner"]]
    assert torch.equal(found["pixel_values"][found["partner"]][stored], partners[stored])
    assert torch.equal(found["partner_labels"][stored], kept["partner_labels"][stored])


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_plain_fraction_out_of_range(fraction, replay):
    with pytest.raises(ValueError, match="plain_fraction must lie in"):
        replay(plain_fraction=fraction)


# -- selections ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["select", "shuffle", "filter", "concatenate"])
def test_part_of_a_reinforced_set_keeps_every_row_as_it_was(kind, stored, replay, source):
    rows, config = stored(PLAIN)
    part = {
        "select": lambda: rows.select([33, 2, 65]),
        "shuffle": lambda: rows.shuffle(seed=1),
        "filter": lambda: rows.filter(lambda label: label == 2, input_columns="label"),
        "concatenate": lambda: concatenate_datasets([rows.select(range(50, 60)), rows.select(range(5))]),
    }[kind]()
    whole, dataset = replay(seed=9), ReinforcedDataset(part, config, source, seed=9)
    assert len(dataset) == len(part) > 0
    for epoch in range(2):
        for position, row in enumerate(part["source_row"]):
            same(dataset[epoch * len(dataset) + position], whole[epoch * ROWS + row])


def test_partner_that_is_missing_from_a_selection(stored, source):
    rows, config = stored(MIXED)
    dataset = ReinforcedDataset(rows.select(range(1)), config, source, accept_pixel_mismatch=True)
    mixed = [slot for slot in range(N) if rows[0]["augmentation_params"][slot]["partner_row"] is not None]
    assert mixed
    refused = 0
    for epoch in range(N):
        slot = int(dataset.slots(np.array([epoch]), np.array([0]))[0])
        assert dataset.partners(epoch).tolist() == [-1]
        if slot in mixed:
            partner = rows[0]["augmentation_params"][slot]["partner_row"]
            with pytest.raises(ValueError, match=f"mixed with row {partner}, which is missing from this selection"):
                dataset[epoch]
            refused += 1
        else:
            assert "partner_pixel_values" not in dataset[epoch]
    assert refused == len(mixed)


def test_embedded_images_need_no_source(stored, replay):
    for policy in (PLAIN, MIXED):
        rows, config = stored(policy, embed_images=True)
        assert "image" in rows.column_names and "image" not in stored(policy)[0].column_names
        embedded, joined = ReinforcedDataset(rows, config), replay(policy)
        for index in range(0, 2 * ROWS, 7):
            same(embedded[index], joined[index])
        assert embedded.image_source().label(3) == joined.image_source().label(3)
        shuffled = ReinforcedDataset(rows.shuffle(seed=0), config)
        position = shuffled.position(int(embedded._rows[10]))
        same(shuffled[position], embedded[10])


def test_missing_source(stored):
    rows, config = stored(PLAIN)
    with pytest.raises(ValueError, match="not stored with it; pass the source: a Dataset, split 'train'"):
        ReinforcedDataset(rows, config)


# -- sources ------------------------------------------------------------------------------------------------------


def test_source_reads_bytes_and_labels_through_a_selection(source):
    images_of = ImageSource.of(source.select([9, 4]))
    assert len(images_of) == 2 and images_of.has_labels
    assert images_of.class_names == tuple(source.features["label"].names)
    assert bytes(images_of.encoded(1)) == source.data.column("image")[4].as_py()["bytes"]
    assert [images_of.label(0), images_of.label(1)] == [9 % C, 4 % C]
    assert images_of.select([1]).label(0) == 4 % C


def test_source_without_labels():
    dataset = tiny_dataset(3, labels=0)
    images_of = ImageSource.of(dataset)
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
    with pytest.raises(ImageError, match=r"Row 2 \(path .*none.png'\)"):
        fresh[2]
    with pytest.raises(ImageError, match="Row 3"):
        fresh[3]
    with pytest.raises(ImageError, match="Row 1"):  # which of a million it is
        fresh[1]


def test_columns_are_found_or_the_error_lists_them(source):
    assert find_columns(source.features) == ("image", "label")
    assert find_columns(source.features, label_column="") == ("image", None)
    assert find_columns(source.rename_column("label", "kind").features) == ("image", "kind")
    assert find_columns(source.remove_columns("label").features) == ("image", None)
    twice = source.add_column("fine", [0] * ROWS).cast_column("fine", source.features["label"])
    assert find_columns(twice.features) == ("image", "label")
    with pytest.raises(ValueError, match=r"no image column 'picture'; its columns are \['image', 'label'\]"):
        find_columns(source.features, "picture")
    with pytest.raises(ValueError, match=r"of which none hold images"):
        find_columns(source.remove_columns("image").features)
    with pytest.raises(ValueError, match=r"no label column 'kind'; its columns are \['image', 'label'\]"):
        find_columns(source.features, label_column="kind")
    with pytest.raises(ValueError, match="no column 'picture'"):
        ImageSource(source, "picture")
