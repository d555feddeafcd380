"""Images with boxes, and masks where there are some, as torchvision's detectors want them; COCO's files."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert, clip_boxes_to_image
from torchvision.transforms import v2

from hf_reinforce import images
from hf_reinforce.sources.image_source import find_columns
from hf_reinforce.transfer.samples import TransferDataset, optional

logger = logging.getLogger(__name__)

BOX_FORMATS = {"coco": "xywh", "pascal_voc": "xyxy"}
"""Name of a format -> torchvision's name of it."""

CATEGORY_FIELDS = ("category", "category_id", "label", "labels")

_LOOKED_AT = 100  # images whose sizes are compared with their boxes
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
        train: flip at random with `seed`, leave out crowds.
        image_column: default: the only image column.
        box_format: key of `BOX_FORMATS`.
        class_names: names of the categories, default those of the category's ClassLabel.
        masks: give masks, too.
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
        feature = rows.features.get(objects_column)
        fields = getattr(feature, "feature", feature)  # a list of structs, or a struct of lists
        fields = fields if isinstance(fields, Mapping) else {}
        self._category = next((name for name in CATEGORY_FIELDS if name in fields), "")
        if not self._category or "bbox" not in fields:
            raise ValueError(
                f"The dataset has no boxes: expected a column {objects_column!r} with bbox and category, found the "
                f"columns {list(rows.features)}; name another with --objects_column_name."
            )
        category = getattr(fields[self._category], "feature", fields[self._category])
        self.class_names = tuple(class_names or getattr(category, "names", None) or ())
        if not self.class_names:
            raise ValueError(f"{objects_column}.{self._category} holds {category} without names; give --class_names.")
        if masks and "segmentation" not in fields:
            raise ValueError(
                f"Mask R-CNN needs a segmentation for each object, and {objects_column} has only {sorted(fields)}; "
                "use --architecture faster_rcnn."
            )
        self._check_boxes()

    def _check_boxes(self) -> None:
        """Looks at all boxes, and at the sizes of the first images."""
        boxes = kept = empty = checked = outside = 0
        for position, row in enumerate(self._rows.select_columns([self._objects_column])):
            found, labels = self._boxes(_columns(row[self._objects_column]))
            boxes, kept, empty = boxes + len(found), kept + int(_with_area(found).sum()), empty + (not len(found))
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.class_names):
                raise ValueError(
                    f"Row {position} has the category {int(labels.max())}, but there are {len(self.class_names)} "
                    f"categories, counted from 0 ({self.class_names[0]}, ...); give all --class_names."
                )
            if position < _LOOKED_AT:
                encoded = images.read_encoded(self._rows[position][self._image_column])
                height, width = images.image_size(encoded)
                edge = torch.tensor([width, height, width, height]) + 2
                checked, outside = boxes, outside + int(((found > edge) | (found < -2)).any(-1).sum())
        if not kept:
            raise ValueError(f"None of the {len(self)} images has a box with an area; choose an annotated split.")
        if outside > _OUTSIDE * checked:
            raise ValueError(
                f"{outside} of the first {checked} boxes leave their images, read as {self._format}; give another "
                f"--box_format ({', '.join(BOX_FORMATS)})."
            )
        if kept < boxes or empty:
            message = "%d of %d boxes have no area and are dropped; %d of %d images have no box."
            logger.warning(message, boxes - kept, boxes, empty, len(self))

    def _boxes(self, columns: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The boxes of an image, float32 [n, 4] as left, top, right, bottom, and their categories, int64 [n]."""
        boxes = torch.tensor(columns.get("bbox") or [], dtype=torch.float32).reshape(-1, 4)
        return box_convert(boxes, self._format, "xyxy"), torch.tensor(columns.get(self._category) or []).long()

    def read(self, values: Mapping[str, Any], row: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        """The image of a row, and its target as the class describes it."""
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
        kept = torch.where(_with_area(boxes) & ~(crowd.bool() & self._train))[0].tolist()
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
    # SanitizeBoundingBoxes would drop what is smaller than a pixel.
    return (boxes[:, 2:] - boxes[:, :2] >= 1e-3).all(-1) & boxes.isfinite().all(-1)


def read_coco(image_folder: str | Path, annotations: str | Path) -> Dataset:
    """A folder of images and a COCO JSON file, such as `instances_train2017.json`, as a dataset.

    It has a row for each image, also for those without annotations, and `objects` as `DetectionDataset` takes them,
    with the categories in the order of their ids and each segmentation as JSON.
    """
    try:
        content = json.loads(Path(annotations).read_text(encoding="utf-8"))
        categories = sorted(content["categories"], key=lambda category: category["id"])
        place = {category["id"]: index for index, category in enumerate(categories)}
        fields = ("bbox", "category", "area", "iscrowd", "segmentation")
        rows = {
            image["id"]: {
                "image": {"path": str(Path(image_folder, image["file_name"])), "bytes": None},
                "width": image.get("width"),
                "height": image.get("height"),
                "objects": {field: [] for field in fields},
            }
            for image in content["images"]
        }
        for item in content["annotations"]:
            try:
                shape = json.dumps(item["segmentation"]) if item.get("segmentation") else None
                found = (item["bbox"], place[item["category_id"]], item.get("area"), item.get("iscrowd", 0), shape)
                for field, value in zip(fields, found, strict=True):
                    rows[item["image_id"]]["objects"][field].append(value)
            except KeyError as error:
                raise ValueError(
                    f"the annotation {item.get('id', list(item))} has no {error}, or names an image or category "
                    f"{error} that is not listed; mend or remove it"
                ) from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = error if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{annotations} is no COCO JSON with images, annotations of boxes and categories ({reason})."
        ) from error
    features = Features(
        {
            "image": Image(decode=False),
            "width": Value("int32"),
            "height": Value("int32"),
            "objects": {
                "bbox": List(List(Value("float32"), 4)),
                "category": List(ClassLabel(names=[category["name"] for category in categories])),
                "area": List(Value("float32")),
                "iscrowd": List(Value("int8")),
                "segmentation": List(Value("string")),
            },
        }
    )
    return Dataset.from_list(list(rows.values()), features=features)


def segmentation_mask(segmentation: Any, height: int, width: int) -> Tensor:
    """A COCO segmentation as a mask, uint8 [height, width] of 0 and 1: polygons (lists of x, y, ... in pixels), a
    run-length encoding `{"size", "counts"}` (compressed or not), or either as JSON."""
    coco: Any = optional("pycocotools.mask")
    if isinstance(segmentation, str):
        segmentation = json.loads(segmentation)
    if isinstance(segmentation, dict):
        size = [int(side) for side in segmentation["size"]]
        if size != [height, width]:
            raise ValueError(f"a segmentation of {size[1]}x{size[0]} pixels cannot belong to one of {width}x{height}.")
        if isinstance(segmentation["counts"], list):
            segmentation = coco.frPyObjects(segmentation, height, width)
        return torch.from_numpy(coco.decode(segmentation))
    polygons = segmentation if segmentation and isinstance(segmentation[0], (list, tuple)) else [segmentation]
    polygons = [polygon for polygon in polygons if polygon is not None and len(polygon) >= 6]
    if not polygons:
        raise ValueError("a segmentation has no polygon of three or more points.")
    return torch.from_numpy(coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))))
