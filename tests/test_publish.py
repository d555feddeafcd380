"""Publishing and loading over HTTP, with the real clients in a process of their own against tests/hub_server.py."""

import contextlib
import hashlib
import io
import os
import re
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path
from unittest import mock

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from hub_server import Fault
from huggingface_hub import HfApi
from test_ml_dr import Original
from tiny import tiny_dataset, tiny_teacher

from hf_reinforce import ReinforcementConfig, load_policy, push_to_hub, reinforce
from hf_reinforce.cards.dataset_card import write_dataset_card
from hf_reinforce.cards.preview import write_preview
from hf_reinforce.hub import publish
from hf_reinforce.importers.ml_dr import import_ml_dr

ROWS = 150  # three shards of 64 rows


@pytest.fixture(autouse=True)
def _fresh_log(hub):
    hub.forget()
    yield
    hub.faults.clear()


@pytest.fixture(scope="module")
def photos():
    """The images of the tests."""
    return tiny_dataset(ROWS, (20, 28))


@pytest.fixture(scope="module")
def photos_on_hub(hub, photos):
    """Repository of the images. Its newest commit holds them in another order, and not all of them."""
    original, shuffled = io.BytesIO(), io.BytesIO()
    photos.to_parquet(original)
    photos.shuffle(seed=0).select(range(ROWS - 20)).to_parquet(shuffled)
    repository = hub.add_repository("dataset", "me/photos", {"data/train-0.parquet": original.getvalue()})
    repository.tags["v1"] = repository.find("main")
    hub.add_repository("dataset", "me/photos-changed", {"data/train-0.parquet": shuffled.getvalue()})
    return repository


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos):
    """A reinforced dataset of two configurations, three shards each."""
    path = tmp_path_factory.mktemp("reinforced") / "photos-plus"
    for policy in ("rrc", "mixing"):
        reinforce(
            photos,
            tiny_teacher(),
            load_policy(policy, 16),
            path,
            num_samples=2,
            top_k=3,
            source_name="me/photos",
            source_revision="v1",
            shard_size=64,
            device="cpu",
        )
        write_preview(path / policy, photos)
    write_dataset_card(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder that a test may change."""
    return Path(shutil.copytree(folder, tmp_path / "photos-plus"))


def stored(hub, name, revision="main"):
    return {path: file.content for path, file in hub.repositories["datasets", name].files(revision).items()}


def local(folder, *configs):
    files = [file for config in configs for file in (folder / config).iterdir()]
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files}


def metadata(content):
    return yaml.safe_load(content.decode().split("---")[1])


def push(folder, repo_id, **kwargs):
    """In the client: publishes, without waits between the tries of the Hub's client."""
    with mock.patch("time.sleep"):
        return push_to_hub(folder, repo_id, **kwargs)


def run_recipe(*argv, script="publish.py"):
    """In the client: what a recipe prints."""
    import runpy
    import sys

    recipes = str(Path(__file__).parent.parent / "recipes")
    with (
        mock.patch.object(sys, "argv", [script, *argv]),
        mock.patch.object(sys, "path", [recipes, *sys.path]),
        contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
        runpy.run_path(f"{recipes}/{script}", run_name="__main__")
    return printed.getvalue()


# What is sent


def test_push_sends_the_folder_as_it_is(hub, client, folder):
    result = client(push, folder, "me/whole")
    files = stored(hub, "me/whole")
    card = files.pop("README.md").decode()
    assert files == local(folder, "rrc", "mixing")
    assert {change.path for change in result.changes} == {*files, "README.md"}
    assert result.commit_url.endswith(hub.repositories["datasets", "me/whole"].find("main"))
    assert 'load_dataset("me/whole", "mixing"' in card and 'load_reinforced("me/whole", "mixing")' in card
    assert card.replace('"me/whole"', '"photos-plus"') == (folder / "README.md").read_text(encoding="utf-8")
    message = hub.repositories["datasets", "me/whole"].messages[-1]
    about = "N=2, the 3 most likely of 5 classes, TinyNet"
    assert message == f"Add mixing (policy mixing, {about}), rrc (policy rrc, {about})"
    commits = list(hub.repositories["datasets", "me/whole"].commits.values())
    assert not any(path.endswith((".json", ".md")) for commit in commits[:-1] for path in commit)

    hub.forget()
    again = client(push, folder, "me/whole")
    assert again.changes == () and again.commit_url == result.commit_url
    assert not hub.seen("PUT /objects|commit/|preupload/")


def test_dry_run_sends_nothing(hub, client, copy):
    result = client(push, copy, "me/dry", dry_run=True)
    assert {(change.path, change.reason) for change in result.changes} == {
        *((path, "new") for path in local(copy, "rrc", "mixing")),
        ("README.md", "new"),
    }
    sizes = {change.path: change.size for change in result.changes}
    assert sizes["rrc/train-00000-of-00003.parquet"] == (copy / "rrc/train-00000-of-00003.parquet").stat().st_size
    assert result.commit_url is None
    assert not hub.seen("POST|PUT") and ("datasets", "me/dry") not in hub.repositories


def test_only_files_that_belong(hub, client, copy):
    for name in (
        ".env",
        "notes.txt",
        "rrc/.train-00000-of-00003.parquet.tmp-7",
        "rrc/model.bin",
        "rrc/.hidden.parquet",
    ):
        (copy / name).write_text("secret", encoding="utf-8")
    (copy / "rrc" / ".num_samples-4").mkdir()
    (copy / "rrc" / ".num_samples-4" / "train-00000-of-00003.parquet").write_text("half", encoding="utf-8")
    client(push, copy, "me/clean", config_name="rrc")
    assert set(stored(hub, "me/clean")) == {"README.md", *local_names(copy)}


def local_names(folder):
    shards = [f"rrc/train-{index:05d}-of-00003.parquet" for index in range(3)]
    return ["rrc/preview.png", "rrc/statistics.png", "rrc/reinforcement.json", *shards]


def test_shards_of_new_configurations_come_first(hub, client, folder):
    client(push, folder, "me/order", config_name="mixing")
    client(push, folder, "me/order")
    repository = hub.repositories["datasets", "me/order"]
    assert [len(files) for files in repository.commits.values()] == [0, 3, 7, 10, 13]
    assert [message.endswith(": shards") for message in repository.messages] == [False, True, False, True, False]
    assert "rrc/reinforcement.json" not in list(repository.commits.values())[3]


def test_recipe(hub, client, folder):
    flags = ("--folder", str(folder), "--repo_id", "me/recipe", "--config_name", "rrc")
    printed = client(run_recipe, *flags, "--dry_run", "True")
    assert "rrc/train-00000-of-00003.parquet" in printed and "7 files, " in printed and "would be sent" in printed
    assert ("datasets", "me/recipe") not in hub.repositories
    assert f"{hub.url}/datasets/me/recipe/commit/" in client(run_recipe, *flags)
    assert len(stored(hub, "me/recipe")) == 7


def test_changed_configuration_changes_in_one_commit(hub, client, copy, photos):
    client(push, copy, "me/changed")
    reinforce(
        photos.select(range(64)),
        tiny_teacher(),
        load_policy("rrc", 16),
        copy.parent / "other",
        num_samples=3,
        top_k=3,
        device="cpu",
    )
    for file in (copy / "rrc").iterdir():
        file.unlink()
    for file in (copy.parent / "other" / "rrc").iterdir():
        (copy / "rrc" / file.name).write_bytes(file.read_bytes())
    write_preview(copy / "rrc", photos)
    write_dataset_card(copy)
    before = len(hub.repositories["datasets", "me/changed"].messages)
    result = client(push, copy, "me/changed")
    assert len(hub.repositories["datasets", "me/changed"].messages) == before + 1
    files = stored(hub, "me/changed")
    del files["README.md"]
    assert files == local(copy, "rrc", "mixing")
    reasons = {change.path: change.reason for change in result.changes}
    assert reasons.pop("rrc/train-00000-of-00001.parquet") == "new"
    assert {path for path, reason in reasons.items() if reason == "deleted"} == {
        f"rrc/train-{index:05d}-of-00003.parquet" for index in range(3)
    }
    assert reasons["rrc/reinforcement.json"] == reasons["README.md"] == "changed"


def test_configurations_on_the_hub_survive(hub, client, copy):
    client(push, copy, "me/both", config_name="mixing")
    card = metadata(stored(hub, "me/both")["README.md"])
    assert [item["config_name"] for item in card["configs"]] == ["mixing"]
    # somebody adds a licence on the Hub, and another folder the second configuration
    repository = hub.repositories["datasets", "me/both"]
    files = dict(repository.files())
    text = files["README.md"].content.replace(b"---\n", b"---\nlicense: cc-by-4.0\n", 1)
    files["README.md"] = replace(files["README.md"], content=text)
    repository.commit("main", "add a licence", files)
    client(push, copy, "me/both", config_name=["rrc"])
    files = stored(hub, "me/both")
    card = metadata(files["README.md"])
    assert [item["config_name"] for item in card["configs"]] == ["rrc", "mixing"]
    assert card["license"] == "cc-by-4.0"
    assert "also holds `mixing`" in files["README.md"].decode()
    assert local(copy, "mixing", "rrc").items() <= files.items()
    assert client(push, copy, "me/both", config_name="rrc").changes == ()
    for config in ("rrc", "mixing"):
        assert client(load_rows, "me/both", config) == ROWS


def test_a_second_configuration_keeps_the_terms_of_the_first(hub, client, copy):
    for config, source, license in (("mixing", "me/photos", "cc-by-nc-4.0"), ("rrc", "me/paintings", "mit")):
        there = ReinforcementConfig.load(copy / config)
        replace(there, source=replace(there.source, name=source, license=license)).save(copy / config)
        client(push, copy, "me/two-sources", config_name=config)
    card = metadata(stored(hub, "me/two-sources")["README.md"])
    assert card["license"] == ["cc-by-nc-4.0", "mit"]
    assert card["source_datasets"] == ["me/photos", "me/paintings"]
    assert [item["config_name"] for item in card["configs"]] == ["rrc", "mixing"]
    assert client(push, copy, "me/two-sources", config_name="rrc").changes == ()
    write_dataset_card(copy)  # one folder of both describes both
    client(push, copy, "me/two-sources")
    text = stored(hub, "me/two-sources")["README.md"].decode()
    assert "datasets/me/photos)" in text and "datasets/me/paintings)" in text and "also holds" not in text
    assert metadata(text.encode())["license"] == ["cc-by-nc-4.0", "mit"]


def test_card_of_the_folder_is_kept(hub, client, copy):
    card = (copy / "README.md").read_text(encoding="utf-8")
    (copy / "README.md").write_text(card + "\nMy own words about photos-plus.\n", encoding="utf-8")
    client(push, copy, "me/own-words")
    sent = stored(hub, "me/own-words")["README.md"].decode()
    assert "My own words about photos-plus." in sent and 'load_dataset("me/own-words"' in sent


def test_private_branch_and_tag(hub, client, folder):
    options = {"config_name": "rrc", "revision": "trial", "tag": "v1", "private": True, "commit_message": "Try it"}
    result = client(push, folder, "me/private", **options)
    repository = hub.repositories["datasets", "me/private"]
    assert repository.private and repository.messages[-1] == "Try it"
    assert repository.tags["v1"] == repository.branches["trial"] == result.commit_url.rsplit("/", 1)[1]
    assert not repository.files("main") and len(repository.files("trial")) == 7
    assert client(push, folder, "me/private", **options).changes == ()  # the tag names it already
    with pytest.raises(ValueError, match="already has a tag 'v1'"):
        client(push, folder, "me/private", tag="v1")
    assert not repository.files("main")
    assert client(load_rows, "me/private", "rrc", revision="v1") == ROWS
    with pytest.raises(ValueError, match="is public"):
        hub.add_repository("dataset", "me/public", {})
        client(push, folder, "me/public", private=True)


# What is refused


def test_unfinished_and_missing_configurations_are_refused(copy):
    with pytest.raises(ValueError, match=r"no configuration \['small'\].*those it has are \['mixing', 'rrc'\]"):
        push_to_hub(copy, "me/refused", config_name="small")
    replace(ReinforcementConfig.load(copy / "rrc"), complete=False).save(copy / "rrc")
    with pytest.raises(ValueError, match="'rrc' is not finished; run the command"):
        push_to_hub(copy, "me/refused")
    with pytest.raises(ValueError, match="no configuration of a reinforced dataset"):
        push_to_hub(copy.parent / "nowhere", "me/refused")


def test_damaged_and_missing_shards_are_refused(copy):
    shard = copy / "rrc" / "train-00001-of-00003.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="train-00001-of-00003.parquet is damaged.*Delete it and run"):
        push_to_hub(copy, "me/refused")
    shard.unlink()
    with pytest.raises(ValueError, match="holds 86 rows, not 150: shards are missing"):
        push_to_hub(copy, "me/refused")
    replace(ReinforcementConfig.load(copy / "mixing"), num_samples=4).save(copy / "mixing")
    with pytest.raises(ValueError, match="holds 2 reinforcements per image, not 4"):
        push_to_hub(copy, "me/refused", config_name="mixing")


@pytest.mark.parametrize("config", ["rrc", "mixing"])
def test_a_shard_that_is_there_twice_is_refused(copy, config):
    """`rrc` keeps the order of the source, `mixing` shuffles it."""
    first, second = (copy / config / f"train-{index:05d}-of-00003.parquet" for index in (0, 1))
    shutil.copy(first, second)
    with pytest.raises(ValueError, match="train-00001-of-00003.parquet is damaged .its checksum"):
        push_to_hub(copy, "me/refused", config_name=config)
    replace(ReinforcementConfig.load(copy / config), checksums={}).save(copy / config)  # as earlier versions wrote it
    named = f"Row \\d+ of the source is there twice, in {re.escape(str(first))} and {re.escape(str(second))}: "
    with pytest.raises(ValueError, match=f"{named}.*Delete what is named and run the command"):
        push_to_hub(copy, "me/refused", config_name=config)


def test_parquet_files_that_are_no_shards_stay_where_they_are(hub, client, copy):
    (copy / "rrc" / "notes.parquet").write_text("no Parquet", encoding="utf-8")
    hub.add_repository(
        "dataset", "me/foreign", {"rrc/extra.parquet": b"somebody's", "rrc/train-00007.parquet": b"old"}
    )
    client(push, copy, "me/foreign", config_name="rrc")
    names = set(stored(hub, "me/foreign"))
    assert names == {"README.md", "rrc/extra.parquet", *local_names(copy)}
    other = copy / "rrc" / "train-notes.parquet"
    pq.write_table(pa.table({"note": [1]}), other)
    with pytest.raises(
        ValueError, match=r"train-notes.parquet has no columns .*'augmentation_params'.*Move it elsewhere"
    ):
        push_to_hub(copy, "me/refused", config_name="rrc")


@pytest.mark.parametrize("repo_id", ["photos", "a/b/c", "me/", "/photos", "me/pho tos", ""])
def test_names_that_are_no_repository_are_refused(repo_id):
    with pytest.raises(ValueError, match=f"^repo_id must be 'owner/name', .* not {re.escape(repr(repo_id))}\\.$"):
        push_to_hub("nowhere", repo_id)


def test_names_that_the_hub_refuses(hub, client, folder):
    with pytest.raises(ValueError, match="me/a--b"):
        client(push, folder, "me/a--b", config_name="rrc")
    with pytest.raises(OSError, match="The Hub refused to publish me/names: .*Invalid reference name: v 1"):
        client(push, folder, "me/names", config_name="rrc", tag="v 1")
    assert client(push, folder, "me/names", config_name="rrc", tag="v1").changes == ()
    assert list(hub.repositories["datasets", "me/names"].tags) == ["v1"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_tag_or_commit_is_no_branch(hub, client, folder, dry_run):
    repository = hub.add_repository("dataset", "me/tagged", {"notes.txt": b"old"})
    repository.tags["v1"] = commit = repository.find("main")
    for name in ("v1", commit):
        with pytest.raises(
            ValueError, match=f"'{name}' is a tag or a commit of me/tagged.*name a branch with revision"
        ):
            client(push, folder, "me/tagged", config_name="rrc", revision=name, dry_run=dry_run)
    assert not hub.seen("POST|PUT") and repository.branches == {"main": commit}


def test_publishing_without_the_hub_is_explained(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="^HF_HUB_OFFLINE forbids to ask the Hub; unset it to publish me/offline.$"):
        push_to_hub(folder, "me/offline")


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "no server"])
def test_a_dry_run_without_the_hub_lists_every_file_as_new(folder, monkeypatch, caplog, how):
    if how == "no server":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(publish, "HfApi", lambda token=None: HfApi("http://127.0.0.1:9", token=token))
    else:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    result = push_to_hub(folder, "me/offline", dry_run=True)
    names = {name.replace("rrc/", f"{config}/") for name in local_names(folder) for config in ("rrc", "mixing")}
    assert {change.path for change in result.changes} == {"README.md", *names}
    assert {change.reason for change in result.changes} == {"new"} and result.commit_url is None
    assert "The Hub cannot be asked" in caplog.text


def test_links_are_refused(copy, tmp_path):
    shard = copy / "rrc" / "train-00001-of-00003.parquet"
    shard.rename(tmp_path / "elsewhere.parquet")
    shard.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(ValueError, match="is a link; replace it by a copy"):
        push_to_hub(copy, "me/refused")


def test_writing_without_the_right_token(hub, client, folder):
    with pytest.raises(OSError, match="does not let you write to me/forbidden.*hf auth login") as error:
        client(push, folder, "me/forbidden", token="hf_another_token")
    assert "hf_another_token" not in str(error.value)
    assert ("datasets", "me/forbidden") not in hub.repositories


# What goes wrong on the way


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT /objects/", status=503),
        Fault("PUT /objects/", drop_after=-1),
        Fault("PUT /objects/", drop_upload_after=1000),
    ],
    ids=["503 on an upload", "answer to an upload lost", "upload dropped"],
)
def test_the_client_sends_a_file_again(hub, client, folder, fault, request):
    name = "me/again-" + re.sub(r"\W+", "-", request.node.callspec.id)
    hub.objects.clear()
    hub.faults.append(fault)
    client(push, folder, name, config_name="rrc")
    assert fault.reached.is_set() and local(folder, "rrc").items() <= stored(hub, name).items()


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST .*/commit/", status=412),
        Fault("POST .*/commit/", status=503),
        Fault("GET .*/tree/", status=500, times=9),
        Fault("POST .*/commit/", drop_after=-1),
    ],
    ids=["412 on a commit", "503 on a commit", "500 on a listing", "answer to a commit lost"],
)
def test_other_errors_say_how_to_continue(hub, client, folder, fault, request):
    name = "me/stopped-" + re.sub(r"\W+", "-", request.node.callspec.id)
    hub.faults.append(fault)
    with pytest.raises(OSError, match="could not be published completely .*run the same command again to continue"):
        client(push, folder, name)
    assert not any(path.endswith((".json", ".md")) for path in stored(hub, name))
    hub.faults.clear()
    client(push, folder, name)
    files = stored(hub, name)
    assert local(folder, "rrc", "mixing").items() <= files.items()
    assert len(metadata(files["README.md"])["configs"]) == 2


