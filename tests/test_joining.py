"""Which row of a source holds which image: in place, by hash, and what happens when it is nowhere."""

import multiprocessing
import pickle
import time
from unittest import mock

import numpy as np
import pytest
from datasets import Dataset, Image, concatenate_datasets
from tiny import tiny_dataset, tiny_teacher
from torch.utils.data import DataLoader

from hf_reinforce import ReinforcedDataset, load_policy, load_reinforced, reinforce, schema
from hf_reinforce.replay import joining
from hf_reinforce.replay.dataset import WrongImageError
from hf_reinforce.replay.joining import check_missing, positions_by_hash, source_positions

ROWS = 100


@pytest.fixture(scope="module")
def photos():
    return tiny_dataset(ROWS, (16, 24))


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plus")
    reinforce(photos, tiny_teacher(), load_policy("rrc", 16), folder, num_samples=1, top_k=2, device="cpu")
    return folder


@pytest.fixture(scope="module")
def loaded(photos, folder):
    """Rows and configuration of a reinforced dataset."""
    dataset = load_reinforced(str(folder), source=photos)
    rows = Dataset.from_parquet(str(next(folder.glob("rrc/*.parquet"))), cache_dir=str(folder / "cache"))
    return rows, dataset.config


def test_original_order_needs_only_a_few_images(photos, loaded):
    rows, config = loaded
    with mock.patch.object(joining, "_hash_many", side_effect=AssertionError):
        assert source_positions(rows, photos, config).tolist() == list(range(ROWS))
        some = rows.select([40, 7, 93])
        assert source_positions(some, photos, config).tolist() == [40, 7, 93]


@pytest.mark.parametrize("seed", range(3))
def test_reordered_source(photos, loaded, seed):
    rows, config = loaded
    order = np.random.default_rng(seed).permutation(ROWS)
    positions = source_positions(rows, photos.select(order.tolist()), config)
    assert (order[positions] == np.arange(ROWS)).all()


@pytest.mark.parametrize("kept", [range(ROWS - 1), range(1, ROWS), [*range(30), *range(31, ROWS)], range(0, ROWS, 9)])
def test_filtered_source(photos, loaded, kept):
    rows, config = loaded
    positions = source_positions(rows, photos.select(list(kept)), config)
    expected = np.full(ROWS, -1)
    expected[list(kept)] = np.arange(len(kept))
    assert (positions == expected).all()


def test_replaced_image_is_missing_and_the_rest_stays_in_place(photos, loaded):
    rows, config = loaded
    other = tiny_dataset(ROWS + 1, (16, 24)).select([ROWS])
    source = concatenate_datasets([other, photos.select(range(1, ROWS))])
    positions = source_positions(rows, source, config)
    assert positions[0] == -1 and (positions[1:] == np.arange(1, ROWS)).all()


def test_copies_of_an_image_keep_their_labels(photos, tmp_path):
    """Rows that hold the same bytes, with labels of their own."""
    doubled = photos.select([0, 1, 2, 1, 0, 1])
    doubled = doubled.remove_columns("label").add_column("label", [0, 1, 2, 3, 4, 0])
    reinforce(doubled, tiny_teacher(), load_policy("rrc", 16), tmp_path, num_samples=1, top_k=2, device="cpu")
    source = doubled.select([2, 0, 1, 3, 4, 5])
    dataset = load_reinforced(str(tmp_path), source=source)
    assert [dataset[row]["labels"] for row in range(6)] == [0, 1, 2, 3, 4, 0]
    fewer = load_reinforced(str(tmp_path), source=doubled.select([2, 0, 1]))
    # The labels were stored with the rows, so copies keep their own even where one image stands for several.
    assert [fewer[row]["labels"] for row in range(6)] == [0, 1, 2, 3, 4, 0]


