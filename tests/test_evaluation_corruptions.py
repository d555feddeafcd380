"""Corruptions on the fly are functions of (seed, row, corruption, severity) alone, whichever worker makes them."""

import sys

import numpy as np
import pytest
import torch
from tiny import tiny_dataset
from torch.utils.data import DataLoader

from hf_reinforce import ImageSource
from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.evaluation import corruptions
from hf_reinforce.evaluation.corruptions import CORRUPTIONS, CorruptedDataset, corrupt
from hf_reinforce.evaluation.results import Corruption
from hf_reinforce.images import from_pil

pytest.importorskip("imagecorruptions", reason="needs the extra robustness")


def distance(image, corrupted):
    return (image.float() - corrupted.float()).abs().mean().item()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption(name, photo):
    for size in (32, 64):
        image = from_pil(photo.resize((size, size)))
        weak, strong = (corrupt(image, Corruption(name, severity), 0, 7) for severity in (1, 5))
        assert weak.shape == image.shape and weak.dtype == torch.uint8
        assert distance(image, weak) > 0 and distance(image, strong) > 0
        if name != "fog":  # its strongest setting is also its smoothest
            assert distance(image, weak) < distance(image, strong)
        assert torch.equal(corrupt(image, Corruption(name, 5), 0, 7), strong)


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "impulse_noise", "glass_blur", "snow", "frost", "elastic_transform"]
)
def test_seed_and_row_change_what_is_random(name, photo):
    image, how = from_pil(photo.resize((48, 48))), Corruption(name, 3)
    found = [corrupt(image, how, seed, row) for seed, row in ((0, 0), (0, 1), (1, 0))]
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_the_global_generator_is_left_alone(photo):
    image = from_pil(photo.resize((32, 32)))
    np.random.seed(5)
    expected = np.random.get_state()[1].copy()
    corrupt(image, Corruption("gaussian_noise", 1), 0, 0)
    assert (np.random.get_state()[1] == expected).all()


def test_workers_and_batches_change_nothing():
    source, rows = ImageSource.of(tiny_dataset(7, labels=0)), np.arange(10, 17)
    for name in ("shot_noise", "glass_blur"):
        dataset = CorruptedDataset(source, evaluation_policy(32), Corruption(name, 4), rows, seed=3)
        batches = []
        for batch_size, workers in ((7, 0), (2, 2)):
            loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=dataset.collate)
            batches.append(torch.cat([batch["pixel_values"] for batch in loader]))
        assert torch.equal(*batches)
        clean = super(CorruptedDataset, dataset).pixels(2, dataset.params(2, 0))
        assert torch.equal(batches[0][2], corrupt(clean, Corruption(name, 4), 3, 12))


def test_mistakes_are_one_sentence(photo, monkeypatch):
    image = from_pil(photo.resize((32, 32)))
    with pytest.raises(ValueError, match="There is no corruption 'rain' of severity 1; the corruptions are gaussian"):
        corrupt(image, Corruption("rain", 1), 0, 0)
    with pytest.raises(ValueError, match="with severities 1 to 5"):
        corrupt(image, Corruption("fog", 6), 0, 0)
    with pytest.raises(ValueError, match="at least 32 pixels, not 16; pass image_size"):
        corrupt(image[:, :16], Corruption("fog", 1), 0, 0)
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    corruptions._library.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'hf-reinforce\[robustness\]'"):
        corrupt(image, Corruption("fog", 1), 0, 0)
    corruptions._library.cache_clear()