def test_somebody_else_commits_at_the_same_time(hub, client, copy):
    """Other configurations are in the card, although they came while this one was sent."""
    client(push, copy, "me/race", config_name="mixing")
    repository = hub.repositories["datasets", "me/race"]
    names = iter(["theirs", "another"])

    def commit():
        other, name = dict(repository.files()), next(names)
        item = f"configs:\n- config_name: {name}\n  data_files: x\n".encode()
        content = other["README.md"].content.replace(b"configs:\n", item)
        other["README.md"] = replace(other["README.md"], content=content)
        repository.commit("main", "the other's commit", other)

    hub.faults.append(Fault("POST .*/preupload/", then=commit, times=2))  # before the shards, and before the rest
    with pytest.raises(OSError, match="could not be published completely .HTTP 412.*run the same command again"):
        client(push, copy, "me/race", config_name="rrc")
    client(push, copy, "me/race", config_name="rrc")
    card = metadata(stored(hub, "me/race")["README.md"])
    assert {item["config_name"] for item in card["configs"]} == {"rrc", "mixing", "theirs", "another"}


def start_push(folder, repo_id):
    """In the client: starts a process that publishes, and returns its id."""
    pid = os.fork()
    if pid == 0:
        push(folder, repo_id)
        os._exit(0)
    return pid


