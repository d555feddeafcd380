"""Finding and loading reinforced datasets on the Hub: one commit, the cache, and what is said when it fails."""

import hashlib
import io
import json
import os
import re
from unittest import mock

import pytest
from hub_client import run_recipe
from hub_server import Fault
from tiny import tiny_dataset, tiny_teacher

from hf_reinforce import load_policy, reinforce
from hf_reinforce.cards.dataset_card import write_dataset_card

ROWS, C = 70, 5  # two shards of 64 rows
NAME = "me/photos-plus"


@pytest.fixture(autouse=True)
def _fresh_log(hub):
    hub.forget()
    yield
    hub.faults.clear()


@pytest.fixture(scope="module")
def photos():
    return tiny_dataset(ROWS, (20, 28), C)


@pytest.fixture(scope="module")
def commits(hub, photos, tmp_path_factory):
    """Files of two versions of a reinforced dataset by path: N = 2, which the Hub has, and N = 3."""
    stored = io.BytesIO()
    photos.to_parquet(stored)
    hub.add_repository("dataset", "me/photos", {"data/train.parquet": stored.getvalue()})
    hub.add_repository("dataset", "me/renamed", {"data/train.parquet": renamed_column(photos)})
    versions = []
    for num_samples in (2, 3):
        folder = tmp_path_factory.mktemp("versions")
        options = {"num_samples": num_samples, "top_k": 3, "shard_size": 64, "device": "cpu"}
        reinforce(
            photos,
            tiny_teacher(C),
            load_policy("rrc", 16),
            folder,
            source_name="me/photos",
            num_workers=1,
            **options,
        )
        write_dataset_card(folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        versions.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
    hub.add_repository("dataset", NAME, versions[0])
    return versions


def renamed_column(photos):
    stored = io.BytesIO()
    photos.rename_column("image", "img").to_parquet(stored)
    return stored.getvalue()


def add_version(hub, name, files):
    """A commit on top of `main`; its id."""
    scratch = hub.add_repository("dataset", "me/scratch", files).files()
    return hub.repositories["datasets", name].commit("main", "a newer version", scratch)


def loaded(name, *args, **kwargs):
    """In the client: N and a checksum of all samples."""
    from hf_reinforce import load_reinforced

    dataset = load_reinforced(name, *args, **kwargs)
    sums = sorted(hashlib.sha256(sample["pixel_values"].numpy().tobytes()).hexdigest() for sample in dataset)
    return dataset.config.num_samples, hashlib.sha256("".join(sums).encode()).hexdigest()


def asked(*args, **kwargs):
    """In the client: whether it is a reinforced dataset."""
    from hf_reinforce.hub.load import is_reinforced

    return is_reinforced(*args, **kwargs)


def refused(function, *args, login=True, **kwargs):
    """In the client: the error of a function, which must be one line."""
    with mock.patch.dict(os.environ, {} if login else {"HF_TOKEN": ""}), mock.patch("time.sleep"):
        try:
            function(*args, **kwargs)
        except (ValueError, TypeError) as error:
            assert "\n" not in str(error)
            return str(error)
    return "nothing went wrong"


# The cache


@pytest.fixture(scope="module")
def contents(client, commits):
    """The samples; loading them fills the cache of the client."""
    return client(loaded, NAME, "rrc")


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
    hub.add_repository("dataset", "me/uncached", {})
    hub.forget()
    assert client(call, asked, NAME) is True and client(call, asked, NAME, "rrc") is True
    assert client(call, asked, NAME, "randaug") is False and client(call, asked, "me/photos") is False
    assert client(call, loaded, NAME, "rrc") == contents
    assert client(call, loaded, NAME, streaming=True) == contents
    for function in (asked, loaded):
        message = client(call, refused, function, "me/uncached")
        assert f"no dataset 'me/uncached', neither as a folder nor in the cache, and {expected}" in message
    assert "of revision 'v3', neither" in client(call, refused, asked, NAME, revision="v3")
    assert not hub.requests


def test_files_that_the_cache_lacks(hub, client, commits):
    """Only `reinforcement.json` and the card are cached, or the card alone."""
    hub.add_repository("dataset", "me/half", commits[0])
    hub.add_repository("dataset", "me/card", commits[0])
    assert client(asked, "me/half") is True
    client(card_of, "me/card")
    assert "Not all files of 'me/half' are in the cache" in client(without_hub, refused, loaded, "me/half", "rrc")
    assert "HF_HUB_OFFLINE forbids to ask the Hub" in client(without_hub, refused, loaded, "me/card")


def card_of(name):
    """In the client."""
    from huggingface_hub import DatasetCard

    return str(DatasetCard.load(name))


# One commit


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_one_commit_although_another_is_pushed_meanwhile(hub, client, commits, contents, streaming):
    name = f"me/moving-{streaming}"
    repository = hub.add_repository("dataset", name, commits[0])
    fault = Fault(f"GET .*{name}/resolve/.*reinforcement.json", then=lambda: add_version(hub, name, commits[1]))
    hub.faults.append(fault)
    assert client(loaded, name, streaming=streaming) == contents
    assert len(repository.commits) == 3, "the commits at first and another"
    assert client(loaded, name, streaming=streaming)[0] == 3


def test_the_commit_is_logged(client, hub, contents):
    commit = hub.repositories["datasets", NAME].find("main")
    assert client(log_of_loading, NAME) == [f"Loading {NAME}, configuration 'rrc', of commit {commit}."]


def log_of_loading(name):
    """In the client."""
    import logging

    from hf_reinforce import load_reinforced
    from hf_reinforce.hub import load as hub

    with mock.patch.object(hub, "logger", mock.Mock(spec=logging.Logger)) as logger:
        load_reinforced(name)
    return [call.args[0] % call.args[1:] for call in logger.info.call_args_list]


TRAINING = ["--model_name_or_path", "test_resnet", "--use_cpu", "True", "--max_steps", "1", "--save_strategy", "no"]


def test_a_run_keeps_the_commit_that_it_began_with(hub, client, commits, photos, tmp_path):
    repository = hub.add_repository("dataset", "me/trained", commits[0])
    first = repository.tags["v1"] = repository.find("main")
    begun = ["train_kd", "--dataset_name", "me/trained", *TRAINING, "--output_dir", tmp_path / "begun"]
    assert client(run_recipe, *begun) is None
    second = add_version(hub, "me/trained", commits[1])
    hub.forget()
    assert client(run_recipe, *begun) is None
    assert recorded(tmp_path / "begun") == (None, first)
    assert not hub.seen(f"resolve/{second}")

    tagged = [*begun[:-1], tmp_path / "tagged"]
    assert client(run_recipe, *tagged, "--dataset_revision", "v1") is None
    assert recorded(tmp_path / "tagged") == ("v1", first)
    message = client(run_recipe, *tagged, "--dataset_revision", "main")
    assert "holds another run" in message and "dataset_revision: 'main', not 'v1'" in message


def recorded(folder):
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return run["dataset_revision"], run["dataset_commit"]


@pytest.mark.parametrize("recipe", ["train_kd", "verify"])
def test_recipes_take_a_revision(client, commits, recipe, tmp_path):
    further = [*TRAINING, "--output_dir", tmp_path] if recipe == "train_kd" else []
    message = client(run_recipe, recipe, "--dataset_name", NAME, "--dataset_revision", "v9", *further)
    assert message == f"error: {NAME} has no revision 'v9'; its page on the Hub lists its branches and tags."


# What is said


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "me/nothing",
            {},
            "There is no dataset 'me/nothing', .* Check its name; if it is private, .*`hf auth login`",
        ),
        (
            "me/secret",
            {"login": False},
            "There is no dataset 'me/secret', .*if it is private, log in with `hf auth l",
        ),
        ("me/gated", {"login": False}, "'me/gated' may only be read by those who .*accept them on its page .*hf auth"),
        (NAME, {"revision": "v9"}, "has no revision 'v9'; its page on the Hub"),
        ("outputs/photos/plus", {}, "There is no dataset 'outputs/photos/plus', neither as a folder nor on the Hub"),
        ("photos-plus", {}, "There is no dataset 'photos-plus', neither as a folder nor on the Hub"),
    ],
)
def test_errors_of_finding_are_a_sentence_that_says_what_to_do(hub, client, commits, name, options, expected):
    hub.add_repository("dataset", "me/secret", commits[0], private=True)
    hub.add_repository("dataset", "me/gated", commits[0], gated=True)
    for function in (asked, loaded):
        assert re.search(expected, client(refused, function, name, **options))


