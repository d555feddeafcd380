"""Names of datasets and models: a Hub id, a folder, or a local copy of what a Hub id names."""

import os
from pathlib import Path

LOCAL_VARIABLE = "HF_REINFORCE_LOCAL"
"""Folders, separated as in PATH, that hold local copies of Hub repositories under the last part of their id."""


def resolve(name: str) -> str:
    """Where a Hub id or a folder is to be loaded from.

    It is `name` itself if it is a folder; the first `DIR/cifar100` that exists for a Hub id `uoft-cs/cifar100`, `DIR`
    being a folder of the environment variable `HF_REINFORCE_LOCAL`; else `name`, which the Hub clients look up.

    Raises:
        ValueError: if the name is empty.
        OSError: if the system refuses it as a path, for instance as too long.
    """
    if not str(name).strip():
        raise ValueError("The name is empty; give a Hub id, such as 'uoft-cs/cifar100', or a folder.")
    last = name.rsplit("/", 1)[-1]
    if not Path(name).exists() and last not in ("", ".", ".."):
        for folder in os.environ.get(LOCAL_VARIABLE, "").split(os.pathsep):
            if folder and (Path(folder) / last).exists():
                return str(Path(folder) / last)
    return name
