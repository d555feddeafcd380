"""Images with label maps, for semantic segmentation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset, Features, Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_reinforce import images
from hf_reinforce.transfer.samples import TransferDataset

IGNORE = 255
"""Pixels with this value count neither in the loss nor in the metric."""


def read_mask_folder(image_folder: str | Path, mask_folder: str | Path) -> Dataset:
    """Two folders as a dataset with the columns `image` and `annotation`; files belong together by their names."""
    pictures, masks = (
        {path.relative_to(folder).with_suffix("").as_posix(): str(path) for path in sorted(folder.rglob("*.*"))}
        for folder in (Path(image_folder), Path(mask_folder))
    )
    lonely = sorted(set(pictures) - set(masks))
    if not pictures or lonely:
        raise ValueError(
            f"Expected in {mask_folder} one mask of the same name for each image in {image_folder}; {len(lonely)} of "
            f"{len(pictures)} images have none, such as {', '.join(lonely[:2]) or 'no image at all'}."
        )
    columns = {"image": list(pictures.values()), "annotation": [masks[name] for name in pictures]}
    return Dataset.from_dict(columns, features=Features({"image": Image(decode=False), "annotation": Image()}))


def training_crop(size: int) -> list[v2.Transform]:
    """Transforms that resize, crop and flip an image and its mask.

    The shorter side becomes 0.5 to 1.5 times `size` pixels; beyond the edges the crop is black and `IGNORE`.
    """
    return [
        v2.RandomResize(max(1, size // 2), size + size // 2 + 1),
        v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORE}),
        v2.RandomHorizontalFlip(),
    ]


class SegmentationDataset(TransferDataset):
    """Images with label maps.

    A sample has `images`, uint8 [3, H, W], and `targets`, uint8 [H, W] with classes and `IGNORE`. Training samples are
    crops, see `training_crop`; otherwise images come as they are.

    Args:
        rows: a map-style dataset with a column of images and one of masks of one channel, whose values are classes.
        num_classes: classes, in [1, 255).
        image_size: side of a training crop in pixels.
        train: crop and flip, with `seed`.
        reduce_labels: value 0 is no class but `IGNORE`, and the others count from 1, as in ADE20K.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        num_classes: int,
        image_size: int = 512,
        train: bool = False,
        seed: int = 0,
        image_column: str = "image",
        mask_column: str = "annotation",
        reduce_labels: bool = False,
    ) -> None:
        self._columns = (image_column, mask_column)
        found = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
        if missing := [column for column in self._columns if column not in found]:
            raise ValueError(
                f"The dataset has no column {missing[0]!r} of images, but {', '.join(found) or 'none'} among "
                f"{', '.join(rows.features)}; name them with --image_column_name and --mask_column_name."
            )
        if not len(rows):
            raise ValueError("The split has no rows; choose another one.")
        rows = rows.select_columns(list(self._columns))
        for column in self._columns:
            rows = rows.cast_column(column, Image(decode=False))
        super().__init__(rows, training_crop(image_size) if train else [], seed)
        self._num_classes, self._reduce_labels = num_classes, reduce_labels

    def read(self, values: Mapping[str, Any], row: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """The image of a row, and its mask."""
        encoded, encoded_mask = (images.read_encoded(values[column]) for column in self._columns)
        image = images.decode(encoded)
        with images.opened(encoded_mask) as opened:
            bands, mask = opened.getbands(), np.asarray(opened).astype(np.int64)
        if bands not in (("L",), ("P",), ("1",), ("I",), ("I;16",)):
            raise ValueError(
                f"the mask has the channels {''.join(bands)}; expected one channel with the classes, not colours. "
                "Convert it to a palette or grayscale PNG."
            )
        if image.shape[1:] != mask.shape:
            sizes = ["x".join(map(str, reversed(shape))) for shape in (image.shape[1:], mask.shape)]
            raise ValueError(f"the image has {sizes[0]} pixels and its mask {sizes[1]}; give one mask value a pixel.")
        if self._reduce_labels:
            mask = np.where(mask == 0, IGNORE, mask - (mask != IGNORE))
        wrong = (mask < 0) | ((mask >= self._num_classes) & (mask != IGNORE))
        if wrong.any():
            raise ValueError(
                f"the mask holds the class {int(mask[wrong][0])}, but there are {self._num_classes} classes, counted "
                f"from 0 ({IGNORE} is ignored); give another --num_labels, or --reduce_labels if 0 is no class."
            )
        return tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(mask.astype(np.uint8)))
