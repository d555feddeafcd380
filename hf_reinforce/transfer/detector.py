"""Object detection with a student as the backbone of torchvision's Faster or Mask R-CNN with a feature pyramid."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from hf_reinforce.transfer.backbones import Backbone, OnBackbone
from hf_reinforce.transfer.samples import optional

ARCHITECTURES = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}


class Detector(OnBackbone):
    """A detector that takes uint8 images, and resizes and normalises them itself.

    `Detector.from_pretrained(folder or Hub id)` loads one.

    Args:
        backbone: `spec` of a `Backbone`.
        class_names: names of the categories; label i + 1 is `class_names[i]`, 0 is the background.
        architecture: key of `ARCHITECTURES`.
        min_size: shorter side of a resized image in pixels; of several, training draws one for each image and
            evaluation takes the last.
        max_size: the longer side is at most this, in pixels.
        anchor_scale: side of an anchor in multiples of its map's stride; 8 is usual for photos.
        fpn_channels: of each map of the pyramid.
        fixed_batch_norm: keep the backbone's batch-norm statistics and scales, as is usual with few images per device.
        options: further arguments of torchvision's class, e.g. `{"box_batch_size_per_image": 128}`.

    Raises:
        ValueError: if there is no such architecture, or the backbone is no pyramid.

    Example:
        import torch
        from hf_reinforce import Detector, load_backbone

        detector = Detector(load_backbone("resnet10t").spec, ["cat", "dog"], min_size=(64,)).eval()
        boxes = detector([torch.randint(256, (3, 64, 80), dtype=torch.uint8)])[0]["boxes"]  # float [n, 4]
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        class_names: Sequence[str],
        architecture: str = "faster_rcnn",
        min_size: Sequence[int] = (800,),
        max_size: int = 1333,
        anchor_scale: float = 8.0,
        fpn_channels: int = 256,
        fixed_batch_norm: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(f"The architecture must be one of {', '.join(ARCHITECTURES)}, not {architecture!r}.")
        taken = {name for each in ARCHITECTURES[architecture].__mro__ for name in signature(each.__init__).parameters}
        if unknown := sorted(set(options or {}) - taken):  # which torchvision takes without a word
            raise ValueError(f"{architecture} of torchvision takes no arguments {unknown} (--detector_args).")
        if max_size < max(min_size):
            raise ValueError(f"max_size (--max_size) must be at least min_size (--min_size) {max(min_size)}.")
        body = Backbone(**backbone)
        if len(body.strides) < 2:
            raise ValueError(
                f"{body.spec['architecture']!r} has feature maps of the stride {body.strides} only, and a feature "
                "pyramid needs several; take a network such as a ResNet, EfficientNet, MobileNet or Swin."
            )
        if fixed_batch_norm:
            body.network = freeze_batch_norm_2d(body.network)
        self.class_names = tuple(class_names)
        sizes = [round(anchor_scale * stride) for stride in (*body.strides, 2 * body.strides[-1])]
        self.network = ARCHITECTURES[architecture](
            _Pyramid(body, fpn_channels),
            num_classes=len(class_names) + 1,
            min_size=tuple(min_size),
            max_size=max_size,
            image_mean=body.spec["mean"],
            image_std=body.spec["std"],
            rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in sizes), ((0.5, 1.0, 2.0),) * len(sizes)),
            **(options or {}),
        )

    def forward(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None) -> Any:
        """Losses of a training batch, or detections.

        Args:
            images: uint8 [3, H, W] each.
            targets: see `DetectionDataset`; in training.

        Returns:
            In training, losses by name, scalars. Otherwise for each image `boxes` [n, 4] (left, top, right, bottom in
            its pixels), `labels` [n], `scores` [n] and, of Mask R-CNN, `masks` [n, 1, H, W] in [0, 1].
        """
        floats = [image.float() / 255 for image in images]
        return self.network(floats, list(targets)) if self.training and targets is not None else self.network(floats)


class _Pyramid(nn.Module):
    def __init__(self, body: Backbone, channels: int) -> None:
        super().__init__()
        self.body, self.out_channels = body, channels
        self.fpn = FeaturePyramidNetwork(body.channels, channels, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.fpn(OrderedDict((str(i), each) for i, each in enumerate(self.body(images))))
        return maps


class MeanAveragePrecision:
    """COCO's average precision by torchmetrics and pycocotools, of boxes and, with `masks`, of masks (`segm_map`)."""

    def __init__(self, class_names: Sequence[str], masks: bool = False) -> None:
        optional("pycocotools.mask")
        self._metric = optional("torchmetrics.detection").MeanAveragePrecision(
            iou_type=("bbox", "segm") if masks else "bbox", class_metrics=True, sync_on_compute=False
        )
        self._names = tuple(class_names)

    def record(self, prediction: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> tuple[Any, Any]:
        """What one image adds, on the CPU."""
        found = {name: value.detach().cpu() for name, value in prediction.items()}
        wanted = {name: value.cpu() for name, value in target.items() if name != "image_id"}
        if "masks" in found:
            found["masks"] = found["masks"][:, 0] > 0.5
        if "masks" in wanted:
            wanted["masks"] = wanted["masks"].bool()
        return found, wanted

    def add(self, record: tuple[Any, Any]) -> None:
        """Adds the record of an image."""
        self._metric.update([record[0]], [record[1]])

    def compute(self) -> dict[str, float]:
        """`map` over the IoU thresholds 0.5 to 0.95, `map_50`, `map_75`, by size and recall, and `map_<class>`.

        All in [0, 1]; what no box was there for is left out.
        """
        found = {name.removeprefix("bbox_"): value.reshape(-1) for name, value in self._metric.compute().items()}
        names = [self._names[int(label) - 1] for label in found.pop("classes")]
        metrics: dict[str, float] = {}
        for name, values in found.items():
            if name.endswith("map_per_class"):
                prefix = name.removesuffix("per_class")
                metrics |= {f"{prefix}{own}": float(value) for own, value in zip(names, values, strict=True)}
            elif not name.endswith("per_class"):
                metrics[name] = float(values)
        return {name: value for name, value in metrics.items() if value >= 0}
