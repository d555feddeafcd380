"""Publishing over HTTP, with the real clients in a process of their own against tests/hub_server.py."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path
from unittest import mock

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub_client import run_recipe
from hub_server import Fault
from huggingface_hub import HfApi
from tiny import tiny_dataset, tiny_teacher

from hf_reinforce import ReinforcementConfig, load_policy, push_to_hub, reinforce, write_dataset_card
from hf_reinforce.hub import publish

ROWS = 130  # three shards of 64 rows
SHARDS = [f"train-{index:05d}-of-00003.parquet" for index in range(3)]


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
def folder(tmp_path_factory, photos):
    """A reinforced dataset of two configurations, three shards each; `rrc` has a preview."""
    path = tmp_path_factory.mktemp("reinforced") / "photos-plus"
    options = {"num_samples": 2, "top_k": 3, "shard_size": 64, "device": "cpu", "source_name": "me/photos"}
    for policy in ("rrc", "mixing"):
        reinforce(photos, tiny_teacher(), load_policy(policy, 32), path, num_workers=1, **options)
    (path / "rrc" / "preview.png").write_bytes(b"a picture")
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


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def change_config(folder, source=None, **changes):
    config = ReinforcementConfig.load(folder)
    replace(config, source=replace(config.source, **(source or {})), **changes).save(folder)


def push(folder, repo_id, **kwargs):
    """In the client: publishes, without waits between the tries of the Hub's client."""
    with mock.patch("time.sleep"):
        return push_to_hub(folder, repo_id, **kwargs)


