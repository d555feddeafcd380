"""Networks for images of 32 pixels that papers on distillation compare, in timm's registry.

timm's own networks reduce an image by 2 or 4 in their first layer. `timm.create_model("cifar_resnet20")` makes one of
these, and so does every flag that takes a timm architecture.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
"""Of CIFAR-100's training images, RGB in [0, 1]."""


class CifarNetwork(nn.Module):
    """Convolutions, the mean over space, and a linear layer, with the methods that timm asks of a classifier; with 0
    classes it gives the mean features instead."""

    def __init__(self, stem: nn.Module, blocks: Iterable[nn.Module], num_features: int, num_classes: int) -> None:
        super().__init__()
        self.stem, self.blocks = stem, nn.Sequential(*blocks)
        self.num_features = self.head_hidden_size = num_features
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """The linear layer, an identity without classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the linear layer by a new one; the pooling stays the mean, timm's `"avg"`."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"A CifarNetwork pools with 'avg', not {global_pool!r}.")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Features [B, C, H', W'] of normalised images [B, 3, H, W]."""
        features: Tensor = self.blocks(self.stem(x))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [B, num_classes] of features; with `pre_logits`, their mean over space [B, C]."""
        pooled = x.mean(dim=(2, 3))
        logits: Tensor = pooled if pre_logits else self.head(pooled)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of normalised images [B, 3, H, W]."""
        return self.forward_head(self.forward_features(x))


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def _conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs))


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv_norm(inputs, outputs, stride=stride), nn.ReLU(), _conv_norm(outputs, outputs))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.shortcut(x)
        return out.relu()


class _PreactivationBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.preact = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        conv = _conv(inputs, outputs, stride=stride)
        self.body = nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(), _conv(outputs, outputs))
        self.shortcut = None if inputs == outputs else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        act = self.preact(x)
        out: Tensor = self.body(act) + (x if self.shortcut is None else self.shortcut(act))
        return out


class _InvertedBlock(nn.Module):
    """Expansion, depthwise convolution, projection; at stride 1 then squeeze-and-excitation and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: float) -> None:
        super().__init__()
        hidden = int(expansion * inputs)
        self.expand = _conv_norm(inputs, hidden, 1)
        self.depthwise = _conv_norm(hidden, hidden, stride=stride, groups=hidden)
        self.project = _conv_norm(hidden, outputs, 1)
        self.act = nn.Hardswish()
        self.excite = self.shortcut = None
        if stride == 1:
            self.excite = _SqueezeExcitation(outputs)
            self.shortcut = nn.Identity() if inputs == outputs else _conv_norm(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.act(self.depthwise(self.act(self.expand(x)))))
        return out if self.excite is None or self.shortcut is None else self.excite(out) + self.shortcut(x)


class _SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        down, up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), down, nn.Hardswish(), up, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x)
        return out


def _stages(block: Callable[..., nn.Module], widths: Iterable[int], depth: int, inputs: int) -> Iterable[nn.Module]:
    """`depth` blocks of each width; the first one of every stage after the first halves the size."""
    for stage, width in enumerate(widths):
        for place in range(depth):
            yield block(inputs, width, 2 if stage and not place else 1)
            inputs = width


def resnet(depth: int, widths: Sequence[int], num_classes: int = 100, in_chans: int = 3) -> CifarNetwork:
    """ResNet of 6 n + 2 layers for CIFAR (He et al., 2016, arXiv:1512.03385, section 4.2); shortcuts are projections
    where the shape changes."""
    stem = nn.Sequential(*_conv_norm(in_chans, widths[0]), nn.ReLU())
    blocks = _stages(_ResidualBlock, widths[1:], (depth - 2) // 6, widths[0])
    return CifarNetwork(stem, blocks, widths[-1], num_classes)


def wide_resnet(depth: int, factor: int, num_classes: int = 100, in_chans: int = 3) -> CifarNetwork:
    """Wide ResNet of 6 n + 4 layers (Zagoruyko and Komodakis, 2016, arXiv:1605.07146), without dropout."""
    widths = [16 * factor, 32 * factor, 64 * factor]
    blocks = _stages(_PreactivationBlock, widths, (depth - 4) // 6, 16)
    last = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU())
    return CifarNetwork(_conv(in_chans, 16), [*blocks, last], widths[-1], num_classes)


def micronet(expansion: float, widths: Sequence[int], num_classes: int = 100, in_chans: int = 3) -> CifarNetwork:
    """A network of the MicroNet challenge (NeurIPS 2019), from github.com/Kthyeon/micronet_neurips_challenge."""
    blocks, inputs = list[nn.Module](), 32
    for width, count, stride in zip(widths, (2, 1, 1, 3, 1, 4, 1, 2, 1), (1, 2, 1, 1, 2, 1, 2, 1, 1), strict=True):
        for place in range(count):
            blocks.append(_InvertedBlock(inputs, width, 1 if place else stride, expansion))
            inputs = width
    stem = nn.Sequential(*_conv_norm(in_chans, 32), nn.Hardswish())
    return CifarNetwork(stem, blocks, inputs, num_classes)


_MICRONET_V1, _MICRONET_V2 = (16, 32, 32, 48, 72, 72, 80, 88, 106), (20, 36, 36, 56, 80, 80, 88, 96, 114)
_NETWORKS: dict[str, tuple[Callable[..., CifarNetwork], dict[str, Any]]] = {  # parameters with 100 classes
    "cifar_resnet20": (resnet, {"depth": 20, "widths": (16, 16, 32, 64)}),  # 278,324
    "cifar_resnet8x4": (resnet, {"depth": 8, "widths": (32, 64, 128, 256)}),  # 1,233,540
    "cifar_wrn_16_2": (wide_resnet, {"depth": 16, "factor": 2}),  # 703,284
    "cifar_micronet_v1": (micronet, {"expansion": 3.0, "widths": _MICRONET_V1}),  # 0.46 M
    "cifar_micronet_v2": (micronet, {"expansion": 2.5, "widths": _MICRONET_V2}),  # 0.48 M
}
_CFG = {"input_size": (3, 32, 32), "interpolation": "bilinear", "crop_pct": 1.0, "num_classes": 100}
_CFG |= {"mean": CIFAR_MEAN, "std": CIFAR_STD, "classifier": "head", "first_conv": "stem.0"}
default_cfgs = generate_default_cfgs(
    {name: _CFG | ({"first_conv": "stem"} if build is wide_resnet else {}) for name, (build, _) in _NETWORKS.items()}
)


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        build, arguments = _NETWORKS[name]
        return build_model_with_cfg(build, name, pretrained, **arguments, **kwargs)  # type: ignore[no-any-return]

    create.__name__ = name
    return create


for _name in _NETWORKS:
    register_model(_entry_point(_name))