def test_killed_upload_continues(hub, client, folder):
    """What the Hub received before the kill is not sent again, and until the end nothing looks finished."""
    hub.objects.clear()
    released = threading.Event()
    fault = Fault("PUT /objects/" + digest(folder / "rrc" / "train-00001-of-00003.parquet"), hold=released)
    hub.faults.append(fault)
    pid = client(start_push, folder, "me/killed")
    assert fault.reached.wait(60)
    os.kill(pid, signal.SIGKILL)
    client(os.waitpid, pid, 0)
    released.set()
    received = set(hub.objects)
    assert not any(path.endswith(("README.md", ".json")) for path in stored(hub, "me/killed"))

    hub.forget()
    client(push, folder, "me/killed")
    sent = {request.rsplit("/", 1)[1] for request in hub.seen("PUT /objects/")}
    everything = {digest(folder / path) for path in local(folder, "rrc", "mixing") if not path.endswith(".json")}
    assert not sent & received
    assert sent | received == everything and digest(folder / "rrc" / "train-00001-of-00003.parquet") in sent
    assert local(folder, "rrc", "mixing").items() <= stored(hub, "me/killed").items()


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# Loading


def load_rows(name, config, **kwargs):
    """In the client: the number of rows, loaded and streamed by `datasets` alone."""
    from datasets import load_dataset

    rows = load_dataset(name, config, split="train", **kwargs)
    streamed = load_dataset(name, config, split="train", streaming=True, **kwargs)
    assert sum(1 for _ in streamed) == len(rows)
    return len(rows)


