"""Which row of a source holds which image: in place, by hash, and what happens when it is nowhere."""

import multiprocessing
import pickle

import numpy as np
import pytest
from datasets import Dataset, Image, concatenate_datasets
from tiny import stored_rows, tiny_dataset, tiny_teacher
from torch.utils.data import DataLoader

from hf_reinforce import ReinforcedDataset, ReinforcementConfig, load_policy, load_reinforced, reinforce
from hf_reinforce.replay import dataset as replay
from hf_reinforce.replay import joining
from hf_reinforce.replay.joining import positions_by_hash, source_positions

ROWS, SWAPPED = 100, (38, 41)  # two rows that are not among those that are compared beforehand
OPTIONS = {"top_k": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def photos():
    return tiny_dataset(ROWS, (16, 24))


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plus")
    reinforce(photos, tiny_teacher(), load_policy("rrc", 16), folder, num_samples=1, **OPTIONS)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    """Rows and configuration of a reinforced dataset."""
    return stored_rows(folder / "rrc"), ReinforcementConfig.load(folder / "rrc")


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def replaced(photos, row):
    """Another image in the place of one."""
    other = tiny_dataset(ROWS + 1, (16, 24)).select([ROWS])
    return concatenate_datasets([photos.select(range(row)), other, photos.select(range(row + 1, ROWS))])


def unreadable(photos, row):
    rows = photos.cast_column("image", Image(decode=False)).to_list()
    rows[row]["image"] = {"bytes": None, "path": "gone.png"}
    return Dataset.from_list(rows, features=photos.features)


SOURCES = {
    "in order": (lambda photos: photos, list(range(ROWS))),
    "reordered": (lambda photos: photos.select(range(ROWS - 1, -1, -1)), list(range(ROWS - 1, -1, -1))),
    "last": (lambda photos: photos.select(range(ROWS - 1)), [*range(ROWS - 1), -1]),
    "first": (lambda photos: photos.select(range(1, ROWS)), [-1, *range(ROWS - 1)]),
    "middle": (lambda photos: photos.select([*range(30), *range(31, ROWS)]), [*range(30), -1, *range(30, ROWS - 1)]),
    "replaced": (lambda photos: replaced(photos, 0), [-1, *range(1, ROWS)]),
    "unreadable": (lambda photos: unreadable(photos, 0), [-1, *range(1, ROWS)]),
    "empty": (lambda photos: photos.select([]), [-1] * ROWS),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_where_the_images_are(kind, photos, loaded, monkeypatch):
    change, expected = SOURCES[kind]
    rows, config = loaded
    source = change(photos)
    assert positions_by_hash(rows, source, config).tolist() == expected
    if kind == "in order":  # needs only a few images
        monkeypatch.setattr(joining, "positions_by_hash", None)
        assert source_positions(rows.select([40, 7, 93]), source, config).tolist() == [40, 7, 93]
    assert source_positions(rows, source, config).tolist() == expected


def test_copies_of_an_image_keep_their_labels(photos, tmp_path):
    """Rows that hold the same bytes, with labels of their own, which were stored with the rows."""
    doubled = photos.select([0, 1, 2, 1, 0, 1])
    doubled = doubled.remove_columns("label").add_column("label", [0, 1, 2, 3, 4, 0])
    reinforce(doubled, tiny_teacher(), load_policy("rrc", 16), tmp_path, num_samples=1, **OPTIONS)
    for order in ([2, 0, 1, 3, 4, 5], [2, 0, 1]):
        dataset = load_reinforced(str(tmp_path), source=doubled.select(order))
        assert [dataset[row]["labels"] for row in range(6)] == [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_that_changed_places_are_found_when_they_are_read(
    photos, loaded, folder, num_workers, monkeypatch, caplog
):
    order, times = np.arange(ROWS), multiprocessing.Value("i", 0)
    order[list(SWAPPED)] = SWAPPED[::-1]
    source = photos.select(order.tolist())

    def counted(*args):
        times.value += 1
        return positions_by_hash(*args)

    assert source_positions(loaded[0], source, loaded[1]).tolist() == list(range(ROWS)), "nobody has noticed"
    monkeypatch.setattr(replay, "positions_by_hash", counted)
    whole = load_reinforced(str(folder), source=photos)
    dataset = load_reinforced(str(folder), source=source)
    if not num_workers:
        dataset = pickle.loads(pickle.dumps(dataset))  # as a spawned worker gets it
    context = {"multiprocessing_context": "fork"} if num_workers else {}
    for _ in range(2):
        loader = DataLoader(dataset, 20, collate_fn=lambda samples: samples, num_workers=num_workers, **context)
        samples = [sample for batch in loader for sample in batch]
        for position in (*SWAPPED, ROWS - 1):
            assert samples[position]["labels"] == photos["label"][position]
            assert (samples[position]["pixel_values"] == whole[position]["pixel_values"]).all()
    assert times.value == 1, "what a worker found is known to those of the next epoch"
    assert num_workers or f"The image of row {SWAPPED[0]} is not in its place" in warnings(caplog)[0]


@pytest.mark.parametrize("how", ["swapped", "reversed"])
def test_images_are_found_without_being_looked_for(how, photos, loaded):
    order = list(range(ROWS - 1, -1, -1)) if how == "reversed" else [*range(38), 41, 39, 40, 38, *range(42, ROWS)]
    dataset, whole = ReinforcedDataset(*loaded, photos.select(order)), ReinforcedDataset(*loaded, photos)
    for position in (0, *SWAPPED):
        assert (dataset[position]["pixel_values"] == whole[position]["pixel_values"]).all()
    fresh = dataset.image_source()
    assert [fresh.label(row) for row in range(ROWS)] == photos["label"][:]


@pytest.mark.parametrize("kind", ["replaced", "re-encoded", "shorter"])
def test_image_that_is_nowhere(kind, photos, loaded):
    row, columns = SWAPPED[0], photos.to_dict()
    columns["image"][row] = {"bytes": columns["image"][row]["bytes"] + b"\0", "path": None}
    source = {
        "replaced": lambda: replaced(photos, row),
        "re-encoded": lambda: Dataset.from_dict(columns, features=photos.features),
        "shorter": lambda: photos.select(range(row)),
    }[kind]()
    dataset = ReinforcedDataset(*loaded, source)
    message = (
        rf"^Row {row} of the source, which has {len(source)} rows, .*Use the same dataset, .*--allow_missing True"
    )
    for _ in range(2):
        with pytest.raises(replay.WrongImageError, match=message):
            dataset[row]
    assert dataset[row - 1]["labels"] == photos["label"][row - 1]


def test_missing_images_are_counted_and_named(photos, folder, loaded, caplog):
    kept = [row for row in range(ROWS) if row not in (3, 17)]
    first = loaded[0][3]["image_hash"]
    message = f"holds 98 of the 100 images that were reinforced; 2 are missing: row 3 (hash {first}), row 17 (hash "
    with pytest.raises(ValueError, match="Use the same dataset, split 'train'.* allow_missing=True") as refused:
        load_reinforced(str(folder), source=photos.select(kept))
    assert message in str(refused.value)
    caplog.clear()
    dataset = load_reinforced(str(folder), source=photos.select(kept), allow_missing=True)
    (said,) = warnings(caplog)
    assert message in said and said.endswith("Training goes on with the others.")
    assert len(dataset) == len(list(dataset)) == 98 and dataset.position(3) is None
    assert [dataset[i]["labels"] for i in range(98)] == [photos["label"][row] for row in kept]
    caplog.clear()
    load_reinforced(str(folder), source=photos.select(range(20, ROWS)), allow_missing=True)
    assert "20 are missing: " in caplog.text and "row 7 (hash" in caplog.text and ", ..." in caplog.text
    caplog.clear()
    load_reinforced(str(folder), source=photos, allow_missing=True)
    assert not warnings(caplog)
    with pytest.raises(ValueError, match="0 of the 100 images"):
        load_reinforced(str(folder), source=tiny_dataset(ROWS + 1, (16, 24)).select([ROWS]), allow_missing=True)


def test_mixed_images_without_their_partner_are_replaced(photos, tmp_path, caplog):
    reinforce(photos, tiny_teacher(), load_policy("small_mixing", 16), tmp_path, num_samples=2, **OPTIONS)
    kept = [row for row in range(ROWS) if row not in {3, 17, 60}]
    dataset = load_reinforced(str(tmp_path), source=photos.select(kept), allow_missing=True)
    assert "What is mixed with the missing ones is replaced." in caplog.text and len(list(dataset)) == len(kept)