def test_unreadable_image_of_the_source_is_missing(photos, loaded):
    rows, config = loaded
    paths = photos.cast_column("image", Image(decode=False))
    images = [item["image"] if row else {"bytes": None, "path": "gone.png"} for row, item in enumerate(paths)]
    source = Dataset.from_dict({"image": images, "label": photos["label"][:]}, features=photos.features)
    positions = source_positions(rows, source, config)
    assert positions[0] == -1 and (positions[1:] == np.arange(1, ROWS)).all()


def unprobed(loaded):
    """Two rows that are not compared beforehand."""
    _, config = loaded
    probes = joining._probes(np.arange(ROWS), [view.row for view in config.pixels.reference_views])
    return np.setdiff1d(np.arange(ROWS), probes)[[3, 4]].tolist()


def swapped(photos, loaded):
    order = np.arange(ROWS)
    order[unprobed(loaded)] = order[unprobed(loaded)[::-1]]
    return photos.select(order.tolist()), order


def without_one(photos, row):
    """Another image in the place of one."""
    other = tiny_dataset(ROWS + 1, (16, 24)).select([ROWS])
    return concatenate_datasets([photos.select(range(row)), other, photos.select(range(row + 1, ROWS))])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_two_images_that_changed_places_are_found_when_they_are_read(photos, loaded, folder, num_workers):
    source, order = swapped(photos, loaded)
    first, second = unprobed(loaded)
    assert source_positions(loaded[0], source, loaded[1]).tolist() == list(range(ROWS)), "nobody has noticed"
    whole = load_reinforced(str(folder), source=photos)
    dataset, times = load_reinforced(str(folder), source=source), multiprocessing.Value("i", 0)
    find = dataset._find_source_rows

    def counted():
        times.value += 1
        return find()

    dataset._find_source_rows = counted
    context = {"multiprocessing_context": "fork"} if num_workers else {}
    for _ in range(2):
        loader = DataLoader(dataset, 20, collate_fn=lambda samples: samples, num_workers=num_workers, **context)
        samples = [sample for batch in loader for sample in batch]
        for position in (first, second, ROWS - 1):
            assert samples[position]["labels"] == photos["label"][position]
            assert (samples[position]["pixel_values"] == whole[position]["pixel_values"]).all()
    assert times.value == 1, "what a worker found is known to those of the next epoch"
    assert order[dataset._source_rows].tolist() == list(range(ROWS))


def test_search_for_images_is_logged(photos, loaded, folder, caplog):
    dataset = load_reinforced(str(folder), source=swapped(photos, loaded)[0])
    dataset = pickle.loads(pickle.dumps(dataset))  # as a spawned worker gets it
    for row in unprobed(loaded):
        dataset[row]
    (record,) = (record for record in caplog.records if record.name != "hf_reinforce.sources.image_source")
    assert f"The image of row {unprobed(loaded)[0]} is not in its place" in record.getMessage()


def test_image_that_is_nowhere(photos, loaded, folder):
    row = unprobed(loaded)[0]
    source = without_one(photos, row)
    dataset = load_reinforced(str(folder), source=source)
    with pytest.raises(
        WrongImageError, match=rf"Row {row} .*or train on .* with allow_missing=True \(--allow_missing"
    ):
        dataset[row]
    assert dataset[row + 1]["labels"] == photos["label"][row + 1]
    rest = load_reinforced(str(folder), source=source, allow_missing=True)
    assert len(rest) == len(list(rest)) == ROWS - 1 and rest.position(row) is None


def test_source_that_became_shorter(photos, loaded):
    rows, config = loaded
    short = photos.select(range(90))
    positions = np.arange(ROWS)
    with pytest.raises(WrongImageError, match=r"has 90 rows, but row 95 was reinforced. Use the same dataset, split"):
        ReinforcedDataset(rows, config, short, source_rows=positions)[95]
    found = ReinforcedDataset(
        rows, config, short, source_rows=positions, find_source_rows=lambda: positions_by_hash(rows, short, config)
    )
    with pytest.raises(WrongImageError, match=r"row 95 was reinforced.*allow_missing=True"):
        found[95]


