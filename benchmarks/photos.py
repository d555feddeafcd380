"""The photos that the benchmarks read: of ImageNet's own size, of a dataset by Hub id, of a folder, or generated."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from numpy.typing import NDArray
from PIL import Image as PILImage

from hf_reinforce.local_copies import resolve
from hf_reinforce.sources.image_source import find_columns

SAMPLES = "imagenet1k_samples256"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def load_photos(data: str, images: int, cache: Path) -> tuple[Dataset, str]:
    """Photos as a memory-mapped dataset with the columns `image`, not decoded, and `label`, of 1,000 classes.

    Args:
        data: Hub id or folder; `generated`; or `enlarged`: those of `imagenet1k_samples256`, as large as ImageNet's
            own photos, see `_enlarged`. Without a local copy of that one, photos are generated.
        images: the first so many; if there are fewer, all.
        cache: where they are kept.

    Returns:
        The photos, and in words which they are.
    """
    enlarged = data == "enlarged"
    data = SAMPLES if enlarged else data
    path = resolve(data)
    if data == "generated" or (data == SAMPLES and not Path(path).exists()):
        return generated_photos(images, cache), f"{images} generated photos of 468x401 pixels and 110 KB, seed 0"
    files = [file for file in sorted(Path(path).rglob("*")) if file.suffix.lower() in SUFFIXES]
    if files:
        photos = _saved([file.read_bytes() for file in files[:images]], cache)
        return photos, f"{len(photos)} photos of {Path(data).name}"
    found: Any = load_dataset(path)
    split = "train" if "train" in found else next(iter(found))
    column, _ = find_columns(found[split].features, label_column="")
    rows = found[split].select(range(min(images, len(found[split])))).cast_column(column, Image(decode=False))
    photos = _saved([item["bytes"] for item in rows[column]], cache, _enlarged if enlarged else None)
    size = ", enlarged to 468x401 pixels and 110 KB" if enlarged else ""
    return photos, f"{len(photos)} photos of {data}, split {split}{size}"


def generated_photos(images: int, cache: Path, sides: tuple[int, int, int] = (500, 333, 418)) -> Dataset:
    """JPEG files of noise at all scales, whose mean size in pixels and in bytes is that of ImageNet's photos."""
    return _saved([_generated(seed, *sides) for seed in range(images)], cache)


def _generated(seed: int, longer: int, least: int, most: int) -> bytes:
    rng = np.random.default_rng(seed)
    width, height = (longer, int(rng.integers(least, most)))[:: 1 if rng.random() < 0.7 else -1]
    pixels = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((3, 60), (12, 30), (48, 22), (200, 40)):
        coarse = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            plane = PILImage.fromarray(coarse[..., channel]).resize((width, height), PILImage.Resampling.BICUBIC)
            pixels[..., channel] += np.asarray(plane)
    return _jpeg(pixels + 128, 90)


def _jpeg(pixels: NDArray[np.float32], quality: int) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _enlarged(photo: bytes, seed: int) -> bytes:
    """A photo with the pixels and bytes of ImageNet's: the longer side enlarged to 500, with a camera's grain.

    Means of the 1,000 photos: 466x403 pixels and 109 KB, where ImageNet has 468x401 and 110 KB. Without grain they
    would be smooth, and only a quality that nobody uses would make as many bytes. So made, they take as long to decode
    as natural photos of so many pixels and bytes do: within 2 %, fitted over Caltech-101 and the photos as they are.
    """
    with PILImage.open(io.BytesIO(photo)) as opened:
        image = opened.convert("RGB")
    scale = 500 / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), PILImage.Resampling.LANCZOS)
    pixels = np.asarray(image, dtype=np.float32)
    grain = np.random.default_rng(seed).normal(0, 9, (*pixels.shape[:2], 1)).astype(np.float32)
    return _jpeg(pixels + grain, 95)


def _saved(encoded: list[bytes], cache: Path, change: Callable[[bytes, int], bytes] | None = None) -> Dataset:
    """The photos with made-up labels, written once and opened from the disk, so that processes share them.

    `change` makes another photo of each, with its position as a seed.
    """
    key = xxhash.xxh3_64_hexdigest(b"".join(encoded))
    path = cache / f"photos-{key}{'' if change is None else change.__name__}.parquet"
    if not path.exists():
        encoded = encoded if change is None else [change(photo, seed) for seed, photo in enumerate(encoded)]
        names = ClassLabel(names=[f"class {index:03d}" for index in range(1000)])
        images = [{"bytes": photo, "path": None} for photo in encoded]
        rows = {"image": images, "label": [row % 1000 for row in range(len(images))]}
        path.parent.mkdir(parents=True, exist_ok=True)
        features = Features({"image": Image(decode=False), "label": names})
        Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return Dataset.from_parquet(str(path), cache_dir=str(cache / "arrow"))


def photos_key(photos: Dataset) -> str:
    """Names what is made from these photos and kept: another one for other photos."""
    return xxhash.xxh3_64_hexdigest(b"".join(item["image"]["bytes"] for item in photos))


def image_folder(photos: Dataset, folder: Path) -> Path:
    """The photos as files, one folder for each class, as torchvision's ImageFolder reads them."""
    for row, item in enumerate(photos):
        file = folder / f"{item['label']:04d}" / f"{row:06d}.jpg"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(item["image"]["bytes"])
    return folder
