"""A student without its classifier: feature maps at several strides, for detection and segmentation."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import timm
from huggingface_hub import PyTorchModelHubMixin
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from hf_reinforce.models.networks import named_member
from hf_reinforce.models.students import is_architecture, student_preprocessing

FINEST_STRIDE = 4
"""Maps at smaller strides are left out: neither FPN nor the heads use them."""


class Backbone(nn.Module):
    """Feature maps of a network of timm, one for each stride from 4 on.

    Args:
        architecture: timm's name of it.
        arguments: of `timm.create_model`.
        mean: per-channel mean of its input, for values scaled to [0, 1].
        std: per-channel standard deviation, likewise.
        weights: weights of the whole classifier by its own names; None: random ones.
        library: `"timm"`.

    Attributes:
        spec: the arguments without the weights, as JSON: `Backbone(**spec)` builds the same network.
        channels: of each map.
        strides: of each map in pixels, ascending.
    """

    def __init__(
        self,
        architecture: str,
        arguments: Mapping[str, Any],
        mean: Sequence[float],
        std: Sequence[float],
        weights: Mapping[str, Tensor] | None = None,
        library: str = "timm",
    ) -> None:
        super().__init__()
        own = {"library": library, "architecture": architecture, "arguments": dict(arguments)}
        self.spec: dict[str, Any] = {**own, "mean": list(mean), "std": list(std)}
        try:
            self.network: Any = timm.create_model(
                architecture,
                features_only=True,
                pretrained=weights is not None,
                pretrained_cfg_overlay={"state_dict": dict(weights), "source": ""} if weights else None,
                **arguments,
            )
        except (AttributeError, RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
            raise ValueError(
                f"timm gives {architecture!r} no feature maps with the arguments {arguments} ({error}); take other "
                "--model_args, or a network such as a ResNet, EfficientNet, MobileNet or Swin."
            ) from error
        maps = self.network.feature_info
        last = {stride: level for level, stride in enumerate(maps.reduction()) if stride >= FINEST_STRIDE}
        self._levels = sorted(last.values())
        self.channels = [maps.channels()[level] for level in self._levels]
        self.strides = [maps.reduction()[level] for level in self._levels]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps [B, channels[i], H / strides[i], W / strides[i]] of normalised images [B, 3, H, W]."""
        maps = self.network(images)
        # Some networks, such as timm's Swin, have their channels last.
        return [
            maps[level] if maps[level].shape[1] == width else maps[level].permute(0, 3, 1, 2).contiguous()
            for level, width in zip(self._levels, self.channels, strict=True)
        ]


class OnBackbone(nn.Module, PyTorchModelHubMixin):  # type: ignore[misc]
    """A network with a `Backbone` as `network.backbone.body`; its first arguments are the backbone's `spec` and names.

    `from_pretrained(folder or Hub id)` loads one.
    """

    network: Any

    @classmethod
    def of(cls, backbone: Backbone, class_names: Sequence[str], **options: Any) -> Self:
        """A network with the weights of a backbone; `options` are those of the class."""
        found = cls(backbone.spec, list(class_names), **options)  # its batch norms may be fixed, without a counter
        found.backbone.load_state_dict({n: backbone.state_dict()[n] for n in found.backbone.state_dict()})
        return found

    @property
    def backbone(self) -> Backbone:
        """The network whose feature maps are used."""
        body: Backbone = self.network.backbone.body
        return body


def load_backbone(
    name_or_path: str, model_args: Mapping[str, Any] | None = None, revision: str | None = None
) -> Backbone:
    """The backbone of a student, with its weights.

    Args:
        name_or_path: a folder that `recipes/train_kd.py` has written, any other folder or Hub id of a classifier of
            timm; or a timm architecture such as `resnet10t`, which gets random weights.
        model_args: further arguments of `timm.create_model`, e.g. `{"output_stride": 8}`.
        revision: Hub revision.

    Raises:
        ValueError: if there is no such network, or it has no feature maps.

    Example:
        import torch
        from hf_reinforce import load_backbone

        maps = load_backbone("resnet10t")(torch.rand(1, 3, 64, 64))  # one map for each stride from 4 on
    """
    given = dict(model_args or {})
    if is_architecture(name_or_path):
        return Backbone(name_or_path, given, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    member = named_member(name_or_path, revision=revision, head=False)
    network: Any = getattr(member.model, "timm_model", member.model)
    if not getattr(network, "pretrained_cfg", None):
        raise ValueError(
            f"{name_or_path} is no network of timm, so it has no feature maps here; take timm's of its kind."
        )
    saved = getattr(getattr(member.model, "config", None), "model_args", None)
    saved = saved or getattr(network, "pretrained_model_args", None) or {}
    arguments = {key: value for key, value in saved.items() if key != "num_classes"} | given
    own = student_preprocessing(member.model) if member.kind == "transformers" else member.preprocessing
    return Backbone(network.pretrained_cfg["architecture"], arguments, own.mean, own.std, network.state_dict())