@pytest.mark.parametrize(
    ("status", "expected"),
    [(503, "the Hub answers HTTP 503; try again later"), (403, "does not let you read .*hf auth")],
)
def test_errors_of_the_server(hub, client, commits, status, expected):
    hub.add_repository("dataset", "me/troubled", commits[0])
    hub.faults.append(Fault("/api/datasets/me/troubled", status=status, times=50))
    assert re.search(expected, client(refused, asked, "me/troubled"))


def with_source(name, source, **kwargs):
    """In the client: loads with a source that is made there."""
    from datasets import load_dataset

    from hf_reinforce import load_reinforced

    if source == "stream":
        source = load_dataset("me/photos", split="train", streaming=True)
    elif source == "splits":
        source = load_dataset("me/photos")
    load_reinforced(name, source=source, **kwargs)


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("stream", {}, "source is a stream .*; pass its Hub id or folder, or a map-style Dataset"),
        ("splits", {}, r"source has the splits \['train'\]; pass one of them: source\['train'\]"),
        (
            "me/renamed",
            {},
            r"me/renamed should have the columns \['image', 'label'\], .*rename_column\(..., 'image'\)",
        ),
        ("me/renamed", {"streaming": True}, r"but has \['img', 'label'\]. Load it .*and pass the result as source="),
        (
            "me/two",
            {},
            r"Please pick one among .*\['a', 'b'\] Load it with `datasets`, and pass the result as source=",
        ),
    ],
)
def test_sources_that_do_not_fit(hub, client, commits, source, options, expected):
    card = "---\nconfigs:\n- {config_name: a, data_files: data/*}\n- {config_name: b, data_files: data/*}\n---\n"
    images = hub.repositories["datasets", "me/photos"].files()["data/train.parquet"].content
    hub.add_repository("dataset", "me/two", {"README.md": card.encode(), "data/train.parquet": images})
    assert re.search(expected, client(refused, with_source, NAME, source, **options))


