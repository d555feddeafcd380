"""From a folder to a student in both libraries, over the Hub alone: publish, load, join, train, publish, load."""

import hashlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hub_client import Client
from hub_server import Fault, HubServer
from tiny import tiny_dataset, tiny_teacher

from hf_reinforce import load_policy, reinforce

ROWS, TEST_ROWS = 128, 12  # two shards of 64 rows
RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def client(hub, tmp_path):
    caller = Client(hub, tmp_path / "cache")
    yield caller
    caller.close()


def add_photos(hub):
    """The images, in a repository of their own; the commit that holds them."""
    files = {}
    for split, dataset in (("train", tiny_dataset(ROWS)), ("test", tiny_dataset(TEST_ROWS))):
        buffer = io.BytesIO()
        dataset.to_parquet(buffer)
        files[f"data/{split}.parquet"] = buffer.getvalue()
    return hub.add_repository("dataset", "me/photos", files).branches["main"]


def make_configurations(folder, commit):
    """Reinforces the images under two policies; the shards by their hashes."""
    source = {"source_name": "me/photos", "source_revision": commit}
    for policy in ("rrc", "mixing"):
        options = {"num_samples": 2, "top_k": 3, "shard_size": 64, "device": "cpu", **source}
        reinforce(tiny_dataset(ROWS), tiny_teacher(), load_policy(policy, 32), folder, **options)
    return {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in folder.glob("*/train-*.parquet")}


def publish(folder):
    from hf_reinforce import push_to_hub

    return [change.path for change in push_to_hub(folder, "me/photos-plus").changes]


def load_plain(config):
    """In the client, without this package: rows, loaded and streamed."""
    from datasets import load_dataset

    rows = load_dataset("me/photos-plus", config, split="train")
    streamed = load_dataset("me/photos-plus", config, split="train", streaming=True)
    few = load_dataset("me/photos-plus", config, split="train", streaming=True, columns=["label", "image_hash"])
    return [row["image_hash"] for row in rows], [row["image_hash"] for row in streamed], set(next(iter(few)))


def load_joined(config):
    """In the client: rows, labels and views of a dataset joined with its images, whose hashes are checked."""
    from hf_reinforce import load_reinforced

    dataset = load_reinforced("me/photos-plus", config)
    samples = [dataset[position] for position in range(len(dataset))]
    return dataset._rows.tolist(), [described(sample) for sample in samples]


def stream_joined(config):
    """In the client: labels and views that each of two processes streams."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        parts = [pool.submit(stream_part, config, rank) for rank in (0, 1)]
        return [part.result() for part in parts]


def stream_part(config, rank):
    """In a process of the client: its id, and labels and views of its part."""
    from hf_reinforce import load_reinforced

    stream = load_reinforced("me/photos-plus", config, streaming=True)
    return os.getpid(), [described(stream[position]) for position in range(rank, len(stream), 2)]


def described(sample):
    return sample["labels"], hashlib.sha256(sample["pixel_values"].numpy().tobytes()).hexdigest()


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
    pairs = zip(in_transformers.timm_model.state_dict().values(), in_timm.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    return logits, list(in_transformers.config.id2label.values()), in_timm.pretrained_cfg["label_names"]


def test_from_a_folder_to_a_student_over_the_hub(hub, client, tmp_path):
    folder, commit = tmp_path / "photos-plus", add_photos(hub)
    shards = make_configurations(folder, commit)
    assert len(shards) == 4

    # Publishing is killed in the middle of an upload, and continues.
    released = threading.Event()
    fault = Fault(f"PUT /objects/{sorted(shards)[2]}", hold=released)
    hub.faults.append(fault)
    command = [sys.executable, RECIPES / "publish.py", "--folder", folder, "--repo_id", "me/photos-plus"]
    with subprocess.Popen(command, env=client.environment) as process:
        assert fault.reached.wait(120)
        process.kill()
    released.set()
    received = set(hub.objects) & set(shards)
    hub.forget()
    assert "README.md" in client(publish, folder)
    sent = {request.rsplit("/", 1)[1] for request in hub.seen("PUT /objects/")} & set(shards)
    assert received.isdisjoint(sent) and received | sent == set(shards)
    published = hub.repositories["datasets", "me/photos-plus"].files()
    assert all(published[f"{path.parent.name}/{path.name}"].content == path.read_bytes() for path in shards.values())

    # Others load it: with `datasets` alone, joined with the images as they were before these changed, and as streams.
    photos = hub.repositories["datasets", "me/photos"]
    photos.commit(
        "main", "take the training images back", {path: photos.files()[path] for path in ["data/test.parquet"]}
    )
    (first_process, first), (second_process, second) = client(stream_joined, "rrc")
    assert first_process != second_process
    assert not list((tmp_path / "cache").rglob("*.parquet")), "what is streamed is not downloaded"
    for config in ("rrc", "mixing"):
        loaded, streamed, columns = client(load_plain, config)
        assert len(set(loaded)) == ROWS and streamed == loaded and columns == {"label", "image_hash"}
        rows, samples = client(load_joined, config)
        assert sorted(rows) == list(range(ROWS)) and [label for label, _ in samples] == [row % 5 for row in rows]
    assert len(first) == len(second) == ROWS // 2 and sorted(first + second) == sorted(client(load_joined, "rrc")[1])

    # A student is trained from the repository's name alone, and published.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", RECIPES / "accelerate" / "cpu_multi_process.yaml"]
    command += [RECIPES / "train_kd.py", "--dataset_name", "me/photos-plus", "--dataset_config_name", "mixing"]
    command += ["--model_name_or_path", "test_resnet", "--output_dir", tmp_path / "student", "--num_train_epochs", "2"]
    command += ["--per_device_train_batch_size", "16", "--ema_decay", "0.5", "--eval_split", "test"]
    command += ["--push_to_hub", "True", "--hub_model_id", "me/student", "--save_strategy", "epoch"]
    fresh = {"HF_HOME": str(tmp_path / "another-cache"), "ACCELERATE_USE_CPU": "true"}
    environment = {**client.environment, **fresh}
    run = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-4000:]
    state = json.loads((tmp_path / "student" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 2 * ROWS // (2 * 16), "two processes share the steps of each epoch"
    student = hub.repositories["models", "me/student"].files()
    assert student["model.safetensors"].content == (tmp_path / "student" / "model.safetensors").read_bytes()

    # Both libraries load the same student.
    (in_transformers, in_timm), *classes = client(load_student)
    np.testing.assert_allclose(in_transformers, in_timm, rtol=1e-4, atol=1e-9)  # kernels depend on where memory begins
    assert classes == [tiny_dataset(1).features["label"].names] * 2
