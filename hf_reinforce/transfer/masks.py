"""Images with label maps, for semantic segmentation."""

import io
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Features, Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_reinforce import images
from hf_reinforce.transfer.samples import TransferDataset

IGNORE = 255
"""Pixels with this value count neither in the loss nor in the metric."""


def read_mask_folder(image_folder: str | Path, mask_folder: str | Path) -> Dataset:
    """Two folders as a dataset with the columns `image` and `annotation`; files belong together by their names.

    Raises:
        ValueError: if an image has no mask, or there are none.
    """
    pictures, masks = (
        {path.relative_to(folder).with_suffix("").as_posix(): str(path) for path in sorted(folder.rglob("*.*"))}
        for folder in (Path(image_folder), Path(mask_folder))
    )
    lonely = sorted(set(pictures) - set(masks))
    if not pictures or lonely:
        found = f"{len(lonely)} of {len(pictures)} images, such as {lonely[0]!r}, have none" if lonely else "no image"
        raise ValueError(
            f"Expected in {mask_folder} one mask for each image in {image_folder}, of the same name; found: {found}."
        )
    columns = {"image": list(pictures.values()), "annotation": [masks[name] for name in pictures]}
    return Dataset.from_dict(columns, features=Features({"image": Image(decode=False), "annotation": Image()}))


def training_crop(size: int) -> list[v2.Transform]:
    """Transforms that resize, crop and flip an image and its mask.

    The shorter side becomes 0.5 to 1.5 times `size`; beyond the edges the crop is black and `IGNORE`.

    Args:
        size: side of the crop in pixels.
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
        rows: a map-style dataset with a column of images and one of masks.
        num_classes: classes, in [1, 255).
        image_size: side of a training crop in pixels.
        train: crop and flip.
        seed: of crops and flips.
        image_column: name of the image column.
        mask_column: name of the column of masks: images of one channel whose values are classes.
        reduce_labels: value 0 is no class but `IGNORE`, and the others count from 1, as in ADE20K.

    Raises:
        ValueError: if there are no such columns or no rows.
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
        found = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
        self._columns = (image_column, mask_column)
        for column in self._columns:
            if column not in found:
                raise ValueError(
                    f"The dataset has no column {column!r} of images; of its columns {list(rows.features)}, "
                    f"{found or 'none'} hold images. Name them with --image_column_name and --mask_column_name."
                )
            rows = rows.cast_column(column, Image(decode=False))
        if not len(rows):
            raise ValueError("The split has no rows; choose another one.")
        super().__init__(rows.select_columns(list(self._columns)), training_crop(image_size) if train else [], seed)
        self._num_classes, self._reduce_labels = num_classes, reduce_labels

    def read(self, row: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """The image of a row, and its mask.

        Raises:
            ValueError: if image and mask differ in size, or the mask holds other values.
        """
        values = self._rows[row]
        encoded, encoded_mask = (images.read_encoded(values[column]) for column in self._columns)
        image, mask = images.decode(encoded), self._mask(encoded_mask)
        if image.shape[1:] != mask.shape:
            (height, width), (mask_height, mask_width) = image.shape[1:], mask.shape
            raise ValueError(
                f"the image has {width}x{height} pixels and its mask {mask_width}x{mask_height}; a mask must have a "
                "value for each pixel of its image."
            )
        return tv_tensors.Image(image), tv_tensors.Mask(mask)

    def _mask(self, encoded: images.Encoded) -> Tensor:
        with PIL.Image.open(io.BytesIO(encoded)) as opened:
            if opened.getbands() not in (("L",), ("P",), ("1",), ("I",), ("I;16",)):
                raise ValueError(
                    f"the mask has the channels {''.join(opened.getbands())}; expected one channel with the classes, "
                    "not colours. Convert it to a palette or grayscale PNG."
                )
            values = np.asarray(opened).astype(np.int64)
        if self._reduce_labels:
            values = np.where(values == 0, IGNORE, values - (values != IGNORE))
        wrong = (values < 0) | ((values >= self._num_classes) & (values != IGNORE))
        if wrong.any():
            raise ValueError(
                f"the mask holds the class {int(values[wrong][0])}, but there are {self._num_classes} classes, "
                f"counted from 0 ({IGNORE} is ignored); give another --num_labels, or --reduce_labels if 0 is no "
                "class."
            )
        return torch.from_numpy(values.astype(np.uint8))