def test_source_without_rows(photos, loaded):
    rows, config = loaded
    assert (source_positions(rows, photos.select([]), config) == -1).all()


def test_missing_images_are_counted_in_one_warning(photos, folder, caplog):
    kept = [row for row in range(ROWS) if row not in (3, 17)]
    dataset = load_reinforced(str(folder), source=photos.select(kept), allow_missing=True)
    (record,) = (record for record in caplog.records if record.name != "hf_reinforce.sources.image_source")
    assert record.levelname == "WARNING" and len(dataset) == 98
    message = record.getMessage()
    assert message.startswith("Training on 98 of 100 images; 2 are missing: row 3 (hash ")
    assert message.count("(hash") == 2 and "row 17" in message and message.endswith(").")
    caplog.clear()
    load_reinforced(str(folder), source=photos.select(range(20, ROWS)), allow_missing=True)
    assert "20 are missing: " in caplog.text and "row 7 (hash" in caplog.text and ", ..." in caplog.text
    caplog.clear()
    load_reinforced(str(folder), source=photos, allow_missing=True)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_mixed_images_without_their_partner_are_replaced(photos, tmp_path, caplog):
    options = {"num_samples": 2, "top_k": 2, "device": "cpu"}
    reinforce(photos, tiny_teacher(), load_policy("small_mixing", 16), tmp_path, **options)
    kept = [row for row in range(ROWS) if row not in {3, 17, 60}]
    dataset = load_reinforced(str(tmp_path), source=photos.select(kept), allow_missing=True)
    assert "; what is mixed with these is replaced." in caplog.text and len(list(dataset)) == len(kept)


def test_missing_images_are_named(photos, loaded):
    rows, config = loaded
    positions = np.arange(ROWS)
    check_missing(positions, rows, config, allow_missing=False)
    positions[[3, 17]] = -1
    first = rows[3]["image_hash"]
    with pytest.raises(ValueError, match=rf"98 of the 100 .*; 2 are missing: row 3 \(hash {first}\), row 17 .*split"):
        check_missing(positions, rows, config, allow_missing=False)
    with pytest.raises(ValueError, match="0 of the 100 images"):
        check_missing(positions * 0 - 1, rows, config, allow_missing=True)


def test_data_set_over_found_rows(photos, loaded):
    rows, config = loaded
    order = list(range(ROWS - 1, 9, -1))
    source = photos.select(order)
    joined = ReinforcedDataset(rows, config, source, source_rows=source_positions(rows, source, config))
    whole = ReinforcedDataset(rows, config, photos)
    assert len(joined) == ROWS - 10
    for position in (0, 50, 89):
        sample, expected = joined[position], whole[position + 10]
        assert sample["labels"] == expected["labels"] and sample["target_tail"] == expected["target_tail"]
        assert (sample["pixel_values"] == expected["pixel_values"]).all()
    fresh = joined.image_source()
    assert [fresh.label(row) for row in range(90)] == photos["label"][10:]


def test_many_rows_are_looked_up_at_once():
    """ImageNet is sixteen times as many; the limit is generous."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 80_000, dtype=np.uint64)
    order = rng.permutation(len(hashes))
    start = time.perf_counter()
    positions = joining._lookup(hashes, np.arange(len(hashes)), hashes[order], np.arange(len(hashes)))
    assert time.perf_counter() - start < 1
    assert (order[positions] == np.arange(len(hashes))).all()


def test_a_damaged_hash_is_told_as_a_damaged_shard():
    rows = Dataset.from_dict({schema.IMAGE_HASH: ["0123456789abcdef", "0123456789abcdeg"]})
    with pytest.raises(ValueError, match=r"a shard is damaged; recipes/inspect_dataset.py --verify True names it"):
        joining._hashes(rows)
