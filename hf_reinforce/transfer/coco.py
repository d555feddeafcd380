"""COCO's annotation format: its JSON files as a dataset, and its segmentations as masks."""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from torch import Tensor

from hf_reinforce.transfer.extras import optional


def read_coco(images: str | Path, annotations: str | Path) -> Dataset:
    """A folder of images and a COCO JSON file as a dataset.

    Args:
        images: folder that the file names in the JSON file are relative to.
        annotations: e.g. `instances_train2017.json`.

    Returns:
        One row per image, also for those without annotations: `image`, `image_id`, `width`, `height` and `objects`
        (lists `bbox` as left, top, width, height in pixels; `category`, in the order of the category ids; `area`;
        `iscrowd`; `segmentation`, JSON or null).

    Raises:
        ValueError: if the file is no COCO JSON, or its parts do not fit together.
    """
    try:
        content = json.loads(Path(annotations).read_text(encoding="utf-8"))
        categories = sorted(content["categories"], key=lambda category: category["id"])
        place = {category["id"]: index for index, category in enumerate(categories)}
        objects: dict[int, list[Any]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            _check(annotation, place, objects)
            objects[annotation["image_id"]].append(annotation)
        rows = [_row(Path(images), image, objects[image["id"]], place) for image in content["images"]]
    except FileNotFoundError as error:
        raise ValueError(f"There is no file {annotations}.") from error
    except ValueError as error:
        raise ValueError(f"{annotations} is no COCO JSON of boxes: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{annotations} is no COCO JSON of images, annotations and categories ({type(error).__name__}: {error})."
        ) from error
    features = Features(
        {
            "image": Image(decode=False),
            "image_id": Value("int64"),
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
    return Dataset.from_list(rows, features=features)


def _check(annotation: dict[str, Any], categories: dict[int, int], images: Container[int]) -> None:
    known = f"id {annotation['id']}" if "id" in annotation else "keys " + ", ".join(annotation)
    if missing := [key for key in ("image_id", "category_id", "bbox") if key not in annotation]:
        raise ValueError(
            f"the annotation with {known} has no {' or '.join(missing)}; add what it lacks, or remove the annotation."
        )
    if annotation["category_id"] not in categories:
        raise ValueError(
            f"the annotation with {known} is of category {annotation['category_id']}, which 'categories' does not "
            f"list; it lists the ids {list(categories)}. Add the category, or remove the annotation."
        )
    if annotation["image_id"] not in images:
        raise ValueError(
            f"the annotation with {known} is of image {annotation['image_id']}, which 'images' does not list; use the "
            "file that belongs to the images."
        )


def _row(folder: Path, image: dict[str, Any], annotations: list[dict[str, Any]], place: dict[int, int]) -> Any:
    return {
        "image": {"path": str(folder / image["file_name"]), "bytes": None},
        "image_id": image["id"],
        "width": image.get("width"),
        "height": image.get("height"),
        "objects": {
            "bbox": [a["bbox"] for a in annotations],
            "category": [place[a["category_id"]] for a in annotations],
            "area": [a.get("area") for a in annotations],
            "iscrowd": [int(a.get("iscrowd", 0)) for a in annotations],
            "segmentation": [json.dumps(a["segmentation"]) if a.get("segmentation") else None for a in annotations],
        },
    }


def segmentation_mask(segmentation: Any, height: int, width: int) -> Tensor:
    """A COCO segmentation as a mask.

    Args:
        segmentation: polygons (lists of x, y, x, y, ... in pixels), a run-length encoding `{"size", "counts"}`
            (compressed or not), or either as JSON.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        uint8 [height, width], 0 or 1.

    Raises:
        ValueError: if it is none of these, or belongs to an image of another size.
    """
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
