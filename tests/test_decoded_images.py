"""Images that are decoded once: the same samples, and a refusal where the memory does not suffice."""

import multiprocessing
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from datasets import Dataset, Image, concatenate_datasets
from tiny import TinyNet, reinforced_rows, tiny_dataset, tiny_teacher
from torch.utils.data import DataLoader

from hf_reinforce import (
    AugmentedDataset,
    EpochSampler,
    ImageSource,
    KDTrainer,
    KDTrainingArguments,
    ReinforcedDataset,
    load_policy,
)
from hf_reinforce.images import ImageError, decode

ROWS, C, SIZE = 40, 5, 16


@pytest.fixture(scope="module")
def source():
    return tiny_dataset(ROWS, size_range=(20, 33), labels=C)


@pytest.fixture(scope="module")
def rows(source, tmp_path_factory):
    """What a `ReinforcedDataset` of each policy takes."""
    folder, options = tmp_path_factory.mktemp("plus"), {"num_samples": 3, "top_k": C}
    policies = {name: load_policy(name, SIZE) for name in ("rrc", "small_mixing_randaug")}
    return {n: reinforced_rows(source, tiny_teacher(C), p, folder / n, **options) for n, p in policies.items()}


@pytest.fixture
def decoded(monkeypatch):
    """How many images were decoded so far, in forked workers too."""
    count = multiprocessing.Value("i", 0)

    def counting(*args):
        with count.get_lock():
            count.value += 1
        return decode(*args)

    monkeypatch.setattr("hf_reinforce.images.decode", counting)
    monkeypatch.setattr("hf_reinforce.replay.views._TOGETHER", 16)  # so that there are several pieces
    return count


@pytest.mark.parametrize("options", [{}, {"plain_fraction": 0.5}, {"image_size": 24}, {"fresh": True}], ids=str)
@pytest.mark.parametrize("policy", ["rrc", "small_mixing_randaug"])
def test_samples_are_the_same(rows, source, decoded, policy, options):
    def made():
        if options.get("fresh"):
            return AugmentedDataset(ImageSource.of(source), load_policy(policy, SIZE))
        return ReinforcedDataset(*rows[policy], source=source, **options)

    def batches(dataset, epoch, workers):
        sampler = EpochSampler(dataset, seed=4)
        sampler.set_epoch(epoch)
        return list(DataLoader(dataset, 8, sampler=sampler, collate_fn=dataset.collate, num_workers=workers))

    plain, cached = made(), made()
    expected = {epoch: batches(plain, epoch, 0) for epoch in (0, 4)}
    cached.cache_images()
    decoded.value = 0
    for epoch, workers in ((0, 0), (4, 2)):
        for batch, other in zip(expected[epoch], batches(cached, epoch, workers), strict=True):
            assert batch.keys() == other.keys() and all(torch.equal(batch[name], other[name]) for name in batch)
    assert decoded.value == 0


def test_trainer_decodes_once(rows, source, decoded, tmp_path):
    dataset = ReinforcedDataset(*rows["rrc"], source=source)
    decoded.value = 0
    options = {"use_cpu": True, "num_train_epochs": 3, "save_strategy": "no", "disable_tqdm": True}
    args = KDTrainingArguments(str(tmp_path), cache_images=True, dataloader_num_workers=1, **options)
    for seed in (1, 2):
        KDTrainer(TinyNet(C, seed=seed), args, dataset).train()
    assert decoded.value == ROWS


@pytest.mark.parametrize("processes", [1, 4])
def test_memory_that_does_not_suffice(source, monkeypatch, processes):
    needed = sum(3 * np.prod(image.size) for image in source["image"])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * needed))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    dataset = AugmentedDataset(ImageSource.of(source), load_policy("rrc", SIZE))
    if processes == 1:
        return dataset.cache_images()
    with pytest.raises(ValueError, match=f"about {needed:,} bytes in each of 4 proc.* {2 * needed:,} .*cache_images"):
        dataset.cache_images()


def test_bad_images_are_named(rows, source, encoded):
    """Also one that is in another's place, and nowhere."""
    dataset = ReinforcedDataset(
        *rows["rrc"], concatenate_datasets([source.select(range(ROWS - 1)), source.select([0])])
    )
    with pytest.raises(ValueError, match=f"Row {ROWS - 1} .* another image"):
        dataset.cache_images()
    rows = source.cast_column("image", Image(decode=False)).to_list()[:5]
    for content in (b"none", encoded("PNG")[:-200]):
        rows[3]["image"] = {"bytes": content, "path": None}
        broken = Dataset.from_list(rows, features=source.features)
        with pytest.raises(ImageError, match="^Row 3: "):
            AugmentedDataset(ImageSource.of(broken), load_policy("rrc", SIZE)).cache_images()
