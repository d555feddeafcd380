"""Images with boxes, and masks where there are some, as torchvision's detectors want them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch
from datasets import ClassLabel, Image
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image, remove_small_boxes

from hf_reinforce import images
from hf_reinforce.sources.image_source import find_columns
from hf_reinforce.transfer.coco import segmentation_mask
from hf_reinforce.transfer.positions import generator_of

logger = logging.getLogger(__name__)

BOX_FORMATS = {"coco": "xywh", "pascal_voc": "xyxy"}
"""Name of a format -> torchvision's name of it."""

CATEGORY_FIELDS = ("category", "category_id", "label", "labels")

_OUTSIDE = 0.1  # share of boxes beyond the edges of their images from which the format is doubted


class DetectionDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Images with boxes.

    Boxes without area and boxes outside of their image are dropped, and counted in the log; images without boxes stay.

    Args:
        rows: a map-style data set with an image column and a column of objects: lists `bbox` and `category`, and
            where given `area`, `iscrowd`, `segmentation` (polygons, run-length encodings, or these as JSON).
        train: flip at random, leave out crowds.
        seed: of the flips.
        image_column: default: the only image column.
        objects_column: column of the objects.
        box_format: key of `BOX_FORMATS`.
        class_names: names of the categories, default those of the category's ClassLabel.
        masks: give masks, too.

    Attributes:
        class_names: names of the categories.
        dropped: number of boxes without area.

    Raises:
        ValueError: if there is no such column, there are no boxes, or masks are asked for that are not there.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        train: bool = False,
        seed: int = 0,
        image_column: str | None = None,
        objects_column: str = "objects",
        box_format: str = "coco",
        class_names: Sequence[str] | None = None,
        masks: bool = False,
    ) -> None:
        if box_format not in BOX_FORMATS:
            raise ValueError(f"The format of boxes must be one of {', '.join(BOX_FORMATS)}, not {box_format!r}.")
        self.train, self.seed, self.masks, self._format = train, seed, masks, BOX_FORMATS[box_format]
        self._image_column = find_columns(rows.features, image_column, "")[0]
        self._objects_column = objects_column
        fields = self._fields(rows.features)
        self._category = next(name for name in CATEGORY_FIELDS if name in fields)
        category = getattr(fields[self._category], "feature", fields[self._category])
        names = class_names or (category.names if isinstance(category, ClassLabel) else None)
        if not names:
            raise ValueError(f"{objects_column}.{self._category} holds {category} without names; give --class_names.")
        if masks and "segmentation" not in fields:
            raise ValueError(
                f"Mask R-CNN needs a segmentation for each object, and {objects_column} has only {sorted(fields)}; "
                "use --architecture faster_rcnn."
            )
        self.class_names = tuple(names)
        self._rows = rows.cast_column(self._image_column, Image(decode=False))
        self.dropped = self._scan()

    def _fields(self, features: datasets.Features) -> Mapping[str, Any]:
        feature = features.get(self._objects_column)
        fields = getattr(feature, "feature", feature)
        if not isinstance(fields, Mapping) or "bbox" not in fields or not set(CATEGORY_FIELDS) & set(fields):
            raise ValueError(
                f"The data set has no boxes: expected a column {self._objects_column!r} with bbox and category, found "
                f"the columns {list(features)}; name another with --objects_column_name."
            )
        return fields

    def _scan(self) -> int:
        """Looks at all boxes and no image; returns the number of those without area."""
        boxes = degenerate = empty = 0
        for position, row in enumerate(self._rows.select_columns([self._objects_column])):
            found, labels = self._boxes(row[self._objects_column])
            boxes, empty = boxes + len(found), empty + (not len(found))
            degenerate += len(found) - int(_with_area(found).sum())
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.class_names):
                raise ValueError(
                    f"Row {position} has the category {int(labels.max())}, but there are {len(self.class_names)} "
                    f"categories, counted from 0 ({self.class_names[0]}, ...); give all --class_names."
                )
        if boxes == degenerate:
            raise ValueError(
                f"None of the {len(self._rows)} images has a box with an area; choose a split that is annotated."
            )
        if degenerate or empty:
            logger.warning(
                "%d of %d boxes have no area and are dropped; %d of %d images have no box.",
                degenerate,
                boxes,
                empty,
                len(self._rows),
            )
        return degenerate

    def _boxes(self, objects: Any) -> tuple[Tensor, Tensor]:
        columns = _columns(objects)
        boxes = torch.tensor(columns.get("bbox") or [], dtype=torch.float32).reshape(-1, 4)
        return box_convert(boxes, self._format, "xyxy"), torch.tensor(columns.get(self._category) or []).long()

    def check_format(self, limit: int = 100) -> None:
        """Compares the boxes of the first images with the images' sizes.

        Raises:
            ValueError: if many boxes leave their images, as happens if they are read in another format.
        """
        outside = boxes = 0
        for row in self._rows.select(range(min(limit, len(self._rows)))):
            height, width = images.image_size(images.read_encoded(row[self._image_column]))
            found, _ = self._boxes(row[self._objects_column])
            edge = torch.tensor([width, height, width, height]) + 2
            boxes, outside = boxes + len(found), outside + int(((found > edge) | (found < -2)).any(-1).sum())
        if outside > _OUTSIDE * boxes:
            raise ValueError(
                f"{outside} of the first {boxes} boxes leave their images, read as {self._format}; give another "
                f"--box_format ({', '.join(BOX_FORMATS)})."
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample; index `epoch * len(self) + row`.

        Returns:
            `images`: uint8 [3, H, W]. `targets`: `boxes` float32 [n, 4] (left, top, right, bottom in pixels, inside
            the image), `labels` int64 [n] from 1 on, `iscrowd` int64 [n], `area` float32 [n], `image_id` int64,
            and `masks` uint8 [n, H, W] where asked for.
        """
        row = self._rows[index % len(self)]
        try:
            image = images.decode(images.read_encoded(row[self._image_column]))
            target = self._target(_columns(row[self._objects_column]), row, *image.shape[-2:])
        except ValueError as error:
            raise ValueError(f"Row {index % len(self)}: {error}") from error
        target["image_id"] = torch.tensor(index % len(self))
        if self.train and generator_of(self.seed, index).random() < 0.5:
            image, target = _flipped(image, target)
        return {"images": image, "targets": target}

    def _target(
        self, columns: Mapping[str, Any], row: Mapping[str, Any], height: int, width: int
    ) -> dict[str, Tensor]:
        if (row.get("width") or width, row.get("height") or height) != (width, height):
            raise ValueError(
                f"the image has {width}x{height} pixels, but its annotations are for {row['width']}x{row['height']}; "
                "use the images that were annotated."
            )
        found, labels = self._boxes(columns)
        boxes = clip_boxes_to_image(found, (height, width))
        crowd = torch.tensor(columns.get("iscrowd") or [0] * len(boxes)).long()
        keep = _with_area(boxes) & (crowd == 0 if self.train else crowd >= 0)
        kept = torch.where(keep)[0].tolist()
        area = columns.get("area") or [None] * len(boxes)
        sides = boxes[:, 2:] - boxes[:, :2]
        target = {
            "boxes": boxes[kept],
            "labels": labels[kept] + 1,
            "iscrowd": crowd[kept],
            "area": torch.tensor([float(sides[i].prod() if area[i] is None else area[i]) for i in kept]),
        }
        if self.masks:
            masks = [segmentation_mask(columns["segmentation"][i], height, width) for i in kept]
            target["masks"] = torch.stack(masks) if masks else torch.zeros((0, height, width), dtype=torch.uint8)
        return target


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Batches samples as lists, since images differ in size; pass it to a `DataLoader` as `collate_fn`."""
    return {name: [sample[name] for sample in samples] for name in samples[0]}


def _columns(objects: Any) -> Mapping[str, Any]:
    """Lists by name; some data sets have a list of structs instead."""
    if isinstance(objects, Mapping):
        return objects
    return {name: [item[name] for item in objects] for name in (objects[0] if objects else ())}


def _with_area(boxes: Tensor) -> Tensor:
    keep = torch.zeros(len(boxes), dtype=torch.bool)
    keep[remove_small_boxes(boxes, 1e-3)] = True
    return keep & boxes.isfinite().all(-1)


def _flipped(image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    width = image.shape[-1]
    left, top, right, bottom = target["boxes"].unbind(-1)
    flipped = {**target, "boxes": torch.stack([width - right, top, width - left, bottom], -1)}
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(-1)
    return image.flip(-1), flipped
