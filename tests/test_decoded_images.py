"""Images that are decoded once: the same samples, and a refusal where the memory does not suffice."""

import multiprocessing
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from datasets import concatenate_datasets
from tiny import TinyNet, reinforced_rows, tiny_dataset, tiny_teacher
from torch.utils.data import DataLoader

from hf_reinforce import AugmentedDataset, ImageSource, KDTrainer, KDTrainingArguments, ReinforcedDataset, load_policy
from hf_reinforce.images import ImageError, decode
from hf_reinforce.replay.sampler import EpochSampler

ROWS, N, C, SIZE = 40, 3, 5, 16


@pytest.fixture(scope="module")
def source():
    return tiny_dataset(ROWS, size_range=(20, 33), labels=C)


@pytest.fixture(scope="module")
def rows(source, tmp_path_factory):
    """What a `ReinforcedDataset` of each policy takes."""
    folder = tmp_path_factory.mktemp("plus")
    make = lambda policy: reinforced_rows(
        source, tiny_teacher(C), load_policy(policy, SIZE), folder / policy, num_samples=N, top_k=C
    )
    return {policy: make(policy) for policy in ("rrc", "small_mixing_randaug")}


@pytest.fixture
def decoded(monkeypatch):
    """How many images were decoded so far, in forked workers too."""
    count = multiprocessing.Value("i", 0)

    def counting(*args):
        with count.get_lock():
            count.value += 1
        return decode(*args)

    monkeypatch.setattr("hf_reinforce.images.decode", counting)
    return count


def epoch(dataset, number, workers=0):
    sampler = EpochSampler(dataset, seed=4)
    sampler.set_epoch(number)
    return list(DataLoader(dataset, 8, sampler=sampler, collate_fn=dataset.collate, num_workers=workers))


@pytest.mark.parametrize("options", [{}, {"plain_fraction": 0.5}, {"image_size": 24}, {"fresh": True}], ids=str)
@pytest.mark.parametrize("policy", ["rrc", "small_mixing_randaug"])
def test_samples_are_the_same(rows, source, decoded, policy, options):
    def made():
        if options.get("fresh"):
            return AugmentedDataset(ImageSource.of(source), load_policy(policy, SIZE))
        return ReinforcedDataset(*rows[policy], source=source, **options)

    plain, cached = made(), made()
    expected = [epoch(plain, number) for number in (0, 4)]
    cached.cache_images()
    cached.cache_images()
    decoded.value = 0
    for batches, workers in zip(expected, (0, 2), strict=True):
        for batch, other in zip(batches, epoch(cached, (0, 4)[workers // 2], workers), strict=True):
            assert batch.keys() == other.keys() and all(torch.equal(batch[name], other[name]) for name in batch)
    assert decoded.value == 0


def test_trainer_decodes_once(rows, source, decoded, tmp_path):
    dataset = ReinforcedDataset(*rows["rrc"], source=source)
    args = {"use_cpu": True, "num_train_epochs": 3, "save_strategy": "no", "disable_tqdm": True}
    decoded.value = 0
    args = KDTrainingArguments(str(tmp_path), cache_images=True, dataloader_num_workers=1, **args)
    KDTrainer(TinyNet(C, seed=1), args, dataset).train()
    assert decoded.value == ROWS


@pytest.mark.parametrize("processes", ["1", "4"])
def test_memory_that_does_not_suffice(source, monkeypatch, processes):
    needed = sum(3 * np.prod(image.size) for image in source["image"])
    free = 2 * needed
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    dataset = AugmentedDataset(ImageSource.of(source), load_policy("rrc", SIZE))
    if processes == "1":
        dataset.cache_images()
        return
    with pytest.raises(ValueError, match=f"take {needed:,} bytes in each of 4 processes, and {free:,} .*cache_images"):
        dataset.cache_images()


def test_every_image_is_checked(rows, source):
    dataset = ReinforcedDataset(*rows["rrc"], source=source)
    dataset.source = ImageSource.of(concatenate_datasets([source.select(range(ROWS - 1)), source.select([0])]))
    with pytest.raises(ValueError, match=f"Row {ROWS - 1} .* another image"):
        dataset.cache_images()


@pytest.mark.parametrize("content", [b"none", "cut short"])
def test_an_image_that_cannot_be_decoded_is_named(source, encoded, content):
    content = encoded("PNG")[:-200] if content == "cut short" else content
    broken = source.select(range(5)).map(
        lambda item, i: {"image": {"bytes": content, "path": None}} if i == 3 else item, with_indices=True
    )
    dataset = AugmentedDataset(ImageSource.of(broken.cast(source.features)), load_policy("rrc", SIZE))
    with pytest.raises(ImageError, match="^Row 3: "):
        dataset.cache_images()
