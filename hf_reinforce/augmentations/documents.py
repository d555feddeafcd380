"""Files that somebody else wrote: whatever they hold, what is wrong with it is a ValueError of one sentence."""

import json
from pathlib import Path
from reprlib import Repr
from typing import Any

import yaml

_SHORT = Repr()
_SHORT.maxlevel = 2
shortened = _SHORT.repr
"""The beginning of a document's repr, which may be without end."""


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
        fault = "cannot be read" if isinstance(error, OSError) else "is neither JSON nor YAML"
        raise ValueError(f"{path} {fault} ({reason}).") from error
