"""A small dataset of generated images and a small seeded teacher, for the tests that need a whole run."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from PIL import Image as PILImage
from torch import Tensor, nn

from hf_reinforce import AugmentationPolicy, ReinforcementConfig, reinforce
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.models.teachers import Teacher, load_teacher
from hf_reinforce.targets.class_distribution import Targets

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "kiwi", "lynx")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.3, 0.35)


def tiny_image(seed: int, size_range: tuple[int, int] = (24, 48), label: int = 0) -> PILImage.Image:
    """A smooth RGB picture whose sides lie in `size_range` and whose colours lean to the label's."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(size_range[0], size_range[1], 2, endpoint=True)
    coarse = rng.integers(0, 256, (5, 6, 3)).astype(np.float32)
    coarse[..., label % 3] = coarse[..., label % 3] / 2 + 20 * label
    picture = PILImage.fromarray(coarse.clip(0, 255).astype(np.uint8))
    return picture.resize((int(width), int(height)), PILImage.Resampling.BICUBIC)


def encode_image(image: PILImage.Image, format: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def tiny_dataset(
    num_rows: int = 12,
    size_range: tuple[int, int] = (24, 48),
    labels: int = 5,
    formats: Sequence[str] = ("PNG", "JPEG", "WEBP"),
) -> Dataset:
    """A dataset of encoded images, `image` and `label` (a ClassLabel).

    Args:
        num_rows: rows; row `i` has the label `i % labels`, so it depends on nothing else and neither does its image.
        size_range: smallest and largest side of an image in pixels.
        labels: classes, at most 12; 0 leaves out the column.
        formats: Pillow's names of file formats, taken in turn.
    """
    columns: dict[str, list[object]] = {"image": []}
    for row in range(num_rows):
        image = tiny_image(row, size_range, row % labels if labels else 0)
        columns["image"].append({"bytes": encode_image(image, formats[row % len(formats)]), "path": None})
    features: dict[str, object] = {"image": Image()}
    if labels:
        columns["label"] = [row % labels for row in range(num_rows)]
        features["label"] = ClassLabel(names=list(NAMES[:labels]))
    return Dataset.from_dict(columns, features=Features(features))


class TinyNet(nn.Module):
    """Two convolutions and a linear layer; sees where things are, and answers with neither certainty nor chance."""

    def __init__(self, num_classes: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(8, 12, 3, stride=2, padding=1),
                nn.GELU(),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
            )
            self.head = nn.Linear(48, num_classes)
            self.head.weight.data.normal_(std=1.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def tiny_teacher(num_classes: int = 5, image_size: int = 16, seed: int = 0) -> Teacher:
    """A teacher of one small network with seeded weights, that answers to views resized to `image_size`."""
    return load_teacher(TinyNet(num_classes, seed), preprocessing=Preprocessing(image_size, MEAN, STD, "bilinear"))


def reinforced_rows(
    source: Dataset, teacher: Teacher, policy: AugmentationPolicy, folder: Path, **options: Any
) -> tuple[Dataset, ReinforcementConfig]:
    """Reinforces into a folder: the rows and the configuration that `ReinforcedDataset` takes."""
    path = reinforce(source, teacher, policy, folder, num_workers=1, **options)
    return stored_rows(path), ReinforcementConfig.load(path)


def stored_rows(folder: Path, **options: Any) -> Dataset:
    """The rows of a configuration, whose repository has no card, which `load_dataset(repository, name)` needs."""
    split = ReinforcementConfig.load(folder).split
    files = sorted(map(str, folder.glob(f"{split}-*.parquet")))
    return load_dataset("parquet", data_files={split: files}, split=split, **options)


def densify(targets: Targets, num_classes: int) -> Tensor:
    """The distribution that stored targets stand for, the tail spread evenly: log-probabilities float32 [B, C]."""
    masses = (
        torch.cat([targets.value, targets.tail.unsqueeze(-1)], -1).double().clamp_min(-1e4).log_softmax(-1).float()
    )
    rest = max(num_classes - targets.label.shape[-1], 1)
    fill = masses[:, -1:] - float(torch.tensor(rest).log())
    return fill.repeat(1, num_classes).scatter(-1, targets.label, masses[:, :-1])
