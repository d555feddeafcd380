"""Average precision and mean IoU of fixed predictions: the figures may never change."""

import numpy as np
import pytest
import torch

from hf_reinforce.transfer.detector import MeanAveragePrecision
from hf_reinforce.transfer.segmenter import MeanIoU

pytest.importorskip("pycocotools", reason="pip install 'hf-reinforce[transfer]'")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")  # of pycocotools


def masks_of(boxes, size=64):
    """Masks uint8 [n, size, size] that fill boxes [n, 4]."""
    masks = torch.zeros(len(boxes), size, size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.round().long().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return masks


def detections():
    """Predictions and targets of ten images of 64x64 pixels, with crowds, misses and an image without objects."""
    rng = np.random.default_rng(0)
    for image in range(10):
        count = 0 if image == 3 else 4
        corners = rng.uniform(0, 36, (count, 2))
        boxes = torch.tensor(np.concatenate([corners, corners + rng.uniform(4, 28, (count, 2))], 1)).float()
        labels = torch.tensor(rng.integers(1, 4, count)).long()
        target = {
            "boxes": boxes,
            "labels": labels,
            "iscrowd": torch.tensor(rng.random(count) < 0.15).long(),
            "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
            "masks": masks_of(boxes),
            "image_id": torch.tensor(image),
        }
        kept = torch.tensor(rng.random(count) < 0.8)
        noise = torch.tensor(rng.normal(0, 1.2, (count, 4))).float()
        extra = torch.tensor([[1.0, 2.0, 9.0, 12.0]])
        found = torch.cat([(boxes + noise).clamp(0, 64)[kept], extra])
        yield (
            {
                "boxes": found,
                "labels": torch.cat([labels[kept], torch.tensor([1 + image % 3])]),
                "scores": torch.tensor(rng.random(len(found))).float(),
                "masks": masks_of(found)[:, None] * 0.9,
            },
            target,
        )


DETECTION = {
    "map": 0.269667864,
    "map_50": 0.607061684,
    "map_75": 0.201744467,
    "map_small": 0.269667864,
    "mar_1": 0.278956234,
    "mar_10": 0.403164983,
    "mar_100": 0.403164983,
    "mar_small": 0.403164983,
    "map_square": 0.303449631,
    "map_triangle": 0.200603485,
    "map_disc": 0.304950505,
    "segm_map": 0.284981132,
    "segm_map_50": 0.607061684,
    "segm_map_75": 0.288637429,
    "segm_map_small": 0.284981132,
    "segm_mar_1": 0.285252512,
    "segm_mar_10": 0.428619534,
    "segm_mar_100": 0.428619534,
    "segm_mar_small": 0.428619534,
    "segm_map_square": 0.2900047,
    "segm_map_triangle": 0.225400761,
    "segm_map_disc": 0.339537948,
}
SEGMENTATION = {
    "miou": 0.510438888,
    "mean_accuracy": 0.754160203,
    "pixel_accuracy": 0.754248366,
    "iou_0": 0.623529412,
    "iou_1": 0.648706897,
    "iou_2": 0.61987041,
    "iou_3": 0.660087719,
    "iou_4": 0.0,
}


def test_average_precision():
    metric = MeanAveragePrecision(("square", "triangle", "disc"), masks=True)
    for prediction, target in detections():
        metric.add(metric.record(prediction, target))
    assert metric.compute() == pytest.approx(DETECTION, abs=1e-6)


def test_mean_iou():
    rng = np.random.default_rng(1)
    metric = MeanIoU(5)  # class 4 is in no mask, and predicted
    for height, width in ((20, 30), (31, 17), (24, 24)):
        target = rng.integers(0, 4, (height, width))
        prediction = np.where(rng.random(target.shape) < 0.7, target, rng.integers(0, 5, target.shape))
        target[rng.random(target.shape) < 0.1] = 255
        pair = (torch.from_numpy(each.astype(np.uint8)) for each in (prediction, target))
        metric.add(metric.record(*pair))
    assert metric.compute() == pytest.approx(SEGMENTATION, abs=1e-6)
