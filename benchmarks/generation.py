"""Generation: a teacher that looks at N views of every photo."""

import os
from functools import partial
from unittest.mock import patch

import timm
import torch
from datasets import concatenate_datasets
from torchvision import transforms as T
from torchvision.datasets.folder import default_loader

from benchmarks.loader import photo_files, torchvision_transform
from benchmarks.measure import Measure, Row, Settings, faster, in_own_process, interleave, timed
from benchmarks.opening import status
from benchmarks.records import encoded_photos, generate, made_up_teacher
from hf_reinforce import AugmentationPolicy, Teacher, images, load_policy, load_teacher
from hf_reinforce.models.preprocessing import Preprocessing


def random_teacher(architecture: str, settings: Settings) -> Teacher:
    """A teacher with random weights: what it costs does not depend on them."""
    torch.manual_seed(0)
    network = timm.create_model(architecture, num_classes=1000).eval()
    return load_teacher(network, preprocessing=Preprocessing(settings.image_size)).to(settings.device)


def generation(settings: Settings) -> list[Row]:
    """Wall clock of `reinforce`, `randaug`, N = 16, against the teacher's forward pass alone. Medians in ms a view.

    The forward pass looks at ready uint8 batches of the same size and number, on the same device.
    """
    rows = []
    for architecture, count, target in (("resnet50", 32, 0.95), ("mobilenetv3_small_100", 256, 0.90)):
        count, num_samples = min(settings.pick(count, 4), len(settings.photos)), settings.pick(16, 2)
        photos, policy = settings.photos.select(range(count)), load_policy("randaug", settings.image_size)
        teacher = random_teacher(settings.pick(architecture, "test_resnet"), settings)
        batch = _views(encoded_photos(photos, 64), policy).to(settings.device)
        batches = count * num_samples // len(batch)

        folder = settings.cache / "generated"
        options = {"num_samples": num_samples, "device": settings.device}
        ours = partial(generate, photos, teacher, policy, folder, **options)
        variants = {
            "reinforce": timed(ours, count * num_samples),
            "forward pass": timed(partial(_forward, teacher, batch, batches), batches * len(batch)),
        }
        medians = interleave(variants, settings.pick(3, 1))
        name, against = f"generation, N = 16, {architecture}", "the teacher's forward pass"
        rows.append(faster(name, against, medians, "reinforce", target, other="forward pass"))
    return rows


def _forward(teacher: Teacher, batch: torch.Tensor, batches: int) -> None:
    for _ in range(batches):
        teacher(batch).cpu()


def _views(encoded: list[bytes], policy: AugmentationPolicy) -> torch.Tensor:
    views = []
    for row, photo in enumerate(encoded):
        image = images.decode(photo)
        views.append(policy.apply(image, policy.sample(0, row, 0, *image.shape[1:])))
    return torch.stack(views)


def augmentation(settings: Settings) -> list[Row]:
    """Views for generation, N = 16: the photo decoded once or for each view, one thread. Medians in ms a view.

    Both run the same operations. Beside them what one would write with torchvision: PIL and its transforms.
    """
    num_samples, encoded = settings.pick(16, 2), encoded_photos(settings.photos, settings.pick(64, 4))
    files, views, rows = photo_files(settings)[: len(encoded)], len(encoded) * num_samples, []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("rrc", "randaug"):
        policy, against = load_policy(name, settings.image_size), "decoding for each view"
        transform = torchvision_transform(settings, name, T.PILToTensor())
        variants = {
            "decoding once": partial(_augment, encoded, policy, num_samples, False),
            against: partial(_augment, encoded, policy, num_samples, True),
            "torchvision": lambda files=files * num_samples, transform=transform: [
                transform(default_loader(file)) for file in files
            ],
        }
        medians = interleave({key: timed(run, views) for key, run in variants.items()}, settings.pick(3, 1))
        rows.append(faster(f"augmentation for generation, {name}", against, medians, "decoding once", 2.5))
    torch.set_num_threads(threads)
    return rows


def _augment(encoded: list[bytes], policy: AugmentationPolicy, num_samples: int, decode_each: bool) -> None:
    for row, photo in enumerate(encoded):
        image = images.decode(photo)
        for slot in range(num_samples):
            if decode_each and slot:
                image = images.decode(photo)
            policy.apply(image, policy.sample(0, row, slot, *image.shape[1:]))


def memory(settings: Settings) -> list[Row]:
    """Peak memory of `reinforce` in a fresh process, by number of photos. Medians in MB of resident memory.

    Shards of 512 rows, so that even the fewer photos fill several: a shard is what is in memory as a whole.
    """
    counts = settings.pick((1024, 4096), (2, 6))
    medians = {}
    for count in counts:
        with patch.dict(os.environ):
            for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):  # they keep what was freed
                os.environ.pop(name, None)
            with in_own_process(settings, None, peak_memory, settings, count) as measure:
                medians[f"{count} photos"] = measure()
    few, many = medians.values()
    against = f"{counts[1] // counts[0]} times fewer photos"
    return [Row("peak memory of generation", against, many / few, 1.1, medians, at_most=True)]


def peak_memory(settings: Settings, count: int) -> Measure:
    """Measures the most that this process ever had in memory, after generating with so many photos, in MB."""
    photos = settings.photos
    photos = concatenate_datasets([photos] * -(-count // len(photos))).select(range(count))
    folder = settings.cache / f"memory-{count}"
    teacher, policy = made_up_teacher(settings.image_size), load_policy("rrc", settings.image_size)

    def measure() -> float:
        generate(photos, teacher, policy, folder, num_samples=2, shard_size=512)
        return status("VmHWM")

    return measure