def streamed_rows(name, config):
    from datasets import load_dataset

    return sum(1 for _ in load_dataset(name, config, split="train", streaming=True))


def plain_load(name):
    from datasets import load_dataset

    rows = load_dataset(name, "rrc", split="train")
    some = load_dataset(name, "rrc", split="train", streaming=True, columns=["label", "image_hash"])
    return rows[3], next(iter(some))


def joined(name, config="rrc", epoch=0, **kwargs):
    """In the client: source rows, first sample and one view per image of a dataset joined with its images."""
    from hf_reinforce import load_reinforced

    dataset = load_reinforced(name, config, **kwargs)
    samples = [dataset[epoch * len(dataset) + position] for position in range(len(dataset))]
    return (
        dataset._rows.tolist(),
        [sample["labels"] for sample in samples],
        [sample["pixel_values"].numpy() for sample in samples],
    )


@pytest.fixture(scope="module")
def published(hub, client, folder, photos_on_hub):
    client(push, folder, "me/photos-plus")
    return "me/photos-plus"


def test_plain_load(client, published, photos):
    row, some = client(plain_load, published)
    assert row["label"] == photos[3]["label"] and row["source_row"] == 3
    assert len(row["augmentation_params"]) == len(row["teacher_logits"]) == 2
    assert set(some) == {"label", "image_hash"}
    assert client(load_rows, published, "mixing") == ROWS


