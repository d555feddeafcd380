"""COCO's annotation format: its JSON files as a data set, and its segmentations as masks."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from torch import Tensor

from hf_reinforce.transfer.extras import optional


def read_coco(images: str | Path, annotations: str | Path) -> Dataset:
    """A folder of images and a COCO JSON file as a data set.

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
        by_image = defaultdict(list)
        problems = filter(None, (_problem(annotation, place) for annotation in content["annotations"]))
        problem = next(problems, None)
        if problem is None:
            for annotation in content["annotations"]:
                by_image[annotation["image_id"]].append(annotation)
            rows = [_row(Path(images), image, by_image.pop(image["id"], []), place) for image in content["images"]]
    except FileNotFoundError as error:
        raise ValueError(f"There is no file {annotations}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{annotations} is no COCO JSON of images, annotations and categories ({type(error).__name__}: {error})."
        ) from error
    if problem is not None:
        raise ValueError(f"{annotations} is no COCO JSON of boxes: {problem}")
    if by_image:
        raise ValueError(
            f"{annotations} has annotations for {len(by_image)} images that it does not list, such as id "
            f"{next(iter(by_image))}; use the file that belongs to the images."
        )
    return Dataset.from_list(rows, features=_features([category["name"] for category in categories]))


def _problem(annotation: dict[str, Any], place: dict[int, int]) -> str | None:
    """What an annotation lacks and how to mend it; None where it is whole."""
    missing = [key for key in ("image_id", "category_id", "bbox") if key not in annotation]
    if missing:
        known = f"id {annotation['id']}" if "id" in annotation else "keys " + ", ".join(annotation)
        return (
            f"the annotation with {known} has no {' or '.join(missing)}; add what it lacks, or remove the annotation."
        )
    if annotation["category_id"] not in place:
        return (
            f"the annotation with id {annotation.get('id')} is of category {annotation['category_id']}, which "
            f"'categories' does not list; it lists the ids {list(place)}. Add the category, or remove the annotation."
        )
    return None


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


def _features(names: list[str]) -> Features:
    return Features(
        {
            "image": Image(decode=False),
            "image_id": Value("int64"),
            "width": Value("int32"),
            "height": Value("int32"),
            "objects": {
                "bbox": List(List(Value("float32"), 4)),
                "category": List(ClassLabel(names=names)),
                "area": List(Value("float32")),
                "iscrowd": List(Value("int8")),
                "segmentation": List(Value("string")),
            },
        }
    )


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
