"""Images with label maps, for semantic segmentation."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Features, Image
from torch import Tensor
from torch.nn import functional as F

from hf_reinforce import images
from hf_reinforce.transfer.positions import generator_of

IGNORE = 255
"""Pixels with this value count neither in the loss nor in the metric."""

SCALES = (0.5, 1.5)
"""Shorter side of a training image, in multiples of the crop, before it is cropped."""


def read_mask_folder(image_folder: str | Path, mask_folder: str | Path) -> Dataset:
    """Two folders as a data set with the columns `image` and `annotation`; files belong together by their names.

    Raises:
        ValueError: if an image has no mask, or there are none.
    """
    folders = [Path(image_folder), Path(mask_folder)]
    paths = [
        {path.relative_to(folder).with_suffix("").as_posix(): str(path) for path in sorted(folder.rglob("*.*"))}
        for folder in folders
    ]
    if not paths[0] or set(paths[0]) - set(paths[1]):
        lonely = sorted(set(paths[0]) - set(paths[1]))
        found = f"{len(lonely)} of {len(paths[0])} images, such as {lonely[0]!r}," if lonely else "no image"
        raise ValueError(
            f"Expected in {mask_folder} one mask for each image in {image_folder}, of the same name; {found} "
            f"{'have none' if lonely else 'is there'}."
        )
    names = list(paths[0])
    columns = {"image": [paths[0][name] for name in names], "annotation": [paths[1][name] for name in names]}
    return Dataset.from_dict(columns, features=Features({"image": Image(decode=False), "annotation": Image()}))


class SegmentationDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Images with label maps.

    Training samples are resized so that the shorter side is 0.5 to 1.5 times `image_size`, cropped to `image_size`
    (black and `IGNORE` beyond the edges) and flipped at random. Otherwise images come as they are.

    Args:
        rows: a map-style data set with a column of images and one of masks.
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
        for column in (image_column, mask_column):
            if column not in found:
                raise ValueError(
                    f"The data set has no column {column!r} of images; of its columns {list(rows.features)}, "
                    f"{found or 'none'} hold images. Name them with --image_column_name and --mask_column_name."
                )
        if not len(rows):
            raise ValueError("The split has no rows; choose another one.")
        self._columns = (image_column, mask_column)
        for column in self._columns:
            rows = rows.cast_column(column, Image(decode=False))
        self._rows, self.num_classes, self.image_size = (
            rows.select_columns(list(self._columns)),
            num_classes,
            image_size,
        )
        self.train, self.seed, self.reduce_labels = train, seed, reduce_labels

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One sample; index `epoch * len(self) + row`.

        Returns:
            `images`: uint8 [3, H, W]. `targets`: uint8 [H, W], classes and `IGNORE`.

        Raises:
            ValueError: if image and mask differ in size, or the mask holds other values.
        """
        row = self._rows[index % len(self)]
        try:
            image, mask = (images.read_encoded(row[column]) for column in self._columns)
            sample = images.decode(image), self._mask(mask)
            if sample[0].shape[1:] != sample[1].shape:
                (height, width), (mask_height, mask_width) = sample[0].shape[1:], sample[1].shape
                raise ValueError(
                    f"the image has {width}x{height} pixels and its mask {mask_width}x{mask_height}; a mask must "
                    "have a value for each pixel of its image."
                )
        except ValueError as error:
            raise ValueError(f"Row {index % len(self)}: {error}") from error
        if self.train:
            sample = random_crop(*sample, self.image_size, generator_of(self.seed, index))
        return {"images": sample[0], "targets": sample[1]}

    def _mask(self, encoded: images.Encoded) -> Tensor:
        with PIL.Image.open(io.BytesIO(encoded)) as opened:
            if opened.getbands() not in (("L",), ("P",), ("1",), ("I",), ("I;16",)):
                raise ValueError(
                    f"the mask has the channels {''.join(opened.getbands())}; expected one channel with the classes, "
                    "not colours. Convert it to a palette or grayscale PNG."
                )
            values = np.asarray(opened).astype(np.int64)
        if self.reduce_labels:
            values = np.where(values == 0, IGNORE, values - (values != IGNORE))
        wrong = (values < 0) | ((values >= self.num_classes) & (values != IGNORE))
        if wrong.any():
            raise ValueError(
                f"the mask holds the class {int(values[wrong][0])}, but there are {self.num_classes} classes, counted "
                f"from 0 ({IGNORE} is ignored); give another --num_labels, or --reduce_labels if 0 is no class."
            )
        return torch.from_numpy(values.astype(np.uint8))


def random_crop(image: Tensor, mask: Tensor, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A resized, cropped and perhaps flipped part of an image and its mask.

    Args:
        image: uint8 [3, H, W].
        mask: uint8 [H, W].
        size: side of the crop in pixels.
        rng: random numbers.

    Returns:
        uint8 [3, size, size] and uint8 [size, size]; beyond the image they are black and `IGNORE`.
    """
    factor = size * rng.uniform(*SCALES) / min(mask.shape)
    height, width = (max(1, round(side * factor)) for side in mask.shape)
    top, left = (
        int(rng.integers(min(0, side - size), max(0, side - size), endpoint=True)) for side in (height, width)
    )
    image = images.resize(image, height, width)
    mask = F.interpolate(mask[None, None], (height, width), mode="nearest-exact")[0, 0]
    box = {"top": top, "left": left, "height": size, "width": size}
    image = images.crop(image, box)
    # `crop` fills with 0, so the mask is cropped as its complement to 255.
    mask = IGNORE - images.crop((IGNORE - mask).expand(3, -1, -1), box)[0]
    return (image.flip(-1), mask.flip(-1)) if rng.random() < 0.5 else (image, mask)


def collate(samples: Sequence[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    """Batches samples as lists, since images to be evaluated differ in size."""
    return {name: [sample[name] for sample in samples] for name in samples[0]}
