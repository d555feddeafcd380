"""Same inputs, same bytes: shards and `reinforcement.json`, and the samples of each epoch, as they were when frozen.

What is drawn and stored may never change, whatever the code looks like. The views have no resizing and the
teacher weighs pixels by whole numbers, so that no processor has its own rounding. Where a change is wanted, the schema
gets a new version.
"""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import concatenate_datasets
from golden.make import source as ten_images
from torch import nn

from hf_reinforce import AugmentationPolicy, load_policy, load_reinforced, load_teacher, reinforce
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.replay.sampler import EpochSampler

SIZE, CLASSES = 24, 5
WRITER = "26.0.1"
"""The pyarrow whose files the checksums are of: another one may write the same rows as other bytes."""

GIVEN = ("pixel_values", "labels", "partner", "mixup", "cutmix", "partner_labels")
POLICIES = {
    "cropped": [{"random_crop": {"size": SIZE, "padding": 3}}, "horizontal_flip", "random_erasing"],
    "distorted": [{"random_crop": {"size": SIZE, "padding": 3}}, "horizontal_flip", "rand_augment"],
    "mixed": [{"random_crop": {"size": SIZE, "padding": 3}}, "horizontal_flip", "mixup", "cutmix"],
}


def source():
    """140 rows: two whole blocks of mixing partners and a part of one, three shards."""
    return concatenate_datasets([ten_images()] * 14)


class Weighing(nn.Module):
    """Logits from sums of pixels under weights of -2 to 2."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter((torch.arange(CLASSES * 3 * SIZE * SIZE) * 7 % 5 - 2).float().view(CLASSES, -1))

    def forward(self, images):
        return images.double().flatten(1).matmul(self.weight.double().T).div(256).float()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    teacher = load_teacher(Weighing(), preprocessing=Preprocessing(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear"))
    path = tmp_path_factory.mktemp("frozen")
    for name, operations in POLICIES.items():
        policy = AugmentationPolicy.from_dict({"name": name, "operations": operations})
        reinforce(source(), teacher, policy, path, num_samples=4, top_k=3, seed=11, shard_size=64, num_workers=1)
    return path


def sha256(content):
    return hashlib.sha256(content).hexdigest()[:32]


def configuration(path):
    """`reinforcement.json` without the versions of libraries, with its key order."""
    text = json.loads((path / "reinforcement.json").read_text())
    text["pixels"].pop("versions")
    return sha256(json.dumps(text).encode())


def contents(path):
    """Rows of a shard with their types, as no writer can change them."""
    table = pq.read_table(path)
    plain = table.to_pylist()
    return sha256((str(table.schema.remove_metadata()) + json.dumps(plain, default=bytes.hex)).encode())


FROZEN = json.loads((Path(__file__).parent / "bytes.json").read_text())


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_stored(name, folder):
    shards = sorted((folder / name).glob("*.parquet"))
    assert [contents(shard) for shard in shards] == FROZEN[name]["contents"]


@pytest.mark.skipif(pa.__version__ != WRITER, reason=f"the checksums are of files that pyarrow {WRITER} wrote")
@pytest.mark.parametrize("name", POLICIES)
def test_bytes_of_the_shards_and_their_record(name, folder):
    assert configuration(folder / name) == FROZEN[name]["configuration"]  # which has the shards' checksums
    assert [sha256(shard.read_bytes()) for shard in sorted((folder / name).glob("*.parquet"))] == FROZEN[name]["bytes"]


@pytest.mark.parametrize("name", POLICIES)
def test_samples_of_three_epochs(name, folder):
    dataset = load_reinforced(str(folder), name, source=source(), seed=5)
    sampler, seen = EpochSampler(dataset, seed=3), hashlib.sha256()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batch = dataset.collate(dataset.__getitems__(list(sampler)))
        for key in sorted(key for key in batch if key in GIVEN or key.startswith("target_")):
            seen.update(key.encode() + batch[key].contiguous().numpy().tobytes())
    assert seen.hexdigest()[:32] == FROZEN[name]["samples"]


@pytest.mark.parametrize(
    "name", ["rrc", "mixing", "randaug", "mixing_randaug", "small_randaug", "small_mixing", "small_crop"]
)
def test_drawn_parameters(name):
    policy = load_policy(name, SIZE)
    drawn = [policy.sample(9, row, slot, 40, 33 + row) for row in range(70) for slot in range(3)]
    assert sha256(json.dumps(drawn, sort_keys=True).encode()) == FROZEN["drawn"][name]
