"""What a run of `reinforce` will cost, measured on a few of its images before anything is spent."""

import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from datasets import ClassLabel, Dataset, Image
from numpy.typing import NDArray

from hf_reinforce import images, schema
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.generation.reinforcer import Reinforcer
from hf_reinforce.models.teachers import ClassMap, Teacher
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.sources.files import embed_files
from hf_reinforce.sources.image_source import prepare
from hf_reinforce.store.config import check_counts
from hf_reinforce.store.parquet import write_shard
from hf_reinforce.targets import Target

_SECONDS = 15.0  # that the measurement may take, about
_MOST_SAMPLES = 16
_DEVICES = (1, 8, 64)
_DESCRIPTION = 1_000_000  # bytes of the card, reinforcement.json and the pictures: 0.3 MB of icons to 1.7 MB of photos


@dataclass(frozen=True)
class Estimate:
    """The cost of a run.

    Attributes:
        policy: name of the policy.
        num_images: rows of the data set.
        num_samples: N, reinforcements per image.
        measured_views: views that were really made and answered.
        measured_seconds: how long that took, decoding included.
        teacher_seconds: how long the teacher alone takes for as many views that are ready.
        bytes_per_reinforcement: on disk, of the views that were measured.
        bytes_per_image: on disk beside them: the row's other columns, and the image where images are embedded.
        bytes_per_shard: on disk of each Parquet file, however few rows it has: its footer and dictionaries.
        arrow_bytes: of each reinforcement in the cache of `datasets`, which opens the Parquet files as Arrow.
        shard_size: rows per Parquet file.
        device: the teacher's.
    """

    policy: str
    num_images: int
    num_samples: int
    measured_views: int
    measured_seconds: float
    teacher_seconds: float
    bytes_per_reinforcement: float
    bytes_per_image: float
    bytes_per_shard: float
    arrow_bytes: float
    shard_size: int
    device: str

    @property
    def num_views(self) -> int:
        """Views that the teacher will see."""
        return self.num_images * self.num_samples

    @property
    def num_files(self) -> int:
        """Parquet files."""
        return math.ceil(self.num_images / self.shard_size)

    @property
    def num_bytes(self) -> float:
        """Size of the whole folder: the Parquet files, and the card with its pictures."""
        rows = self.num_views * self.bytes_per_reinforcement + self.num_images * self.bytes_per_image
        return rows + self.num_files * self.bytes_per_shard + _DESCRIPTION

    def hours(self, num_devices: int = 1) -> float:
        """Duration on devices like the one that was measured, each with as many CPU cores for itself."""
        return self.num_views * self.measured_seconds / self.measured_views / num_devices / 3600

    def __str__(self) -> str:
        speed, alone = self.measured_views / self.measured_seconds, self.measured_views / self.teacher_seconds
        hours = ", ".join(f"{_duration(self.hours(count))} on {count}" for count in _DEVICES)
        return (
            f"{self.num_images:,} images, policy {self.policy}, N = {self.num_samples}: {self.num_views:,} views\n"
            f"disk   about {_size(self.num_bytes)}: {self.bytes_per_reinforcement:.0f} bytes a reinforcement, "
            f"{_size(self.bytes_per_image)} an image, {_size(self.bytes_per_shard)} a shard, and "
            f"{_size(_DESCRIPTION)} of card and pictures\n"
            f"files  {self.num_files:,}; where they are opened, {_size(self.num_views * self.arrow_bytes)} in the "
            "cache of datasets\n"
            f"speed  {speed:,.0f} views/s on {self.device}, {100 * speed / alone:.0f} % of the "
            f"{alone:,.0f} views/s of the teacher alone "
            f"(measured on {self.measured_views:,} views in {self.measured_seconds:.1f} s)\n"
            f"time   {hours} devices like this one"
        )


