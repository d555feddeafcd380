"""The format of the original implementation (apple/ml-dr): one pickle for each image with all its records.

Written and read as there, to compare with; `hf_reinforce.importers.ml_dr` imports it without unpickling.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets.folder import default_loader
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op  # as the original does

from hf_reinforce.augmentations.rand_augment import OPERATIONS

Record = dict[str, Any]


def to_record(params: Mapping[str, Any], probs: list[float], labels: list[int]) -> Record:
    """One reinforcement in the compressed form of the published archives: values by position, for `rrc`, `randaug`."""
    box = lambda field: tuple(params[field][key] for key in ("top", "left", "height", "width"))
    values: list[Any] = [box("crop"), bool(params["hflip"])]
    if "rand_augment" in params:
        values.append([(step["op"], step["magnitude"]) for step in params["rand_augment"]])
        values.append(None if params["erase"] is None else box("erase"))
    return {"params": values, "prob": (probs, labels)}


def write_record(folder: Path, index: int, records: list[Record]) -> None:
    """The file of one image."""
    torch.save((index, records), folder / f"{index}.pth.tar", pickle_protocol=4)


def read_record(folder: Path, index: int) -> list[Record]:
    """All records of one image: there is no way to read only one of them."""
    _, records = torch.load(folder / f"{index}.pth.tar", weights_only=False)
    return records


class OriginalDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Replays records as the original does: PIL operations, a float image, a dense target for each sample."""

    def __init__(self, files: Sequence[str], folder: Path, image_size: int, num_classes: int = 1000) -> None:
        self.files, self.folder, self.image_size, self.num_classes = files, folder, image_size, num_classes

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        record = random.choice(read_record(self.folder, index))
        crop, flip, *rest = record["params"]
        image = F.resized_crop(default_loader(self.files[index]), *crop, [self.image_size, self.image_size])
        if flip:
            image = F.hflip(image)
        for op, magnitude in rest[0] if rest else ():
            image = _apply_op(image, OPERATIONS[op], magnitude, InterpolationMode.NEAREST, None)
        pixels: Tensor = F.to_tensor(image)
        if rest and rest[1] is not None:
            pixels = F.erase(pixels, *rest[1], v=torch.zeros(()), inplace=True)
        return pixels, self._dense(*record["prob"])

    def _dense(self, probs: list[float], labels: list[int]) -> Tensor:
        """`densify: smooth` of the original: the missing mass spread evenly over the other classes."""
        rest = (1.0 - sum(probs)) / (self.num_classes - len(probs))
        dense = torch.full((self.num_classes,), rest)
        dense[labels] = torch.tensor(probs)
        return dense
