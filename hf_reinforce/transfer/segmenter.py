"""Semantic segmentation with a student as the backbone of torchvision's DeepLabV3 or FCN."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import FCN, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from hf_reinforce.models.preprocessing import normalize
from hf_reinforce.transfer.backbones import Backbone, OnBackbone
from hf_reinforce.transfer.masks import IGNORE

HEADS = {"deeplabv3": (DeepLabV3, DeepLabHead), "fcn": (FCN, FCNHead)}


class Segmenter(OnBackbone):
    """A segmentation network that takes uint8 images and normalises them itself.

    `Segmenter.from_pretrained(folder or Hub id)` loads one.

    Args:
        backbone: `spec` of a `Backbone`.
        class_names: names of the classes.
        head: key of `HEADS`.
        image_size: shorter side of an evaluated image in pixels.
        aux_weight: weight of the loss of an FCN head on the last map but one; 0: no such head.

    Raises:
        ValueError: if there is no such head.

    Example:
        import torch
        from hf_reinforce import Segmenter, load_backbone

        segmenter = Segmenter(load_backbone("resnet10t").spec, ["sky", "sea"], image_size=64).eval()
        result = segmenter([torch.randint(256, (3, 64, 80), dtype=torch.uint8)])
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        class_names: Sequence[str],
        head: str = "deeplabv3",
        image_size: int = 512,
        aux_weight: float = 0.4,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"The head must be one of {', '.join(HEADS)}, not {head!r}.")
        body, classes = Backbone(**backbone), len(class_names)
        self.class_names, self.image_size, self.aux_weight = tuple(class_names), image_size, aux_weight
        network, top = HEADS[head]
        auxiliary = FCNHead(body.channels[-2], classes) if aux_weight and len(body.channels) > 1 else None
        self.network = network(_Maps(body), top(body.channels[-1], classes), auxiliary)

    def forward(self, images: Sequence[Tensor], targets: Sequence[Tensor] | None = None) -> Any:
        """Losses of a training batch, or class maps.

        Args:
            images: uint8 [3, H, W] each; of one size in training.
            targets: uint8 [H, W] each, classes and `IGNORE`; in training.

        Returns:
            In training, losses by name, scalars. Otherwise class maps, uint8 [H, W] each.
        """
        if not self.training or targets is None:
            return [self.class_map(image) for image in images]
        outputs = self._outputs(torch.stack(list(images)))
        labels = torch.stack(list(targets)).long()
        if bool((labels == IGNORE).all()):  # a mean of nothing is nan
            return {"loss": 0.0 * torch.stack([each.sum() for each in outputs.values()]).sum()}
        losses = {"loss": F.cross_entropy(outputs["out"].float(), labels, ignore_index=IGNORE)}
        if "aux" in outputs:
            losses["loss_aux"] = self.aux_weight * F.cross_entropy(outputs["aux"].float(), labels, ignore_index=IGNORE)
        return losses

    def class_map(self, image: Tensor) -> Tensor:
        """The most likely class of each pixel, uint8 [H, W], of a uint8 image [3, H, W]."""
        height, width = image.shape[1:]
        factor = self.image_size / min(height, width)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        inputs = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)
        logits = self._outputs(inputs)["out"].float()
        return F.interpolate(logits, (height, width), mode="bilinear")[0].argmax(0).to(torch.uint8)

    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        spec = self.backbone.spec
        outputs: dict[str, Tensor] = self.network(normalize(images.float() / 255, spec["mean"], spec["std"]))
        return outputs


class _Maps(nn.Module):
    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return OrderedDict(zip(("out", "aux"), reversed(self.body(images)), strict=False))


class MeanIoU:
    """Mean intersection over union of C classes, from a confusion matrix that is summed over images.

    torchmetrics' metric of this name takes the mean over images instead.
    """

    def __init__(self, num_classes: int) -> None:
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def record(self, prediction: Tensor, target: Tensor) -> Tensor:
        """What one image adds: int64 [C, C] on the CPU, pixels by target (row) and prediction (column)."""
        classes, known = len(self._confusion), target != IGNORE
        cells = target[known].long() * classes + prediction[known].long()
        return torch.bincount(cells, minlength=classes**2).reshape(classes, classes).cpu()

    def add(self, record: Tensor) -> None:
        """Adds the record of an image."""
        self._confusion += record

    def compute(self) -> dict[str, float]:
        """`miou` and `mean_accuracy` over the classes that occur, `pixel_accuracy`, and `iou_<class>` of each class
        that is in a mask or predicted."""
        own = self._confusion.diag().double()
        wanted, given = self._confusion.sum(1).double(), self._confusion.sum(0).double()
        if not wanted.sum():
            raise ValueError("The evaluated masks have no labelled pixel; choose another split.")
        iou = own / (wanted + given - own)
        return {
            "miou": float(iou.nanmean()),
            "mean_accuracy": float((own / wanted).nanmean()),
            "pixel_accuracy": float(own.sum() / wanted.sum()),
            **{f"iou_{index}": float(value) for index, value in enumerate(iou) if not value.isnan()},
        }
