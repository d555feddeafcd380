"""Datasets by name: sources, reinforced folders, and what is refused before anything is sent or trained."""

import dataclasses
import shutil

import pytest
from datasets import DatasetDict
from huggingface_hub import HfApi
from tiny import NAMES, encode_image, tiny_dataset, tiny_image, tiny_teacher

from hf_reinforce import ReinforcementConfig, load_policy, load_reinforced, push_to_hub, reinforce
from hf_reinforce.hub.load import is_reinforced, load_source
from hf_reinforce.local_copies import resolve
from hf_reinforce.store.config import CONFIG_FILE

ROWS, N = 12, 2


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder with the source as Parquet, and the source reinforced under two policies."""
    folder = tmp_path_factory.mktemp("originals")
    parquet(folder / "pets", tiny_dataset(ROWS))
    for policy in ("rrc", "mixing"):
        options = {"num_samples": N, "top_k": 3, "num_workers": 1, "source_name": str(folder / "pets")}
        reinforce(tiny_dataset(ROWS), tiny_teacher(), load_policy(policy, 16), folder / "pets-plus", **options)
    return folder


@pytest.fixture
def plus(originals, tmp_path):
    """A copy of the reinforced folder that a test may spoil."""
    return shutil.copytree(originals / "pets-plus", tmp_path / "pets-plus")


def parquet(folder, dataset, split="train"):
    folder.mkdir(exist_ok=True)
    dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def change_config(folder, **changes):
    dataclasses.replace(ReinforcementConfig.load(folder), **changes).save(folder)


# -- sources ------------------------------------------------------------------------------------------------------


def test_source_of_a_parquet_folder(tmp_path):
    parquet(tmp_path / "pets", tiny_dataset(6))
    parquet(tmp_path / "pets", tiny_dataset(3), "test")
    train, test = load_source(str(tmp_path / "pets")), load_source(str(tmp_path / "pets"), split="test")
    assert (len(train), len(test)) == (6, 3)
    assert train.features["label"].names == list(NAMES[:5])
    assert train[4]["label"] == 4 and train[4]["image"].size == tiny_dataset(6)[4]["image"].size


def test_source_of_an_image_folder(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for row in range(count):
            folder = tmp_path / "pets" / split / NAMES[row % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{row}.png").write_bytes(encode_image(tiny_image(row)))
    train, test = load_source(str(tmp_path / "pets")), load_source(str(tmp_path / "pets"), split="test")
    assert (len(train), len(test)) == (4, 2)
    assert train.features["label"].names == ["ant", "bee"]
    assert sorted(train["label"]) == [0, 0, 1, 1]


def test_local_copy_of_a_hub_id(originals, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_REINFORCE_LOCAL", f"{tmp_path}:{originals}")
    assert resolve("owner/pets") == str(originals / "pets")
    assert resolve("owner/birds") == "owner/birds"
    assert len(load_source("owner/pets", revision="a1b2c3")) == ROWS
    monkeypatch.setenv("HF_REINFORCE_LOCAL", "")
    assert resolve("owner/pets") == "owner/pets"
    assert resolve(str(originals)) == str(originals)


def test_missing_source_is_named(tmp_path):
    with pytest.raises(
        ValueError, match="There is no dataset .owner/nothing., neither as a folder nor in the cache.*HF_HUB_OFFLINE"
    ):
        load_source("owner/nothing")
    with pytest.raises(ValueError, match="There is no dataset"):
        load_source(str(tmp_path / "nothing"))


def test_folder_without_data(tmp_path):
    with pytest.raises(ValueError, match=r"^The folder .*holds no images or Parquet files; check its path.$"):
        load_source(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "The name is empty; give a Hub id, such as .* or a folder"),
        (" ", "The name is empty"),
        ("me/", "There is no dataset 'me/'"),
        ("me/..", "There is no dataset 'me/..'"),
        (
            "x" * 5000,
            r"The name 'x{60}', of 5,000 characters, cannot be looked up \(File name too long\); give a Hub id",
        ),
    ],
)
def test_names_that_are_none(name, expected, originals, monkeypatch):
    monkeypatch.setenv("HF_REINFORCE_LOCAL", str(originals))
    monkeypatch.chdir(originals / "pets-plus")
    for function in (load_reinforced, load_source, is_reinforced):
        with pytest.raises(ValueError, match=expected) as caught:
            function(name)
        assert "\n" not in str(caught.value)


def test_empty_revision(monkeypatch):
    for function in (load_reinforced, load_source, is_reinforced):
        with pytest.raises(ValueError, match="The revision is empty; name a branch, tag or commit, or leave it out"):
            function("owner/nothing", revision="")


def test_missing_split_names_those_there_are(originals):
    with pytest.raises(ValueError, match=r"(?s)validation.*train"):
        load_source(str(originals / "pets"), split="validation")


# -- reinforced datasets -----------------------------------------------------------------------------------------


def test_reinforced_folder_finds_its_source(originals):
    dataset = load_reinforced(str(originals / "pets-plus"), "rrc")
    assert len(dataset) == ROWS and dataset.config.policy.name == "rrc"
    source = tiny_dataset(ROWS)
    assert [dataset[row]["labels"] for row in range(ROWS)] == source["label"]
    smaller = load_reinforced(
        str(originals / "pets-plus"), "rrc", max_rows=5, image_size=8, seed=3, selection="random"
    )
    assert len(smaller) == 5 and smaller[0]["pixel_values"].shape == (3, 8, 8)
    assert (smaller.seed, smaller.selection) == (3, "random")


def test_source_may_be_given(originals, plus, tmp_path):
    change_config(plus / "rrc", source=dataclasses.replace(ReinforcementConfig.load(plus / "rrc").source, name=None))
    with pytest.raises(ValueError, match="does not record where its images are; pass source="):
        load_reinforced(str(plus), "rrc")
    for source in (tiny_dataset(ROWS), str(originals / "pets")):
        assert load_reinforced(str(plus), "rrc", source=source)[3]["labels"] == 3


def test_source_in_hand_that_does_not_fit(plus, tmp_path):
    rows = tiny_dataset(ROWS)
    cases = [
        (TypeError, rows.to_iterable_dataset(), "source is a stream .* pass its Hub id or folder, or a map-style"),
        (TypeError, DatasetDict(train=rows), r"has the splits \['train'\]; pass one of them: source\['train'\]"),
        (ValueError, rows.rename_column("image", "img"), r"but has \['img', 'label'\].*rename_column\(..., 'image'\)"),
    ]
    for kind, source, expected in cases:
        with pytest.raises(kind, match=expected):
            load_reinforced(str(plus), "rrc", source=source)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("max_rows", [0, -1])
def test_no_rows_are_refused(originals, max_rows, streaming):
    with pytest.raises(
        ValueError, match=rf"max_rows \(--max_train_samples\) must be at least 1, not {max_rows}; leave"
    ):
        load_reinforced(str(originals / "pets-plus"), "rrc", max_rows=max_rows, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_names_with_brackets(plus, streaming):
    folder = plus.rename(plus.parent / "pets [2]")
    (folder / "rrc").rename(folder / "rrc[a]")
    assert len(load_reinforced(str(folder), "rrc[a]", streaming=streaming)) == ROWS


def test_source_in_another_order(plus):
    rows = tiny_dataset(ROWS).shuffle(seed=1)
    dataset = load_reinforced(str(plus), "rrc", source=rows)
    assert [dataset[position]["labels"] for position in range(ROWS)] == tiny_dataset(ROWS)["label"]


def test_missing_rows_are_noticed(plus):
    change_config(
        plus / "rrc", source=dataclasses.replace(ReinforcementConfig.load(plus / "rrc").source, num_rows=ROWS + 1)
    )
    with pytest.raises(ValueError, match=f"holds {ROWS} rows, not {ROWS + 1}: shards are missing"):
        load_reinforced(str(plus), "rrc")
    next((plus / "rrc").glob("*.parquet")).unlink()
    with pytest.raises(ValueError, match=f"holds 0 rows, not {ROWS + 1}: shards are missing"):
        load_reinforced(str(plus), "rrc")


def test_recorded_source_that_is_gone(plus, tmp_path):
    record = ReinforcementConfig.load(plus / "rrc").source
    change_config(plus / "rrc", source=dataclasses.replace(record, name=str(tmp_path / "moved")))
    with pytest.raises(ValueError, match="There is no dataset .*moved.* name them with source="):
        load_reinforced(str(plus), "rrc")


def test_only_configuration_is_found_and_several_are_named(plus):
    with pytest.raises(ValueError, match=r"has the configurations \['mixing', 'rrc'\]; name one of them"):
        load_reinforced(str(plus))
    with pytest.raises(ValueError, match=r"has the configurations \['mixing', 'rrc'\]"):
        load_reinforced(str(plus), "randaug")
    assert load_reinforced(str(plus), "mixing").config.policy.name == "mixing"
    shutil.rmtree(plus / "rrc")
    assert load_reinforced(str(plus)).config.policy.name == "mixing"


def test_folder_that_is_not_reinforced(originals):
    with pytest.raises(ValueError, match="is not a reinforced dataset; recipes/reinforce.py makes one"):
        load_reinforced(str(originals / "pets"))


def test_unfinished_data_set_is_refused(plus):
    change_config(plus / "rrc", complete=False)
    with pytest.raises(ValueError, match="is not finished; run the command that reinforces it again"):
        load_reinforced(str(plus), "rrc")
    assert len(load_reinforced(str(plus), "mixing")) == ROWS


def test_is_reinforced(originals, plus, monkeypatch):
    assert is_reinforced(str(plus)) and is_reinforced(str(plus), "rrc")
    assert not is_reinforced(str(plus), "randaug")
    assert not is_reinforced(str(originals / "pets"))
    monkeypatch.setenv("HF_REINFORCE_LOCAL", str(originals))
    assert is_reinforced("owner/pets-plus", "mixing")


def test_reinforced_copy_of_a_hub_id(originals, monkeypatch):
    monkeypatch.setenv("HF_REINFORCE_LOCAL", str(originals))
    assert len(load_reinforced("owner/pets-plus", "rrc", revision="v1")) == ROWS


# -- publishing ---------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_sent(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("sent")

    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(HfApi, name, refuse)


def test_empty_folder_is_not_published(tmp_path, nothing_is_sent):
    with pytest.raises(ValueError, match="has no configuration"):
        push_to_hub(tmp_path, "owner/pets-plus")
    with pytest.raises(ValueError, match="has no configuration"):
        push_to_hub(tmp_path / "missing", "owner/pets-plus")


def test_unfinished_folder_is_not_published(plus, nothing_is_sent):
    change_config(plus / "rrc", complete=False)
    with pytest.raises(ValueError, match="'rrc' is not finished"):
        push_to_hub(plus, "owner/pets-plus")


def test_folder_of_another_schema_is_not_published(plus, nothing_is_sent):
    file = plus / "rrc" / CONFIG_FILE
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 3'))
    with pytest.raises(ValueError, match="schema version 3"):
        push_to_hub(plus, "owner/pets-plus")


def test_the_first_rows_of_a_mixed_data_set_keep_their_partners(tmp_path):
    rows = tiny_dataset(130)
    reinforce(rows, tiny_teacher(), load_policy("small_mixing", 16), tmp_path, num_samples=2, top_k=2)
    dataset = load_reinforced(str(tmp_path), source=rows, max_rows=70)
    assert len(dataset) == 128
    assert len(dataset.__getitems__(list(range(2 * 128)))) == 256  # every image with its partner, in two epochs


def test_a_shard_that_was_copied_over_another_is_refused(tmp_path):
    dataset = tiny_dataset(128, formats=("PNG",))
    folder = reinforce(
        dataset, tiny_teacher(), load_policy("rrc", 16), tmp_path, num_samples=1, top_k=3, shard_size=64
    )
    first, second = sorted(folder.glob("*.parquet"))
    shutil.copy(first, second)
    with pytest.raises(ValueError, match=r"Row 0 of the source is there twice, in \S*00000-\S* and \S*00001-"):
        load_reinforced(str(tmp_path), source=dataset)
