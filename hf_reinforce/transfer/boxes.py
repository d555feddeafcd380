"""Images with boxes, and masks where there are some, as torchvision's detectors want them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch
from datasets import ClassLabel, Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert, clip_boxes_to_image, remove_small_boxes
from torchvision.transforms import v2

from hf_reinforce import images
from hf_reinforce.sources.image_source import find_columns
from hf_reinforce.transfer.coco import segmentation_mask
from hf_reinforce.transfer.samples import TransferDataset

logger = logging.getLogger(__name__)

BOX_FORMATS = {"coco": "xywh", "pascal_voc": "xyxy"}
"""Name of a format -> torchvision's name of it."""

CATEGORY_FIELDS = ("category", "category_id", "label", "labels")

_OUTSIDE = 0.1  # share of boxes beyond the edges of their images from which the format is doubted


class DetectionDataset(TransferDataset):
    """Images with boxes.

    A sample has `images`, uint8 [3, H, W], and `targets`: `boxes` float32 [n, 4] (left, top, right, bottom in pixels,
    inside the image), `labels` int64 [n] from 1 on, `iscrowd` int64 [n], `area` float32 [n], `image_id` int64, and
    `masks` uint8 [n, H, W] where asked for. Boxes without area and boxes outside of their image are dropped, and
    counted in the log; images without boxes stay.

    Args:
        rows: a map-style dataset with an image column and a column of objects: lists `bbox` and `category`, and
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
        self._image_column = find_columns(rows.features, image_column, "")[0]
        rows = rows.cast_column(self._image_column, Image(decode=False))
        super().__init__(rows, [v2.RandomHorizontalFlip()] if train else [], seed)
        self._train, self._masks, self._format = train, masks, BOX_FORMATS[box_format]
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
        self.dropped = self._scan()

    def _fields(self, features: datasets.Features) -> Mapping[str, Any]:
        feature = features.get(self._objects_column)
        fields = getattr(feature, "feature", feature)
        if not isinstance(fields, Mapping) or "bbox" not in fields or not set(CATEGORY_FIELDS) & set(fields):
            raise ValueError(
                f"The dataset has no boxes: expected a column {self._objects_column!r} with bbox and category, found "
                f"the columns {list(features)}; name another with --objects_column_name."
            )
        return fields

    def _scan(self) -> int:
        """Looks at all boxes and no image; returns the number of those without area."""
        boxes = degenerate = empty = 0
        for position, row in enumerate(self._rows.select_columns([self._objects_column])):
            found, labels = self._boxes(_columns(row[self._objects_column]))
            boxes, empty = boxes + len(found), empty + (not len(found))
            degenerate += len(found) - int(_with_area(found).sum())
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.class_names):
                raise ValueError(
                    f"Row {position} has the category {int(labels.max())}, but there are {len(self.class_names)} "
                    f"categories, counted from 0 ({self.class_names[0]}, ...); give all --class_names."
                )
        if boxes == degenerate:
            raise ValueError(f"None of the {len(self)} images has a box with an area; choose an annotated split.")
        if degenerate or empty:
            message = "%d of %d boxes have no area and are dropped; %d of %d images have no box."
            logger.warning(message, degenerate, boxes, empty, len(self))
        return degenerate

    def _boxes(self, columns: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The boxes of an image, float32 [n, 4] as left, top, right, bottom, and their categories, int64 [n]."""
        boxes = torch.tensor(columns.get("bbox") or [], dtype=torch.float32).reshape(-1, 4)
        return box_convert(boxes, self._format, "xyxy"), torch.tensor(columns.get(self._category) or []).long()

    def check_format(self, limit: int = 100) -> None:
        """Compares the boxes of the first images with the images' sizes.

        Raises:
            ValueError: if many boxes leave their images, as happens if they are read in another format.
        """
        outside = boxes = 0
        for row in self._rows.select(range(min(limit, len(self)))):
            height, width = images.image_size(images.read_encoded(row[self._image_column]))
            found, _ = self._boxes(_columns(row[self._objects_column]))
            edge = torch.tensor([width, height, width, height]) + 2
            boxes, outside = boxes + len(found), outside + int(((found > edge) | (found < -2)).any(-1).sum())
        if outside > _OUTSIDE * boxes:
            raise ValueError(
                f"{outside} of the first {boxes} boxes leave their images, read as {self._format}; give another "
                f"--box_format ({', '.join(BOX_FORMATS)})."
            )

    def read(self, row: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        """The image of a row, and its target as the class describes it."""
        values = self._rows[row]
        image = images.decode(images.read_encoded(values[self._image_column]))
        height, width = image.shape[-2:]
        if (values.get("width") or width, values.get("height") or height) != (width, height):
            raise ValueError(
                f"the image has {width}x{height} pixels, but its annotations are for "
                f"{values['width']}x{values['height']}; use the images that were annotated."
            )
        columns = _columns(values[self._objects_column])
        boxes, labels = self._boxes(columns)
        boxes = clip_boxes_to_image(boxes, (height, width))
        crowd = torch.tensor(columns.get("iscrowd") or [0] * len(boxes)).long()
        kept = torch.where(_with_area(boxes) & (crowd == 0 if self._train else crowd >= 0))[0].tolist()
        area = columns.get("area") or [None] * len(boxes)
        sides = boxes[:, 2:] - boxes[:, :2]
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes[kept], format="XYXY", canvas_size=(height, width)),
            "labels": labels[kept] + 1,
            "iscrowd": crowd[kept],
            "area": torch.tensor([float(sides[i].prod() if area[i] is None else area[i]) for i in kept]),
            "image_id": torch.tensor(row),
        }
        if self._masks:
            masks = [segmentation_mask(columns["segmentation"][i], height, width) for i in kept]
            empty = torch.zeros((0, height, width), dtype=torch.uint8)
            target["masks"] = tv_tensors.Mask(torch.stack(masks) if masks else empty)
        return tv_tensors.Image(image), target


def _columns(objects: Any) -> Mapping[str, Any]:
    """Lists by name; some datasets have a list of structs instead."""
    if isinstance(objects, Mapping):
        return objects
    return {name: [item[name] for item in objects] for name in (objects[0] if objects else ())}


def _with_area(boxes: Tensor) -> Tensor:
    keep = torch.zeros(len(boxes), dtype=torch.bool)
    keep[remove_small_boxes(boxes, 1e-3)] = True  # SanitizeBoundingBoxes would drop what is smaller than a pixel
    return keep & boxes.isfinite().all(-1)
