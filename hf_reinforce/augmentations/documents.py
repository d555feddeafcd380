"""Files that somebody else wrote: YAML and JSON, and the operations that they name. Whatever they hold, what is wrong
with it is a ValueError of one sentence."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import yaml

from hf_reinforce import schema
from hf_reinforce.augmentations import AUGMENTATIONS, MixAugmentation, ViewAugmentation

__all__ = ["read_document", "read_operation", "shortened"]  # a document's repr may be without end

_LEAST, _MOST = 1e-6, schema.MAX_IMAGE_SIDE
"""Between these is every number of an operation that is not 0."""
_KINDS = {
    int: f"a whole number up to {_MOST}",
    float: f"0 or a number from {_LEAST:g} to {_MOST}",
    str: "a text",
    bool: "true or false",
    tuple[float, float]: f"two numbers from {_LEAST:g} to {_MOST}",
}


def read_document(path: Path) -> Any:
    """The contents of a JSON file (`.json`), or of a YAML file.

    Raises:
        ValueError: if it cannot be read, or is neither; the message names the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except Exception as error:  # PyYAML raises whatever its constructors run into
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} is neither JSON nor YAML ({reason}).") from error


def read_operation(item: Any) -> ViewAugmentation | MixAugmentation:
    """The operation that `{name: {option: value}}` or a name alone stands for.

    Raises:
        ValueError: as `AugmentationPolicy.from_dict`.
    """
    if isinstance(item, str):
        item = {item: None}
    if not isinstance(item, Mapping) or len(item) != 1:
        raise ValueError(f"An operation is written as {{name: {{option: value}}}}; found {shortened(item)}.")
    ((name, options),) = item.items()
    if name not in AUGMENTATIONS:
        raise ValueError(f"Unknown operation {shortened(name)}. Known operations: {', '.join(AUGMENTATIONS)}.")
    kinds: dict[str, Any] = {field.name: field.type for field in fields(AUGMENTATIONS[name])}
    options = {} if options is None else options
    if not isinstance(options, Mapping) or not set(options) <= set(kinds):
        found = shortened(sorted(map(str, set(options) - set(kinds))) if isinstance(options, Mapping) else options)
        raise ValueError(f"Operation {name!r} takes the options {sorted(kinds)}; found {found}.")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    for key, value in values.items():
        if not _fits(value, kinds[key]):
            raise ValueError(f"{name}: {key} must be {_KINDS[kinds[key]]}, not {shortened(options[key])}.")
    return AUGMENTATIONS[name](**values)


def _fits(value: Any, kind: Any) -> bool:
    """Whether an option has the type that its field is declared with; numbers are moderate; True is none."""
    if kind in (str, bool):
        return isinstance(value, kind)
    if kind == tuple[float, float]:
        return isinstance(value, tuple) and len(value) == 2 and all(_fits(item, float) for item in value)
    number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    return number and (value == 0 or _LEAST <= abs(value) <= _MOST)
