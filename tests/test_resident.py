"""Images on the device: the same views as one by one, and a refusal wherever they would not be."""

import functools

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from tiny import TinyNet, reinforced_rows, tiny_dataset, tiny_teacher

from hf_reinforce import (
    AugmentedDataset,
    ImageSource,
    KDTrainer,
    KDTrainingArguments,
    ReinforcedDataset,
    ReinforcedStream,
    images,
    load_policy,
)
from hf_reinforce.augmentations import batched
from hf_reinforce.images import ImageError
from hf_reinforce.replay.resident import ResidentImages
from hf_reinforce.replay.views import EpochSampler
from hf_reinforce.store.pixel_contract import PixelMismatchError

ROWS, N, C, SIZE = 70, 3, 5, 16
POLICIES = ("small_crop", "small_randaug", "small_mixing_randaug")


@pytest.fixture(scope="module")
def source():
    return tiny_dataset(ROWS, size_range=(20, 20), labels=C)


@pytest.fixture(scope="module")
def dataset(source, tmp_path_factory):
    """`dataset(policy, **options)`: a ReinforcedDataset; with `fresh=True` new augmentations of its images."""

    @functools.cache
    def stored(policy):
        folder = tmp_path_factory.mktemp("plus")
        return reinforced_rows(source, tiny_teacher(C), load_policy(policy, SIZE), folder, num_samples=N, top_k=C)

    def dataset(policy="small_randaug", fresh=False, **options):
        if fresh:
            return AugmentedDataset(ImageSource.of(source), load_policy(policy, SIZE))
        return ReinforcedDataset(*stored(policy), source=source, **options)

    return dataset


def batches(dataset, epoch, size=13):
    sampler = EpochSampler(dataset, seed=4)
    sampler.set_epoch(epoch)
    indices = np.array(list(sampler))
    return [dataset.collate(dataset.__getitems__(part.tolist())) for part in np.array_split(indices, ROWS // size)]


@pytest.mark.parametrize("options", [{}, {"plain_fraction": 0.5}, {"fresh": True}], ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_batches_are_those_of_the_data_set(dataset, policy, options):
    ordinary = dataset(policy, **options)
    resident, without = ResidentImages(ordinary, "cpu"), ordinary.without_pixels()
    for epoch in (0, 4):
        for expected, batch in zip(batches(ordinary, epoch), batches(without, epoch), strict=True):
            views = resident.views(batch.pop("positions"), batch.pop("view_params"))
            assert torch.equal(views, expected.pop("pixel_values"))
            assert batch.keys() == expected.keys()
            assert all(torch.equal(batch[name], value) for name, value in expected.items())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("policy", POLICIES[1:])
@pytest.mark.parametrize("method", ["reinforced", "plain", "online"])
def test_training_ends_with_the_same_weights(dataset, tmp_path, method, policy, workers):
    students = []
    for images_on_device in (False, True):
        student = TinyNet(C, seed=1)
        args = KDTrainingArguments(
            output_dir=str(tmp_path),
            method=method,
            images_on_device=images_on_device,
            use_cpu=True,
            num_train_epochs=2,
            per_device_train_batch_size=16,
            dataloader_num_workers=workers,
            learning_rate=0.02,
            save_strategy="no",
            disable_tqdm=True,
        )
        train = dataset(policy, fresh=method != "reinforced")
        KDTrainer(student, args, train, teacher=tiny_teacher(C) if method == "online" else None).train()
        assert train[0]["pixel_values"].shape == (3, SIZE, SIZE)
        students.append(torch.cat([value.detach().flatten() for value in student.parameters()]))
    assert torch.equal(*students)
    assert not torch.equal(students[0], torch.cat([value.flatten() for value in TinyNet(C, seed=1).parameters()]))


def test_streams_are_refused(dataset, tmp_path):
    stream = object.__new__(ReinforcedStream)
    args = KDTrainingArguments(output_dir=str(tmp_path), images_on_device=True, use_cpu=True)
    with pytest.raises(ValueError, match="A stream has no images to keep; leave out images_on_device"):
        KDTrainer(TinyNet(C, seed=1), args, stream)


def test_the_data_set_itself_still_makes_pixels(dataset):
    ordinary = dataset()
    before = ordinary[3]["pixel_values"]
    assert ordinary.without_pixels()[3]["pixel_values"].position == 3
    assert torch.equal(ordinary[3]["pixel_values"], before)


def test_every_image_is_checked(dataset, source):
    other = concatenate_datasets([source.select(range(ROWS - 1)), source.select([0])])
    ordinary = dataset()
    ordinary.source = ImageSource.of(other)
    with pytest.raises(ValueError, match=f"Row {ROWS - 1} .* another image"):
        ResidentImages(ordinary, "cpu")


def test_images_of_different_sizes_are_refused():
    rows = concatenate_datasets([tiny_dataset(3, (20, 20)), tiny_dataset(2, (20, 60))])
    dataset = AugmentedDataset(ImageSource.of(rows), load_policy("small_crop", SIZE))
    with pytest.raises(ImageError, match=r"Row 3 has .* the first image 16x16, .*leave out images_on_device"):
        ResidentImages(dataset, "cpu")


def test_a_policy_for_one_image_at_a_time_is_refused(source):
    dataset = AugmentedDataset(ImageSource.of(source), load_policy("rrc", SIZE))
    with pytest.raises(ValueError, match=r"'rrc' cannot augment whole batches.*random_resized_crop.*images_on_device"):
        ResidentImages(dataset, "cpu")


def test_another_size_is_refused(dataset):
    with pytest.raises(ValueError, match="replayed at 16 pixels, the policy's own size, not 24; use --input_size"):
        ResidentImages(dataset(image_size=24), "cpu")


@pytest.mark.parametrize("levels", [1, 2])
def test_a_device_that_makes_other_pixels_is_noticed(dataset, monkeypatch, levels):
    right = batched.window
    monkeypatch.setattr(batched, "window", lambda *args: (right(*args).int() + levels).clamp(0, 255).byte())
    if levels == 1:
        ResidentImages(dataset("small_crop"), "cpu")
    else:
        with pytest.raises(PixelMismatchError, match="made on cpu is off by 2 levels; leave out images_on_device"):
            ResidentImages(dataset("small_crop"), "cpu")


@pytest.mark.parametrize("row", [0, 3])
def test_an_image_that_cannot_be_decoded_is_named(source, row):
    broken = source.select(range(5)).map(
        lambda item, i: {"image": {"bytes": b"none", "path": None}} if i == row else item, with_indices=True
    )
    dataset = AugmentedDataset(ImageSource.of(broken.cast(source.features)), load_policy("small_crop", SIZE))
    with pytest.raises(images.ImageError, match=f"^Row {row}: "):
        ResidentImages(dataset, "cpu")