@pytest.mark.parametrize("streaming", [False, True])
def test_recorded_source_that_was_renamed(hub, client, commits, streaming):
    moved = {path: content.replace(b'"me/photos"', b'"me/moved1"') for path, content in commits[0].items()}
    hub.add_repository("dataset", "me/moved-plus", moved)
    message = client(refused, loaded, "me/moved-plus", streaming=streaming)
    assert message.startswith("There is no dataset 'me/moved1'")
    assert message.endswith("if they are elsewhere now, name them with source= (--source_name_or_path).")
    client(with_source, "me/moved-plus", "me/photos", streaming=streaming)


def test_missing_and_damaged_shards(hub, client, commits):
    shard = "rrc/train-00001-of-00002.parquet"
    hub.add_repository("dataset", "me/lost", {path: file for path, file in commits[0].items() if path != shard})
    message = client(refused, loaded, "me/lost")
    assert f"me/lost holds 64 rows, not {ROWS}: shards are missing. Publish it again" in message
    hub.add_repository("dataset", "me/damaged", {**commits[0], shard: commits[0][shard][:-50]})
    message = client(refused, loaded, "me/damaged")
    damaged = re.search(r"Delete (\S+) and load it again", message)[1]
    assert os.path.getsize(damaged) == len(commits[0][shard]) - 50 and "publish it again" in message
