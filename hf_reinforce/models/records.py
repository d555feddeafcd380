"""What a network records about itself: its architecture, the names of its classes, the channels of its images."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_reinforce.models.classes import some, unnamed


def architecture(model: nn.Module) -> str:
    """What kind of network it is: timm's name of it, e.g. `resnet10t`, else its class."""
    sources = (getattr(model, "config", None), getattr(model, "pretrained_cfg", None))
    found = [item.get("architecture") for item in map(_as_dict, sources)]
    return next((str(name) for name in found if name), type(model).__name__)


def _as_dict(config: Any) -> Mapping[str, Any]:
    return config if isinstance(config, Mapping) else vars(config) if hasattr(config, "__dict__") else {}


def class_names(model: nn.Module, name: str) -> tuple[str, ...] | None:
    """Names of a network's classes in the order of its logits, as transformers or timm record them; None without.

    Args:
        model: the network.
        name: its name, for the error.

    Raises:
        ValueError: as `recorded_classes`.
    """
    named = recorded_classes(getattr(model, "config", None), name)
    names = named or _as_dict(getattr(model, "pretrained_cfg", None)).get("label_names")
    return tuple(map(str, names)) if names else None


def recorded_classes(config: Any, name: str) -> tuple[str, ...] | None:
    """Names of the classes in a configuration of transformers; None without.

    They are those of `id2label`, or of `label2id` where `id2label` holds only placeholders.

    Raises:
        ValueError: if the indices are not 0, 1, ..., or the two contradict each other.
    """
    found = _as_dict(config)
    named = {int(index): str(label) for index, label in (found.get("id2label") or {}).items()}
    places = {
        str(label): int(index) for label, index in (found.get("label2id") or {}).items() if str(index).isdecimal()
    }
    if not named:
        return None
    if set(named) != set(range(len(named))):
        raise ValueError(
            f"The id2label of {name} must number its classes 0 to {len(named) - 1}, but has the indices "
            f"{some(tuple(map(str, sorted(named))))}; mend its config.json."
        )
    names = tuple(named[index] for index in range(len(named)))
    if unnamed(names) and set(places.values()) == set(named):
        return tuple(sorted(places, key=lambda label: places[label])) if len(places) == len(named) else names
    wrong = [label for label, index in places.items() if label in names and named.get(index) != label]
    if wrong:
        raise ValueError(
            f"The id2label and label2id of {name} contradict each other about the class {wrong[0]!r} "
            f"({names.index(wrong[0])} and {places[wrong[0]]}); mend its config.json."
        )
    return names


def channels(model: nn.Module) -> int:
    """Channels of the images that it takes."""
    cfg = _as_dict(getattr(getattr(model, "timm_model", model), "pretrained_cfg", None))
    size = cfg.get("input_size") or (3,)
    return int(_as_dict(getattr(model, "config", None)).get("num_channels") or size[0])
