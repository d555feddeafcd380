"""A student without its classifier: feature maps at several strides, for detection and segmentation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_reinforce.models.networks import named_member
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.models.students import is_architecture, student_preprocessing

FINEST_STRIDE = 4
"""Maps at smaller strides are left out: neither FPN nor the heads use them."""


class Backbone(nn.Module):
    """Feature maps of a network, one for each stride from 4 on.

    Args:
        library: `"timm"` or `"transformers"`.
        architecture: timm's name of the architecture, or transformers' `model_type`.
        arguments: of `timm.create_model`, or the transformers configuration.
        mean: per-channel mean of its input, for values scaled to [0, 1].
        std: per-channel standard deviation, likewise.
        weights: weights of the whole classifier by its own names; None: random ones.

    Attributes:
        spec: the arguments without the weights, as JSON: `Backbone(**spec)` builds the same network.
        channels: of each map.
        strides: of each map in pixels, ascending.

    Raises:
        ValueError: if the network has no feature maps.
    """

    def __init__(
        self,
        library: str,
        architecture: str,
        arguments: Mapping[str, Any],
        mean: Sequence[float],
        std: Sequence[float],
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.spec: dict[str, Any] = {
            "library": library,
            "architecture": architecture,
            "arguments": dict(arguments),
            "mean": list(mean),
            "std": list(std),
        }
        build = _timm_network if library == "timm" else _transformers_network
        self.network, channels, strides = build(architecture, arguments, weights)
        last = {stride: level for level, stride in enumerate(strides) if stride >= FINEST_STRIDE}
        self._levels = sorted(last.values())
        self.channels = [channels[level] for level in self._levels]
        self.strides = [strides[level] for level in self._levels]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps [B, channels[i], H / strides[i], W / strides[i]] of normalised images [B, 3, H, W]."""
        output = self.network(images)
        maps = getattr(output, "feature_maps", output)
        found = [maps[level] for level in self._levels]
        # Some networks, such as timm's Swin, have their channels last.
        return [
            each if each.shape[1] == width else each.permute(0, 3, 1, 2).contiguous()
            for each, width in zip(found, self.channels, strict=True)
        ]

    def load_weights_of(self, other: "Backbone") -> None:
        """Takes over the weights of the same backbone, whose batch norms may be trainable where these are fixed."""
        own = self.state_dict()
        self.load_state_dict({name: value for name, value in other.state_dict().items() if name in own})


def load_backbone(
    name_or_path: str, model_args: Mapping[str, Any] | None = None, revision: str | None = None
) -> Backbone:
    """The backbone of a student, with its weights.

    Args:
        name_or_path: a folder that `recipes/train_kd.py` has written, any other folder or Hub id of a timm or
            transformers classifier; or a timm architecture such as `resnet10t`, which gets random weights.
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
        own = Preprocessing(224)
        return Backbone("timm", name_or_path, given, own.mean, own.std)
    member = named_member(name_or_path, revision=revision, head=False)
    network: Any = getattr(member.model, "timm_model", member.model)
    if getattr(network, "pretrained_cfg", None):
        saved = getattr(getattr(member.model, "config", None), "model_args", None)
        saved = saved or getattr(network, "pretrained_model_args", None) or {}
        arguments = {key: value for key, value in saved.items() if key != "num_classes"} | given
        own = student_preprocessing(member.model) if member.kind == "transformers" else member.preprocessing
        architecture = str(network.pretrained_cfg["architecture"])
        return Backbone("timm", architecture, arguments, own.mean, own.std, network.state_dict())
    if given:
        raise ValueError(f"{name_or_path} is a network of transformers, which takes no timm arguments {given}.")
    config = network.config
    # A backbone's configuration has no classifier, but says which maps are wanted.
    config.out_indices = list(range(1, len(getattr(config, "stage_names", None) or [])))
    prefix = f"{network.base_model_prefix}."
    weights = {name.removeprefix(prefix): value for name, value in network.state_dict().items()}
    own = member.preprocessing or Preprocessing(224)
    if own.channels != "RGB":
        raise ValueError(
            f"{name_or_path} wants its channels as {own.channels}, which detectors and segmenters don't give it."
        )
    return Backbone("transformers", config.model_type, config.to_dict(), own.mean, own.std, weights)


def _timm_network(
    architecture: str, arguments: Mapping[str, Any], weights: Mapping[str, Tensor] | None
) -> tuple[nn.Module, list[int], list[int]]:
    import timm

    try:
        network: Any = timm.create_model(
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
    return network, list(network.feature_info.channels()), list(network.feature_info.reduction())


def _transformers_network(
    architecture: str, arguments: Mapping[str, Any], weights: Mapping[str, Tensor] | None
) -> tuple[nn.Module, list[int], list[int]]:
    from transformers import AutoBackbone, AutoConfig

    try:
        config = AutoConfig.for_model(architecture, **{k: v for k, v in arguments.items() if k != "model_type"})
        network: Any = AutoBackbone.from_config(config, trust_remote_code=False)
    except (ValueError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{architecture!r} is no backbone that transformers knows, so it has no feature maps; take a timm "
            "network, or one of transformers' ResNet, ConvNeXt, Swin or DINOv2."
        ) from error
    if weights is not None:
        missing = network.load_state_dict(weights, strict=False).missing_keys
        strangers = [name for name in missing if "norm" not in name]  # a backbone has norms of its own for its maps
        if strangers:
            raise ValueError(f"The {architecture} lacks weights of its backbone, such as {strangers[0]!r}.")
    side = 64
    with torch.no_grad():
        maps = network.eval()(torch.zeros(1, 3, side, side)).feature_maps
    return network.train(), list(network.channels), [side // each.shape[-1] for each in maps]
