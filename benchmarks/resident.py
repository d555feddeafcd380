"""Small images in the device's memory, augmented as whole batches, against the loader that makes every view."""

import io
from typing import Any

import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from benchmarks.loader import epoch
from benchmarks.measure import Row, Settings, interleave
from benchmarks.photos import photos_key
from benchmarks.records import generate, made_up_teacher
from hf_reinforce import ReinforcedDataset, ReinforcementConfig, load_policy, load_reinforced
from hf_reinforce.replay.resident import ResidentImages
from hf_reinforce.replay.views import EpochSampler

SIDE, POLICY = 32, "small_randaug"


def resident(settings: Settings) -> list[Row]:
    """Epochs over images of 32 pixels, in ms a sample: records, targets and views, until they are on the device."""
    dataset = small_images(settings)
    images, without = ResidentImages(dataset, settings.device), dataset.without_pixels()

    def views(batch: Any) -> None:
        images.views(batch["positions"], batch["view_params"])
        if settings.device == "cuda":
            torch.cuda.synchronize()

    variants = {
        "loader": epoch(settings, dataset, sampler=EpochSampler(dataset), collate_fn=dataset.collate),
        "images on the device": epoch(
            settings, without, views, sampler=EpochSampler(without), collate_fn=without.collate
        ),
    }
    medians = interleave(variants, settings.repetitions)
    ratio = medians["loader"] / medians["images on the device"]
    return [Row(f"images on the device, {POLICY}, {SIDE} px", "the loader", ratio, 1.0, medians)]


def small_images(settings: Settings) -> ReinforcedDataset:
    """Thumbnails of the photos as PNG files, reinforced by a teacher that costs nothing."""
    folder = settings.cache / f"thumbnails-{len(settings.photos)}-{photos_key(settings.photos)}"
    rows = [
        {"image": {"bytes": _thumbnail(photo["image"]["bytes"]), "path": None}, "label": photo["label"]}
        for photo in settings.photos
    ]
    thumbnails = Dataset.from_list(rows).cast_column("image", ImageFeature())
    if not (folder / POLICY).exists() or not ReinforcementConfig.load(folder / POLICY).complete:
        generate(thumbnails, made_up_teacher(SIDE), load_policy(POLICY, SIDE), folder, num_samples=4)
    return load_reinforced(str(folder), POLICY, source=thumbnails)


def _thumbnail(encoded: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encoded)).convert("RGB").resize((SIDE, SIDE)).save(buffer, "PNG")
    return buffer.getvalue()
