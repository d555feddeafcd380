"""Generated scenes of coloured shapes, with boxes, polygons and label maps, to try detection and segmentation on.

python tests/scenes.py outputs/scenes
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("square", "triangle", "disc")
COLOURS = ((220, 60, 50), (60, 200, 80), (60, 90, 230))
CORNERS = (4, 3, 24)


def scene(seed, size=96, objects=(1, 3)):
    """An image, its label map (0 is the background) and its objects, none of which hides another's centre.

    Args:
        seed: of everything random.
        size: side in pixels.
        objects: fewest and most objects.
    """
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(90, 160, (6, 6, 3)).astype(np.uint8)).resize((size, size), Image.BILINEAR)
    labels = Image.new("L", (size, size))
    found, centres = [], []
    for _ in range(int(rng.integers(*objects, endpoint=True))):
        radius = rng.uniform(0.12, 0.2) * size
        x, y = rng.uniform(radius, size - radius, 2)
        if any(math.dist((x, y), other) < 0.4 * size for other in centres):
            continue
        centres.append((x, y))
        kind, turn = int(rng.integers(len(SHAPES))), rng.uniform(0, 2 * math.pi)
        angles = [turn + 2 * math.pi * i / CORNERS[kind] for i in range(CORNERS[kind])]
        polygon = [(float(x + radius * math.cos(a)), float(y + radius * math.sin(a))) for a in angles]
        ImageDraw.Draw(ground).polygon(polygon, fill=COLOURS[kind])
        ImageDraw.Draw(labels).polygon(polygon, fill=kind + 1)
        xs, ys = zip(*polygon, strict=True)
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        found.append({"bbox": box, "category": kind, "segmentation": [[c for point in polygon for c in point]]})
    noise = rng.normal(0, 8, (size, size, 3))
    image = Image.fromarray((np.asarray(ground) + noise).clip(0, 255).astype(np.uint8))
    return image, labels, found


def write_scenes(folder, split, count, first=0, size=96):
    """Writes `images/SPLIT`, `masks/SPLIT` and `SPLIT.json` (COCO) into a folder."""
    folder = Path(folder)
    listed, annotations = [], []
    for kind in ("images", "masks"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        image, labels, objects = scene(index, size)
        name = f"{index:05d}.png"
        image.save(folder / "images" / split / name)
        labels.save(folder / "masks" / split / name)
        listed.append({"id": index, "file_name": name, "width": size, "height": size})
        for item in objects:
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": index,
                    "category_id": 10 * item["category"] + 7,  # COCO's ids have gaps, too
                    "bbox": item["bbox"],
                    "area": item["bbox"][2] * item["bbox"][3],
                    "iscrowd": 0,
                    "segmentation": item["segmentation"],
                }
            )
    categories = [{"id": 10 * index + 7, "name": name} for index, name in enumerate(SHAPES)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    write_scenes(sys.argv[1], "train", 400)
    write_scenes(sys.argv[1], "test", 100, first=400)