@pytest.mark.parametrize("config", ["rrc", "mixing"])
def test_joined_with_the_recorded_source(client, published, photos, folder, config):
    from hf_reinforce import load_reinforced

    rows, labels, pixels = client(joined, published, config)
    here = load_reinforced(str(folder), config, source=photos)
    assert labels == photos.select(rows)["label"]
    assert all((pixels[position] == here[position]["pixel_values"].numpy()).all() for position in range(ROWS))


def test_joined_by_hash(client, published):
    """A source in another order, without 20 images: missing images are named, the others are the right ones."""
    with pytest.raises(ValueError, match=r"holds 130 of the 150 .*; 20 are missing: row \d+ \(hash [0-9a-f]{16}\)"):
        client(joined, published, source="me/photos-changed")
    rows, labels, pixels = client(joined, published)
    some, some_labels, some_pixels = client(joined, published, source="me/photos-changed", allow_missing=True)
    assert len(some) == ROWS - 20 and set(some) < set(rows)
    position = [rows.index(row) for row in some]
    assert some_labels == [labels[index] for index in position]
    assert all((view == pixels[index]).all() for view, index in zip(some_pixels, position, strict=True))


def test_mixed_images_whose_partner_is_missing(client, published):
    """They are replaced by other reinforcements that can be replayed."""
    views = {view.tobytes() for epoch in (0, 1) for view in client(joined, published, "mixing", epoch)[2]}
    _, _, some = client(joined, published, "mixing", source="me/photos-changed", allow_missing=True)
    assert len(some) == ROWS - 20 and {view.tobytes() for view in some} < views


