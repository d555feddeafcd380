"""What a network records about itself: its architecture, the names of its classes, the channels of its images."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def architecture(model: nn.Module) -> str:
    """What kind of network it is: timm's name of it, e.g. `resnet10t`, else its class."""
    sources = (getattr(model, "config", None), getattr(model, "pretrained_cfg", None))
    found = [item.get("architecture") for item in map(_as_dict, sources)]
    return next((str(name) for name in found if name), type(model).__name__)


def _as_dict(config: Any) -> Mapping[str, Any]:
    return config if isinstance(config, Mapping) else vars(config) if hasattr(config, "__dict__") else {}


def class_names(model: nn.Module) -> tuple[str, ...] | None:
    """Names of a network's classes in the order of its logits, as transformers or timm record them; None without."""
    named = _as_dict(getattr(model, "config", None)).get("id2label")
    if named:
        places = {int(index): str(name) for index, name in named.items()}
        return tuple(places[index] for index in range(len(places))) if set(places) == set(range(len(places))) else None
    names = _as_dict(getattr(model, "pretrained_cfg", None)).get("label_names")
    return tuple(map(str, names)) if names else None


def channels(model: nn.Module) -> int:
    """Channels of the images that it takes."""
    cfg = _as_dict(getattr(getattr(model, "timm_model", model), "pretrained_cfg", None))
    size = cfg.get("input_size") or (3,)
    return int(_as_dict(getattr(model, "config", None)).get("num_channels") or size[0])
