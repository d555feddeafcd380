"""Small images that are decoded once, into shared memory, against the loader that decodes them at every epoch."""

import io

from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from benchmarks.loader import epoch
from benchmarks.measure import Row, Settings, interleave
from benchmarks.photos import photos_key
from benchmarks.records import generate, made_up_teacher
from hf_reinforce import ReinforcedDataset, ReinforcementConfig, load_policy, load_reinforced
from hf_reinforce.replay.sampler import EpochSampler

SIDE, POLICY = 32, "small_randaug"


def cached(settings: Settings) -> list[Row]:
    """Epochs over images of 32 pixels, in ms a sample."""
    dataset, other = small_images(settings), small_images(settings)
    other.cache_images()
    variants = {
        "loader": epoch(settings, dataset, sampler=EpochSampler(dataset), collate_fn=dataset.collate),
        "cached images": epoch(settings, other, sampler=EpochSampler(other), collate_fn=other.collate),
    }
    medians = interleave(variants, settings.repetitions)
    ratio = medians["loader"] / medians["cached images"]
    return [Row(f"cached images, {POLICY}, {SIDE} px", "the loader", ratio, 1.0, medians)]


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