def refused(name, config="rrc", login=True, **kwargs):
    """In the client: the error of `load_reinforced`."""
    from hf_reinforce import load_reinforced

    with mock.patch.dict(os.environ, {} if login else {"HF_TOKEN": ""}):
        try:
            load_reinforced(name, config, **kwargs)
        except ValueError as error:
            return str(error)
    return "nothing went wrong"


def test_errors_of_loading_say_what_to_do(hub, client, published):
    assert "has no revision 'v9'" in client(refused, published, revision="v9")
    assert "configurations ['mixing', 'rrc']" in client(refused, published, config="small")
    assert "no dataset 'me/nothing'" in client(refused, "me/nothing")
    hub.add_repository("dataset", "me/gated", stored(hub, published), gated=True)
    message = client(refused, "me/gated", login=False)
    assert "'me/gated'" in message and "accept them on its page on the Hub, then log in with `hf auth" in message
    hub.add_repository("dataset", "me/gated-photos", stored(hub, "me/photos"), gated=True)
    message = client(refused, published, source="me/gated-photos", login=False)
    assert "'me/gated-photos' may only be read by those who accepted its conditions" in message
    assert client(refused, "me/gated") == "nothing went wrong"


def loaded_in_chunks(name, config):
    """In the client: the number of rows, downloaded in pieces of 512 bytes."""
    from datasets import load_dataset

    with mock.patch("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 512):
        return len(load_dataset(name, config, split="train"))


def test_dropped_download_is_continued(hub, client, published):
    """After the last whole piece, not from the start."""
    repository = hub.add_repository("dataset", "me/dropped", stored(hub, published))
    fault = Fault("GET .*me/dropped/resolve/.*rrc/train-00001", drop_after=1100)
    hub.faults.append(fault)
    assert client(loaded_in_chunks, "me/dropped", "rrc") == ROWS
    assert fault.reached.is_set()
    path = "rrc/train-00001-of-00003.parquet"
    (address,) = (address for address in hub.served if address.endswith(path))
    assert hub.served[address] == len(repository.files()[path].content) + 1100 - 1024


def test_dropped_stream_is_continued(hub, client, published):
    hub.add_repository("dataset", "me/dropped-stream", stored(hub, published))
    fault = Fault("GET .*me/dropped-stream/resolve/.*rrc/train-00001", drop_after=1000)
    hub.faults.append(fault)
    assert client(streamed_rows, "me/dropped-stream", "rrc") == ROWS
    assert fault.reached.is_set()


def test_truncated_shard_on_the_hub(hub, client, published, photos_on_hub):
    files = stored(hub, published)
    files["rrc/train-00001-of-00003.parquet"] = files["rrc/train-00001-of-00003.parquet"][:-100]
    hub.add_repository("dataset", "me/truncated", files)
    message = client(refused, "me/truncated")
    assert "00001-of-00003.parquet cannot be read, probably because it was cut short" in message
    assert "publish it again" in message


# An import, and an estimate


def streamed_joined(name):
    """In the client: labels and hashes of the views of a streamed dataset."""
    from hf_reinforce import load_reinforced

    return sorted(
        (sample["labels"], digest_of(sample["pixel_values"].numpy()))
        for sample in load_reinforced(name, streaming=True)
    )


def digest_of(pixels):
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def test_an_import_that_leaves_images_out_is_published_and_streamed(hub, client, tmp_path):
    original = Original("randaug")  # eight images
    photos = io.BytesIO()
    original.source.to_parquet(photos)
    hub.add_repository("dataset", "me/originals", {"data/train-0.parquet": photos.getvalue()})
    archive = original.archive(tmp_path / "a.tar")
    options = {"id_map": [0, 1, 2, -1, 4, 5, 6, -1], "source_name": "me/originals", "shard_size": 3}
    import_ml_dr([archive], original.source, tmp_path / "imported", **options)
    client(push, tmp_path / "imported", "me/imported")
    streamed = client(streamed_joined, "me/imported")
    rows, labels, pixels = client(joined, "me/imported", "randaug")
    assert sorted(rows) == [0, 1, 2, 4, 5, 6]
    assert streamed == sorted(zip(labels, map(digest_of, pixels), strict=True))


@pytest.mark.parametrize("recorded", [True, False])
def test_an_estimate_reads_a_few_images(hub, client, photos, tmp_path, recorded):
    files = {}
    for index, rows in enumerate((range(70), range(70, 110), range(110, ROWS))):
        part = io.BytesIO()
        photos.select(rows).to_parquet(part)
        files[f"data/train-{index:05d}-of-00003.parquet"] = part.getvalue()
    info = {"dataset_info": {"splits": [{"name": "train", "num_bytes": 1, "num_examples": ROWS}]}}
    if recorded:
        files["README.md"] = f"---\n{yaml.safe_dump(info)}---\n".encode()
    name = f"me/estimated-{recorded}"
    hub.add_repository("dataset", name, files)
    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "teacher.pth")
    flags = ["--dataset_name", name, "--teacher_name_or_path", "test_resnet", "--policy", "rrc", "--image_size", "16"]
    flags += ["--teacher_checkpoint", str(tmp_path / "teacher.pth"), "--class_map", "identity", "--top_k", "3"]
    flags += ["--num_samples", "2", "--device", "cpu", "--output_dir", str(tmp_path / "out"), "--estimate", "True"]
    printed = client(run_recipe, *flags, script="reinforce.py")
    assert "150 images, policy rrc, N = 2: 300 views" in printed
    served = [path for path in hub.served if "train-00002" in path]
    assert bool(served) != recorded, (
        "the last file is not read, except for its number of rows where that is not recorded"
    )
    assert not (tmp_path / "out").exists()


# Revisions


def commits_of(*names_and_revisions):
    """In the client."""
    from hf_reinforce.hub.repository import dataset_commit

    return [dataset_commit(*item) for item in names_and_revisions]


def test_revision_is_resolved_to_a_commit(hub, client, photos_on_hub, folder):
    commit = photos_on_hub.find("v1")
    asked = [("me/photos",), ("me/photos", "v1"), ("me/photos", commit), ("me/photos", "v9"), ("me/nothing", "v1")]
    found = client(commits_of, *asked, (str(folder), "v1"), ("no hub id", None))
    assert found == [photos_on_hub.find("main"), commit, commit, "v9", "v1", "v1", None]
    newer = photos_on_hub.commit("trial", "move on", {})
    assert client(commits_of, ("me/photos", "trial")) == [newer] != [commit]


def test_revision_is_kept_where_the_hub_cannot_be_asked():
    assert commits_of(("me/photos", "v1"), ("me/photos",)) == ["v1", None]