def printed(*argv):
    """In the client: what a recipe prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert run_recipe(*argv) is None
    return output.getvalue()


def load_rows(name, config, **kwargs):
    """In the client: the number of rows, loaded and streamed by `datasets` alone."""
    from datasets import load_dataset

    rows = load_dataset(name, config, split="train", **kwargs)
    assert sum(1 for _ in load_dataset(name, config, split="train", streaming=True, **kwargs)) == len(rows)
    return len(rows)


# What is sent


def test_push_sends_the_folder_as_it_is(hub, client, folder):
    first = client(push, folder, "me/whole", config_name="mixing")
    result = client(push, folder, "me/whole")
    repository, files = hub.repositories["datasets", "me/whole"], stored(hub, "me/whole")
    card = files.pop("README.md").decode()
    assert files == local(folder, "rrc", "mixing")
    assert {change.path for change in (*first.changes, *result.changes)} == {*files, "README.md"}
    assert result.commit_url.endswith(repository.find("main"))
    assert 'load_dataset("me/whole", "mixing"' in card and 'load_reinforced("me/whole", "mixing")' in card
    assert card.replace('"me/whole"', '"photos-plus"') == (folder / "README.md").read_text(encoding="utf-8")
    # The shards of a new configuration come first, and all that makes it a finished one in the last commit.
    assert [len(files) for files in repository.commits.values()] == [0, 3, 5, 8, 10]
    message = "Add mixing (N=2), rrc (N=2)"
    assert repository.messages[1:] == ["Add mixing (N=2): shards", "Add mixing (N=2)", f"{message}: shards", message]

    hub.forget()
    again = client(push, folder, "me/whole")
    assert again.changes == () and again.commit_url == result.commit_url
    assert not hub.seen("PUT /objects|commit/|preupload/")
    assert client(load_rows, "me/whole", "rrc") == client(load_rows, "me/whole", "mixing") == ROWS


def test_dry_run_sends_nothing(hub, client, folder):
    result = client(push, folder, "me/recipe", dry_run=True)
    sizes = {path: len(content) for path, content in local(folder, "rrc", "mixing").items()}
    assert sizes.items() <= {change.path: change.size for change in result.changes}.items()
    assert {change.reason for change in result.changes} == {"new"} and len(result.changes) == len(sizes) + 1
    flags = ["publish", "--folder", str(folder), "--repo_id", "me/recipe", "--config_name", "rrc"]
    text = client(printed, *flags, "--dry_run", "True")
    assert f"rrc/{SHARDS[0]}" in text and "6 files, " in text and "would be sent" in text
    assert result.commit_url is None and not hub.seen("POST|PUT") and ("datasets", "me/recipe") not in hub.repositories
    assert f"{hub.url}/datasets/me/recipe/commit/" in client(printed, *flags)
    assert len(stored(hub, "me/recipe")) == 6


def test_only_files_that_belong(hub, client, copy):
    for name in (
        ".env",
        "notes.txt",
        f"rrc/.{SHARDS[0]}.tmp-7",
        "rrc/model.bin",
        "rrc/.hidden.parquet",
        "rrc/n.parquet",
    ):
        (copy / name).write_text("secret", encoding="utf-8")
    (copy / "rrc" / ".num_samples-4").mkdir()
    (copy / "rrc" / ".num_samples-4" / SHARDS[0]).write_text("half", encoding="utf-8")
    there = {"rrc/extra.parquet": b"somebody's", "rrc/train-00007.parquet": b"an old shard"}
    hub.add_repository("dataset", "me/clean", there)
    client(push, copy, "me/clean", config_name="rrc")
    own = ["preview.png", "reinforcement.json", *SHARDS]
    assert set(stored(hub, "me/clean")) == {"README.md", "rrc/extra.parquet", *(f"rrc/{name}" for name in own)}


def test_changed_configuration_changes_in_one_commit(hub, client, copy, photos):
    client(push, copy, "me/changed")
    shutil.rmtree(copy / "rrc")
    options = {"num_samples": 3, "top_k": 3, "device": "cpu"}
    reinforce(photos.select(range(64)), tiny_teacher(), load_policy("rrc", 16), copy, **options)
    card = (copy / "README.md").read_text(encoding="utf-8")
    (copy / "README.md").unlink()
    result = client(push, copy, "me/changed")
    assert len(hub.repositories["datasets", "me/changed"].messages) == 4
    files = stored(hub, "me/changed")
    assert files.pop("README.md").decode() != card and files.pop("rrc/preview.png") == b"a picture"
    assert files == local(copy, "rrc", "mixing")
    reasons = {change.path: change.reason for change in result.changes}
    assert reasons == {
        "rrc/train-00000-of-00001.parquet": "new",
        **{f"rrc/{name}": "deleted" for name in SHARDS},
        **dict.fromkeys(["rrc/reinforcement.json", "README.md"], "changed"),
    }


def test_a_second_configuration_keeps_the_first_and_its_terms(hub, client, copy):
    for config, source, license in (("mixing", "me/photos", "cc-by-nc-4.0"), ("rrc", "me/paintings", "mit")):
        change_config(copy / config, {"name": source, "license": license})
        client(push, copy, "me/both", config_name=config)
    files = stored(hub, "me/both")
    card = metadata(files["README.md"])
    assert card["license"] == ["cc-by-nc-4.0", "mit"] and card["source_datasets"] == ["me/photos", "me/paintings"]
    assert [item["config_name"] for item in card["configs"]] == ["rrc", "mixing"]
    assert "also holds `mixing`" in files["README.md"].decode()
    assert local(copy, "mixing", "rrc").items() <= files.items()
    assert client(push, copy, "me/both", config_name="rrc").changes == ()
    write_dataset_card(copy)  # one folder of both describes both
    text = (copy / "README.md").read_text(encoding="utf-8") + "\nMy own words about photos-plus.\n"
    (copy / "README.md").write_text(text, encoding="utf-8")
    client(push, copy, "me/both")
    sent = stored(hub, "me/both")["README.md"].decode()
    assert "datasets/me/photos)" in sent and "datasets/me/paintings)" in sent and "also holds" not in sent
    assert "My own words about photos-plus." in sent and metadata(sent.encode())["license"] == ["cc-by-nc-4.0", "mit"]


def test_private_branch_and_tag(hub, client, folder):
    options = {"config_name": "rrc", "revision": "trial", "tag": "v1", "private": True, "commit_message": "Try it"}
    result = client(push, folder, "me/private", **options)
    repository = hub.repositories["datasets", "me/private"]
    assert repository.private and repository.messages[-1] == "Try it"
    assert repository.tags["v1"] == repository.branches["trial"] == result.commit_url.rsplit("/", 1)[1]
    assert not repository.files("main") and len(repository.files("trial")) == 6
    assert client(push, folder, "me/private", **options).changes == ()  # the tag names it already
    with pytest.raises(ValueError, match="already has a tag 'v1'"):
        client(push, folder, "me/private", tag="v1")
    assert not repository.files("main")
    with pytest.raises(ValueError, match="is public"):
        hub.add_repository("dataset", "me/public", {})
        client(push, folder, "me/public", private=True)


# What is refused


def cut(folder):
    path = folder / "rrc" / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-100])


def copied_without_checksums(config):
    def spoil(folder):
        shutil.copy(folder / config / SHARDS[0], folder / config / SHARDS[1])
        change_config(folder / config, checksums={})  # as earlier versions wrote it

    return spoil


def linked(folder):
    (folder / "rrc" / SHARDS[1]).rename(folder.parent / "elsewhere.parquet")
    (folder / "rrc" / SHARDS[1]).symlink_to(folder.parent / "elsewhere.parquet")


REFUSED = {
    "missing": (lambda folder: shutil.rmtree(folder / "rrc"), r"no configuration \['rrc'\].*has are \['mixing'\]"),
    "empty": (shutil.rmtree, r"no configuration \['rrc'\].*has are \[\]"),
    "unfinished": (
        lambda folder: change_config(folder / "rrc", complete=False),
        "'rrc' is not finished; run the comma",
    ),
    "cut short": (cut, f"{SHARDS[1]} is damaged.*Delete it and run"),
    "without a shard": (
        lambda folder: (folder / "rrc" / SHARDS[1]).unlink(),
        "holds 66 rows, not 130: shards are mis",
    ),
    "of another N": (
        lambda folder: change_config(folder / "rrc", num_samples=4),
        "holds 2 reinforcements per image, n",
    ),
    "twice, in order": (copied_without_checksums("rrc"), f"is there twice, in .*{SHARDS[0]} and .*{SHARDS[1]}: "),
    "linked": (linked, "is a link; replace it by a copy"),
    "no shard": (
        lambda folder: pq.write_table(pa.table({"note": [1]}), folder / "rrc" / "train-notes.parquet"),
        r"train-notes.parquet has no columns .*'augmentation_params'.*Move it elsewhere",
    ),
    "of a newer schema": (
        lambda folder: (folder / "rrc" / "reinforcement.json").write_text('{"schema_version": 3}'),
        "schema version 3",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_folders_that_are_refused(copy, name):
    spoil, expected = REFUSED[name]
    spoil(copy)
    with pytest.raises(ValueError, match=expected):
        push_to_hub(copy, "me/refused", config_name="rrc")


def test_rows_that_are_there_twice(copy):
    """In shuffled order."""
    copied_without_checksums("mixing")(copy)
    with pytest.raises(
        ValueError, match=r"Row \d+ of the source is there twice, .*Delete what is named and run the com"
    ):
        push_to_hub(copy, "me/refused", config_name="mixing")


@pytest.mark.parametrize("repo_id", ["photos", "a/b/c", "me/", "/photos", "me/pho tos", ""])
def test_names_that_are_no_repository_are_refused(repo_id):
    with pytest.raises(ValueError, match=f"^repo_id must be 'owner/name', .* not {re.escape(repr(repo_id))}\\.$"):
        push_to_hub("nowhere", repo_id)


def test_what_the_hub_refuses(hub, client, folder):
    with pytest.raises(ValueError, match="me/a--b"):
        client(push, folder, "me/a--b", config_name="rrc")
    with pytest.raises(OSError, match="The Hub refused to publish me/names: .*Invalid reference name: v 1"):
        client(push, folder, "me/names", config_name="rrc", tag="v 1")
    assert client(push, folder, "me/names", config_name="rrc", tag="v1").changes == ()
    with pytest.raises(OSError, match="does not let you write to me/forbidden.*hf auth login") as error:
        client(push, folder, "me/forbidden", token="hf_another_token")
    assert "hf_another_token" not in str(error.value) and ("datasets", "me/forbidden") not in hub.repositories
    repository = hub.add_repository("dataset", "me/tagged", {"notes.txt": b"old"})
    repository.tags["v1"] = commit = repository.find("main")
    hub.forget()
    for name, dry_run in (("v1", True), (commit, False), (commit[:9], False)):
        with pytest.raises(
            ValueError, match=f"'{name}' is a tag or a commit of me/tagged.*name a branch with revision"
        ):
            client(push, folder, "me/tagged", config_name="rrc", revision=name, dry_run=dry_run)
    assert not hub.seen("POST|PUT") and repository.branches == {"main": commit}


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub(folder, monkeypatch, caplog, offline):
    """A dry run lists every file as new."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(publish, "HfApi", lambda token=None: HfApi("http://127.0.0.1:9", token=token))
    result = push_to_hub(folder, "me/offline", dry_run=True)
    assert {change.path for change in result.changes} == {"README.md", *local(folder, "rrc", "mixing")}
    assert {change.reason for change in result.changes} == {"new"} and "The Hub cannot be asked" in caplog.text
    if offline:
        with pytest.raises(OSError, match=r"^HF_HUB_OFFLINE forbids to ask the Hub; unset it to publish me/offline.$"):
            push_to_hub(folder, "me/offline")