def _duration(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"


def _size(count: float) -> str:
    power = min(int(math.log(max(count, 1), 1000)), 4)
    return f"{count / 1000**power:,.{1 if power else 0}f} {('bytes', 'KB', 'MB', 'GB', 'TB')[power]}"


def estimate(
    dataset: Dataset,
    teacher: Teacher,
    policy: AugmentationPolicy,
    *,
    num_samples: int,
    image_column: str | None = None,
    label_column: str | None = None,
    class_map: ClassMap | None = None,
    shard_size: int = 4096,
    embed_images: bool = False,
    on_error: str = "raise",
    num_workers: int = 2,
    batch_size: int = PARTNER_BLOCK,
    device: str | torch.device | None = None,
    num_images: int | None = None,
    **target_options: Any,
) -> Estimate:
    """Reinforces a few images, writes them to a temporary file, and works out what all of them will take.

    Takes the arguments of `reinforce`, and `num_images`: the rows of the whole, where `dataset` is only a few of them.
    Nothing is left on the disk.

    Raises:
        ValueError: as `reinforce`, for arguments that do not fit each other or the data set; if none of the few images
            can be decoded.
        ImageError: if one of them cannot be decoded, unless `on_error="skip"`.
    """
    check_counts(num_samples=num_samples, shard_size=shard_size, batch_size=batch_size)
    dataset, image_column, label_column = prepare(dataset, image_column, label_column)
    if not len(dataset):
        raise ValueError("The data set has no rows; there is nothing to reinforce.")
    feature = dataset.features[label_column] if label_column else None
    teacher = teacher.with_classes(feature.names if isinstance(feature, ClassLabel) else None, class_map)
    rows = np.linspace(0, len(dataset) - 1, min(PARTNER_BLOCK, len(dataset))).astype(np.int64)
    few = dataset.select(rows).cast_column(image_column, Image(decode=False))
    few = embed_files(few.with_format("arrow")[:], few.features, image_column)
    device = PartialState().device if device is None else torch.device(device)

    def run(samples: int) -> tuple[pa.Table, float]:
        reinforcer = Reinforcer(
            teacher,
            policy,
            samples,
            image_column=image_column,
            label_column=label_column,
            on_error=on_error,
            num_workers=num_workers,
            batch_size=batch_size,
            device=device,
            **target_options,
        )
        started = time.perf_counter()
        return reinforcer(few, range(len(few)), order=rows.tolist()), time.perf_counter() - started

    if not len(run(1)[0]):  # the first pass pays for what libraries do once
        raise ValueError(f"None of the {len(few)} images that were tried can be decoded.")
    _, one = run(1)
    samples = max(1, min(num_samples, _MOST_SAMPLES, int(_SECONDS / one)))
    table, seconds = run(samples)
    views = len(table) * samples
    half = len(table) // 2
    # The difference, because the first rows of a file pay for what there is once in it.
    targets = [teacher.target(**target_options)]
    lists = (schema.AUGMENTATION_PARAMS, *(target.column for target in targets))
    whole = _stored_bytes(table, targets)
    stored, beside, _ = (whole - _stored_bytes(table.slice(0, half), targets)) / (len(table) - half)
    encoded = _encoded_bytes(few.column(image_column).to_pylist()) if embed_images else 0.0
    return Estimate(
        policy=policy.name,
        num_images=len(dataset) if num_images is None else num_images,
        num_samples=num_samples,
        measured_views=views,
        measured_seconds=seconds,
        teacher_seconds=_teacher_seconds(teacher, policy.image_size, views, batch_size, torch.device(device)),
        bytes_per_reinforcement=float(stored) / samples,
        bytes_per_image=float(beside) + encoded,
        bytes_per_shard=float(whole.sum() - len(table) * (stored + beside)),
        arrow_bytes=sum(table.column(name).nbytes for name in lists) / views,
        shard_size=-(-shard_size // PARTNER_BLOCK) * PARTNER_BLOCK,
        device=_device_name(torch.device(device)),
    )


def _stored_bytes(table: pa.Table, targets: Sequence[Target]) -> NDArray[np.int64]:
    """Bytes that the reinforcements of a table, its other columns, and all else take in a shard: int64 [3].

    Dictionaries are of all else: few targets fill them almost as much as all targets of a shard.
    """
    sizes = np.zeros(3, dtype=np.int64)
    if not len(table):
        return sizes
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "shard.parquet"
        write_shard(shard, table, targets)
        group = pq.read_metadata(shard).row_group(0)
        sizes[2] = shard.stat().st_size
    for chunk in map(group.column, range(group.num_columns)):
        dictionary = chunk.data_page_offset - chunk.dictionary_page_offset if chunk.has_dictionary_page else 0
        lists = chunk.path_in_schema.split(".")[0] in (schema.AUGMENTATION_PARAMS, *(t.column for t in targets))
        sizes[0 if lists else 1] += chunk.total_compressed_size - dictionary
    sizes[2] -= sizes[:2].sum()
    return sizes


def _encoded_bytes(items: Sequence[dict[str, Any]]) -> float:
    """Mean size of the image files that can be read."""
    sizes = []
    for item in items:
        with suppress(images.ImageError):
            sizes.append(len(images.read_encoded(item)))
    return sum(sizes) / max(len(sizes), 1)


def _teacher_seconds(teacher: Teacher, image_size: int, views: int, batch_size: int, device: torch.device) -> float:
    """How long the teacher takes for so many views when it need not wait for any."""
    size = max(1, batch_size // PARTNER_BLOCK) * PARTNER_BLOCK
    ready = torch.zeros((min(size, views), 3, image_size, image_size), dtype=torch.uint8, device=device)
    teacher(ready).sum().item()
    started = time.perf_counter()
    for _ in range(max(1, views // len(ready))):
        teacher(ready).sum().item()
    passes = max(1, views // len(ready)) * len(ready)
    return (time.perf_counter() - started) * views / passes


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
