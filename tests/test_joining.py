"""Which row of a source holds which image: in place, by hash, and what happens when it is nowhere."""

import time
from unittest import mock

import numpy as np
import pytest
from datasets import Dataset, Image, concatenate_datasets
from tiny import tiny_dataset, tiny_teacher

from hf_reinforce import ReinforcedDataset, joining, load_policy, load_reinforced, reinforce
from hf_reinforce.joining import check_missing, source_positions

ROWS = 100


@pytest.fixture(scope="module")
def photos():
    return tiny_dataset(ROWS, (16, 24))


@pytest.fixture(scope="module")
def loaded(photos, tmp_path_factory):
    """Rows and configuration of a reinforced data set."""
    folder = tmp_path_factory.mktemp("plus")
    reinforce(photos, tiny_teacher(), load_policy("rrc", 16), folder, num_samples=1, top_k=2, device="cpu")
    dataset = load_reinforced(str(folder), source=photos)
    rows = Dataset.from_parquet(str(next(folder.glob("rrc/*.parquet"))), cache_dir=str(folder / "cache"))
    return rows, dataset.config


def test_original_order_needs_only_a_few_images(photos, loaded):
    rows, config = loaded
    with mock.patch.object(joining, "_hash_all", side_effect=AssertionError):
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


def test_missing_images_are_named(photos, loaded):
    rows, config = loaded
    positions = np.arange(ROWS)
    check_missing(positions, rows, config, allow_missing=False)
    positions[[3, 17]] = -1
    check_missing(positions, rows, config, allow_missing=True)
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