# What goes wrong on the way


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("POST .*/commit/", {"status": 412}),
        ("POST .*/commit/", {"drop_after": -1}),  # the answer is lost
        ("GET /api/datasets/me/stopped", {"status": 500, "times": 9}),
    ],
)
def test_errors_on_the_way_say_how_to_continue(hub, client, folder, pattern, fault):
    name = f"me/stopped-{'-'.join(fault)}"
    hub.add_repository("dataset", name, {})
    hub.faults.append(Fault(pattern, **fault))
    with pytest.raises(OSError, match="could not be published completely .*run the same command again to continue"):
        client(push, folder, name)
    assert not any(path.endswith((".json", ".md")) for path in stored(hub, name))
    hub.faults.clear()
    client(push, folder, name)
    files = stored(hub, name)
    assert (
        local(folder, "rrc", "mixing").items() <= files.items() and len(metadata(files["README.md"])["configs"]) == 2
    )


def test_somebody_else_commits_at_the_same_time(hub, client, copy):
    """Other configurations are in the card, although they came while this one was sent."""
    client(push, copy, "me/race", config_name="mixing")
    repository = hub.repositories["datasets", "me/race"]
    names = iter(["theirs", "another"])

    def commit():
        files = stored(hub, "me/race")
        item = f"configs:\n- config_name: {next(names)}\n  data_files: x\n".encode()
        repository.add({**files, "README.md": files["README.md"].replace(b"configs:\n", item)})

    hub.faults.append(Fault("POST .*/preupload/", then=commit, times=2))  # before the shards, and before the rest
    with pytest.raises(OSError, match=r"could not be published completely .HTTP 412.*run the same command again"):
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
    fault = Fault("PUT /objects/" + digest(folder / "rrc" / SHARDS[1]), hold=released)
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
    assert not sent & received and digest(folder / "rrc" / SHARDS[1]) in sent
    assert sent | received == everything and local(folder, "rrc", "mixing").items() <= stored(hub, "me/killed").items()


