"""Datasets by name, from folders and from the Hub: what is loaded, joined, taken from the cache, and refused."""

import dataclasses
import hashlib
import io
import json
import logging
import os
import re
import shutil
from unittest import mock

import pytest
import yaml
from datasets import DatasetDict
from hub_client import run_recipe
from hub_server import Fault
from test_ml_dr import Original
from tiny import NAMES, tiny_dataset, tiny_teacher

from hf_reinforce import (
    ReinforcementConfig,
    create_student,
    load_policy,
    load_reinforced,
    load_source,
    reinforce,
    write_dataset_card,
)
from hf_reinforce.hub.load import is_reinforced
from hf_reinforce.hub.repository import dataset_commit
from hf_reinforce.importers.ml_dr import import_ml_dr
from hf_reinforce.local_copies import resolve

ROWS, N = 70, 2  # two shards of 64 rows
NAME, PHOTOS = "us/photos-plus", "us/photos"
SHARD = "rrc/train-00001-of-00002.parquet"


@pytest.fixture(autouse=True)
def _fresh_log(hub):
    hub.forget()
    yield
    hub.faults.clear()


def parquet(dataset):
    buffer = io.BytesIO()
    dataset.to_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos():
    return tiny_dataset(ROWS, (20, 28))


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory):
    """A folder with the images as Parquet, and the images reinforced under two policies."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "photos").mkdir()
    (folder / "photos" / "train.parquet").write_bytes(parquet(photos))
    options = {"num_samples": N, "top_k": 3, "shard_size": 64, "num_workers": 1, "device": "cpu"}
    for policy in ("rrc", "mixing"):
        to = folder / "photos-plus"
        reinforce(photos, tiny_teacher(), load_policy(policy, 16), to, source_name=str(folder / "photos"), **options)
    write_dataset_card(folder / "photos-plus")
    return folder


@pytest.fixture
def plus(folder, tmp_path):
    """A copy of the reinforced folder that a test may spoil."""
    return shutil.copytree(folder / "photos-plus", tmp_path / "photos-plus")


def change_config(folder, source=None, **changes):
    config = ReinforcementConfig.load(folder)
    dataclasses.replace(config, source=dataclasses.replace(config.source, **(source or {})), **changes).save(folder)


@pytest.fixture(scope="module")
def files(hub, folder, photos, tmp_path_factory):
    """Files of the reinforced dataset, whose images are on the Hub as the tag `v1` of a repository that moved on."""
    repository = hub.add_repository("dataset", PHOTOS, {"data/train.parquet": parquet(photos)})
    repository.tags["v1"] = repository.find("main")
    repository.add({"README.md": b"The images are gone."})
    others = photos.shuffle(seed=0).select(range(ROWS - 20))
    hub.add_repository("dataset", "us/changed", {"data/train.parquet": parquet(others)})
    plus = shutil.copytree(folder / "photos-plus", tmp_path_factory.mktemp("hub") / "photos-plus")
    for policy in ("rrc", "mixing"):
        change_config(plus / policy, {"name": PHOTOS, "revision": "v1"})
    found = {str(path.relative_to(plus)): path.read_bytes() for path in plus.rglob("*") if path.is_file()}
    hub.add_repository("dataset", NAME, found)
    return found


def alone(files, policy="rrc"):
    """One configuration of the files."""
    return {path: content for path, content in files.items() if path.startswith(policy)}


def loaded(name, *args, **kwargs):
    """In the client: labels and checksums of the views of a dataset joined with its images, by source row."""
    dataset = load_reinforced(name, *args, **kwargs)
    return sorted(
        (dataset.row(at), dataset[at]["labels"], sha(dataset[at]["pixel_values"])) for at in range(len(dataset))
    )


def sha(pixels):
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def contents(client, files):
    """The samples; loading them fills the cache of the client."""
    return client(loaded, NAME, "rrc")


def refused(function, *args, login=True, **kwargs):
    """In the client: the error of a function, which must be one line."""
    with mock.patch.dict(os.environ, {} if login else {"HF_TOKEN": ""}), mock.patch("time.sleep"):
        try:
            function(*args, **kwargs)
        except (ValueError, TypeError) as error:
            assert "\n" not in str(error)
            return str(error)
    return "nothing went wrong"


# Sources


def test_local_copies_of_hub_ids(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_REINFORCE_LOCAL", f"{tmp_path}:{folder}")
    assert resolve("owner/photos") == str(folder / "photos") and resolve("owner/birds") == "owner/birds"
    assert len(load_source("owner/photos", revision="a1b2c3")) == ROWS
    assert len(load_reinforced("owner/photos-plus", "rrc", revision="v1")) == ROWS
    assert is_reinforced("owner/photos-plus", "mixing") and not is_reinforced("owner/photos-plus", "randaug")
    assert not is_reinforced("owner/photos")
    monkeypatch.setenv("HF_REINFORCE_LOCAL", "")
    assert resolve("owner/photos") == "owner/photos"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "The name is empty; give a Hub id, such as .* or a folder"),
        (" ", "The name is empty"),
        ("me/", "There is no dataset 'me/'"),
        ("me/..", "There is no dataset 'me/..'"),
        ("owner/nothing", "There is no dataset .owner/nothing., neither as a folder nor in the cache.*HF_HUB_OFFLINE"),
    ],
)
def test_names_that_are_none(name, expected, folder, monkeypatch):
    monkeypatch.setenv("HF_REINFORCE_LOCAL", str(folder))
    monkeypatch.chdir(folder / "photos-plus")
    for function in (load_reinforced, load_source, is_reinforced):
        assert re.search(expected, refused(function, name))
        assert "The revision is empty; name a branch, tag or commit" in refused(function, "owner/n", revision="")
    assert "is not a reinforced dataset; recipes/reinforce.py makes" in refused(
        load_reinforced, str(folder / "photos")
    )
    assert f"name the folder above, {folder / 'photos-plus'}" in refused(load_reinforced, "rrc")


# Reinforced folders


def test_a_folder_finds_its_source(folder, photos):
    dataset = load_reinforced(str(folder / "photos-plus"), "rrc")
    assert [dataset[row]["labels"] for row in range(ROWS)] == photos["label"]
    options = {"max_rows": 5, "image_size": 8, "seed": 3, "selection": "random"}
    smaller = load_reinforced(str(folder / "photos-plus"), "rrc", **options)
    assert len(smaller) == 5 and smaller[0]["pixel_values"].shape == (3, 8, 8)
    assert (smaller.seed, smaller.selection) == (3, "random")
    mixed = load_reinforced(str(folder / "photos-plus"), "mixing", max_rows=10)
    assert len(mixed) == 64, "partners are in the same block"
    assert len(mixed.__getitems__(list(range(2 * 64)))) == 128  # every image with its partner, in two epochs
    shuffled = load_reinforced(str(folder / "photos-plus"), "rrc", source=photos.shuffle(seed=1))
    assert [shuffled[position]["labels"] for position in range(ROWS)] == photos["label"]


def test_the_only_configuration_is_found_also_under_odd_names(plus):
    assert "has the configurations ['mixing', 'rrc']; name one of them" in refused(load_reinforced, str(plus))
    assert "has the configurations ['mixing', 'rrc']" in refused(load_reinforced, str(plus), "randaug")
    shutil.rmtree(plus / "mixing")
    folder = plus.rename(plus.parent / "pets [2]")
    (folder / "rrc").rename(folder / "rrc[a]")
    for streaming in (False, True):
        assert len(load_reinforced(str(folder), streaming=streaming)) == ROWS


def remove_shards(folder):
    for shard in (folder / "rrc").glob("*.parquet"):
        shard.unlink()


def copy_shard(folder):
    first, second = sorted((folder / "rrc").glob("*.parquet"))
    shutil.copy(first, second)
    change_config(folder / "rrc", {"num_rows": 128})


@pytest.mark.parametrize(
    ("spoil", "options", "expected"),
    [
        (
            lambda f: change_config(f / "rrc", complete=False),
            {},
            "is not finished; run the command that reinforces it",
        ),
        (lambda f: change_config(f / "rrc", {"name": None}), {}, "does not record where its images are; pass source="),
        (lambda f: change_config(f / "rrc", {"name": "/moved"}), {}, "no dataset .*moved.* name them with source="),
        (
            lambda f: change_config(f / "rrc", {"name": "/moved"}),
            {"streaming": True},
            "no dataset .*moved.* name them wi",
        ),
        (lambda f: change_config(f / "rrc", {"num_rows": 71}), {}, "holds 70 rows, not 71: shards are missing"),
        (remove_shards, {}, "holds 0 rows, not 70: shards are missing"),
        (copy_shard, {}, r"Row 0 of the source is there twice, in \S*00000-\S* and \S*00001-"),
        (copy_shard, {"streaming": True}, "Row 0 of the source is there twice, in "),
        (None, {"max_rows": 0}, r"max_rows \(--max_train_samples\) must be at least 1, not 0; leave"),
        (None, {"max_rows": -1, "streaming": True}, "must be at least 1, not -1"),
        (None, {"source": "stream"}, "source is a stream .* pass its Hub id or folder, or load_"),
        (None, {"source": "splits"}, r"source has the splits \['train'\]; pass one of them"),
        (None, {"source": "renamed"}, r"but has \['img', 'label'\].*rename_column\(..., 'image'\)"),
    ],
)
def test_folders_and_sources_that_do_not_fit(plus, photos, spoil, options, expected):
    if spoil:
        spoil(plus)
    sources = {
        "stream": photos.to_iterable_dataset,
        "splits": lambda: DatasetDict(train=photos),
        "renamed": lambda: photos.rename_column("image", "img"),
    }
    if "source" in options:
        options = {"source": sources[options["source"]]()}
    assert re.search(expected, refused(load_reinforced, str(plus), "rrc", **options))


# From the Hub


def plain_load(name):
    """In the client, without this package: a row, and the columns of a stream of some."""
    from datasets import load_dataset

    few = load_dataset(name, "rrc", split="train", streaming=True, columns=["label", "image_hash"])
    return load_dataset(name, "rrc", split="train")[3], set(next(iter(few)))


def test_loaded_with_and_without_this_package(client, contents, folder, photos):
    row, columns = client(plain_load, NAME)
    assert row["label"] == photos[3]["label"] and row["source_row"] == 3 and columns == {"label", "image_hash"}
    assert len(row["augmentation_params"]) == len(row["teacher_logits"]) == N
    assert contents == loaded(str(folder / "photos-plus"), "rrc")
    assert client(loaded, NAME, "mixing") == loaded(str(folder / "photos-plus"), "mixing")


def test_joined_by_hash(client, contents, files):
    """A source in another order, without 20 images: missing images are named, the others are the right ones."""
    message = client(refused, loaded, NAME, "rrc", source="us/changed")
    assert re.search(r"holds 50 of the 70 .*; 20 are missing: row \d+ \(hash [0-9a-f]{16}\)", message)
    some = client(loaded, NAME, "rrc", source="us/changed", allow_missing=True)
    assert len(some) == ROWS - 20 and set(some) < set(contents)
    mixed = client(loaded, NAME, "mixing", source="us/changed", allow_missing=True)
    assert len(mixed) == ROWS - 20, "views whose partner is missing are replaced by others"


def test_an_import_that_leaves_images_out_is_streamed(hub, client, tmp_path):
    original = Original("randaug")  # eight images
    hub.add_repository("dataset", "us/originals", {"data/train.parquet": parquet(original.source)})
    options = {"id_map": [0, 1, 2, -1, 4, 5, 6, -1], "source_name": "us/originals", "shard_size": 3}
    folder = import_ml_dr([original.archive(tmp_path / "a.tar")], original.source, tmp_path / "imported", **options)
    hub.add_repository(
        "dataset", "us/imported", {f"randaug/{path.name}": path.read_bytes() for path in folder.iterdir()}
    )
    streamed = client(loaded, "us/imported", streaming=True)
    assert [row for row, *_ in streamed] == [0, 1, 2, 4, 5, 6] and client(loaded, "us/imported") == streamed


@pytest.mark.parametrize("recorded", [True, False])
def test_an_estimate_reads_a_few_images(hub, client, photos, tmp_path, recorded):
    parts = [range(64), range(64, 66), range(66, ROWS)]
    files = {f"data/train-{i:05d}-of-00003.parquet": parquet(photos.select(rows)) for i, rows in enumerate(parts)}
    info = {"dataset_info": {"splits": [{"name": "train", "num_bytes": 1, "num_examples": ROWS}]}}
    if recorded:
        files["README.md"] = f"---\n{yaml.safe_dump(info)}---\n".encode()
    name = f"us/estimated-{recorded}"
    hub.add_repository("dataset", name, files)
    create_student("test_resnet", 5, 16, NAMES[:5]).save_pretrained(tmp_path / "teacher")
    words = ["--dataset_name", name, "--teacher_name_or_path", tmp_path / "teacher", "--policy", "rrc"]
    words += ["--image_size", "16", "--top_k", "3", "--num_samples", "2", "--device", "cpu", "--estimate", "True"]
    assert client(run_recipe, "reinforce", *words, "--output_dir", tmp_path / "out") is None
    served = [path for path in hub.served if "train-00002" in path]
    assert bool(served) != recorded, "the last file is not read, except for its number of rows where it is unknown"
    assert not (tmp_path / "out").exists()


# The cache


def without_hub(function, *args, **kwargs):
    """In the client: calls a function as with HF_HUB_OFFLINE=1, which is read when the libraries are imported."""
    with (
        mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
        mock.patch("datasets.config.HF_HUB_OFFLINE", True),
    ):
        return function(*args, **kwargs)


def without_connection(function, *args, **kwargs):
    """In the client: calls a function while no connection can be made, and without the waits between its tries."""
    import httpx2

    refused = httpx2.ConnectError("Connection refused")
    with mock.patch("time.sleep"), mock.patch("httpx2.HTTPTransport.handle_request", side_effect=refused):
        return function(*args, **kwargs)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (without_hub, "HF_HUB_OFFLINE forbids to ask the Hub; unset it to download the dataset."),
        (
            without_connection,
            "the Hub cannot be reached (ConnectError: Connection refused); check the connection, and",
        ),
    ],
)
def test_the_cache_serves_without_the_hub(hub, client, contents, call, expected):
    hub.forget()
    assert client(call, is_reinforced, NAME) is True and client(call, is_reinforced, NAME, "rrc") is True
    assert client(call, is_reinforced, NAME, "randaug") is False
    assert client(call, loaded, NAME, "rrc") == contents == client(call, loaded, NAME, "rrc", streaming=True)
    for function in (is_reinforced, loaded):
        message = client(call, refused, function, "us/uncached")
        assert f"no dataset 'us/uncached', neither as a folder nor in the cache, and {expected}" in message
    assert "of revision 'v3', neither" in client(call, refused, is_reinforced, NAME, revision="v3")
    assert not hub.requests


def card_of(name):
    """In the client."""
    from huggingface_hub import DatasetCard

    return str(DatasetCard.load(name))


def test_files_that_the_cache_lacks(hub, client, files):
    """Only `reinforcement.json` and the card are cached, or the card alone."""
    for name, function in (("us/half", is_reinforced), ("us/card", card_of)):
        hub.add_repository("dataset", name, files)
        client(function, name)
    assert "Not all files of 'us/half' are in the cache" in client(without_hub, refused, loaded, "us/half", "rrc")
    assert "HF_HUB_OFFLINE forbids to ask the Hub" in client(without_hub, refused, loaded, "us/card")


# One commit


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_one_commit_although_another_is_pushed_meanwhile(hub, client, files, contents, streaming):
    name = f"us/moving-{streaming}"
    repository = hub.add_repository("dataset", name, alone(files))
    fault = Fault(f"GET .*{name}/resolve/.*reinforcement.json", then=lambda: repository.add(alone(files, "mixing")))
    hub.faults.append(fault)
    assert client(loaded, name, "rrc", streaming=streaming) == contents
    assert len(repository.commits) == 3, "the commits at first and another"
    assert client(is_reinforced, name, "rrc") is False


def log_of_loading(name):
    """In the client."""
    from hf_reinforce.hub import load

    with mock.patch.object(load, "logger", mock.Mock(spec=logging.Logger)) as logger:
        load_reinforced(name, "rrc")
    return [call.args[0] % call.args[1:] for call in logger.info.call_args_list]


def test_the_commit_is_resolved_once_and_logged(hub, client, files, folder):
    commit = hub.repositories["datasets", NAME].find("main")
    assert client(log_of_loading, NAME) == [f"Loading {NAME}, configuration 'rrc', of commit {commit}."]
    photos = hub.repositories["datasets", PHOTOS]
    v1 = photos.find("v1")
    asked = [(PHOTOS, None), (PHOTOS, "v1"), (PHOTOS, v1), (PHOTOS, "v9"), ("us/nothing", "v1"), (str(folder), "v1")]
    found = [client(dataset_commit, *item) for item in [*asked, ("no hub id", None)]]
    assert found == [photos.find("main"), v1, v1, "v9", "v1", "v1", None]
    assert dataset_commit("us/never-seen", "v1") == "v1", "where the Hub cannot be asked"


def test_a_run_keeps_the_commit_that_it_began_with(hub, client, files, tmp_path):
    repository = hub.add_repository("dataset", "us/trained", alone(files))
    first = repository.tags["v1"] = repository.find("main")
    training = [
        "--model_name_or_path",
        "test_resnet",
        "--use_cpu",
        "True",
        "--max_steps",
        "1",
        "--save_strategy",
        "no",
    ]
    begun = ["train_kd", "--dataset_name", "us/trained", *training, "--output_dir", tmp_path / "begun"]
    assert client(run_recipe, *begun) is None
    second = repository.add(alone(files, "mixing"))
    hub.forget()
    assert client(run_recipe, *begun) is None
    assert not hub.seen(f"resolve/{second}")
    assert json.loads((tmp_path / "begun" / "run.json").read_text())["dataset_commit"] == first
    message = client(run_recipe, *begun, "--dataset_revision", "v1")
    assert "holds another run" in message and "dataset_revision: 'v1', not None" in message
    message = client(run_recipe, "verify", "--dataset_name", NAME, "--dataset_revision", "v9")
    assert message == f"error: {NAME} has no revision 'v9'; its page on the Hub lists its branches and tags."


# What is said


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("us/nothing", {}, "no dataset 'us/nothing', .* Check its name; if it is private, .*`hf auth login`"),
        ("us/secret", {"login": False}, "no dataset 'us/secret', .*if it is private, log in with `hf auth l"),
        ("us/gated", {"login": False}, "'us/gated' may only be read by those who .*accept them on its page .*hf auth"),
        (NAME, {"revision": "v9"}, r"has no revision 'v9'; its page on the Hub lists"),
        ("outputs/photos/plus", {}, "There is no dataset 'outputs/photos/plus', neither as a folder nor on the Hub"),
        ("photos-plus", {}, "There is no dataset 'photos-plus', neither as a folder nor on the Hub"),
        ("us/troubled", {}, "the Hub answers HTTP 503; try again later"),
        ("us/forbidden", {}, "does not let you read .*hf auth"),
    ],
)
def test_errors_of_finding_say_what_to_do(hub, client, files, name, options, expected):
    hub.add_repository("dataset", "us/secret", alone(files), private=True)
    hub.add_repository("dataset", "us/gated", alone(files), gated=True)
    for trouble, status in (("troubled", 503), ("forbidden", 403)):
        hub.faults.append(Fault(f"/api/datasets/us/{trouble}", status=status, times=50))
    for function in (is_reinforced, loaded):
        assert re.search(expected, client(refused, function, name, **options))


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("us/renamed", {}, r"should have the columns \['image', 'label'\], .*rename_column\(..., 'image'\)"),
        ("us/renamed", {"streaming": True}, r"but has \['img', 'label'\]. Load it .*and pass the result as source="),
        (
            "us/two",
            {},
            r"Please pick one among .*\['a', 'b'\]",
        ),
        ("us/gated-photos", {"login": False}, "'us/gated-photos' may only be read by those who accepted its cond"),
    ],
)
def test_sources_that_do_not_fit(hub, client, files, photos, source, options, expected):
    card = "---\nconfigs:\n- {config_name: a, data_files: data/*}\n- {config_name: b, data_files: data/*}\n---\n"
    images = {"data/train.parquet": parquet(photos)}
    hub.add_repository("dataset", "us/two", {"README.md": card.encode(), **images})
    hub.add_repository("dataset", "us/gated-photos", images, gated=True)
    hub.add_repository("dataset", "us/renamed", {"data/train.parquet": parquet(photos.rename_column("image", "img"))})
    assert re.search(expected, client(refused, loaded, NAME, "rrc", source=source, **options))


def test_missing_and_damaged_shards(hub, client, files):
    hub.add_repository("dataset", "us/lost", {path: content for path, content in files.items() if path != SHARD})
    message = client(refused, loaded, "us/lost", "rrc")
    assert f"us/lost holds 64 rows, not {ROWS}: shards are missing. Publish it again" in message
    hub.add_repository("dataset", "us/damaged", {**files, SHARD: files[SHARD][:-50]})
    message = client(refused, loaded, "us/damaged", "rrc", streaming=True)
    assert "train-00001-of-00002.parquet cannot be read, probably" in message
    message = client(refused, loaded, "us/damaged", "rrc")
    damaged = re.search(r"Delete (\S+) and load it again", message)[1]
    assert os.path.getsize(damaged) == len(files[SHARD]) - 50 and "publish it again" in message