# A student


def load_student():
    """In the client: logits of the published student in transformers and in timm, and its classes in both."""
    import timm
    import torch
    from transformers import AutoModelForImageClassification

    in_transformers = AutoModelForImageClassification.from_pretrained("me/student").eval()
    in_timm = timm.create_model("hf-hub:me/student", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = in_transformers(images).logits.numpy(), in_timm(images).numpy()
    return logits, list(in_transformers.config.id2label.values()), in_timm.pretrained_cfg["label_names"]


def test_from_a_folder_to_a_student_over_the_hub(hub, client, folder, photos, tmp_path):
    """The student is trained from the repository's name alone, and loads in both libraries."""
    for split, rows in (("train", photos), ("test", photos.select(range(12)))):
        rows.to_parquet(str(tmp_path / f"{split}.parquet"))
    files = {f"data/{split}.parquet": (tmp_path / f"{split}.parquet").read_bytes() for split in ("train", "test")}
    hub.add_repository("dataset", "me/photos", files)
    client(push, folder, "me/photos-plus")
    words = [
        "--dataset_name",
        "me/photos-plus",
        "--dataset_config_name",
        "mixing",
        "--model_name_or_path",
        "test_resnet",
    ]
    words += ["--output_dir", tmp_path / "student", "--max_steps", "2", "--use_cpu", "True", "--eval_split", "test"]
    words += ["--ema_decay", "0.5", "--push_to_hub", "True", "--hub_model_id", "me/student", "--save_strategy", "no"]
    assert client(run_recipe, "train_kd", *words) is None
    state = json.loads((tmp_path / "student" / "trainer_state.json").read_text(encoding="utf-8"))
    student = hub.repositories["models", "me/student"].files()
    assert state["global_step"] == 2
    assert student["model.safetensors"].content == (tmp_path / "student" / "model.safetensors").read_bytes()
    (in_transformers, in_timm), *classes = client(load_student)
    np.testing.assert_allclose(in_transformers, in_timm, rtol=1e-4, atol=1e-9)  # kernels depend on where memory begins
    assert classes == [photos.features["label"].names] * 2
