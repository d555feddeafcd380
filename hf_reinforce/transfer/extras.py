"""Packages that only some tasks need."""

import importlib
from typing import Any


class MissingPackageError(ImportError, ValueError):
    """An optional package that is not installed."""


def optional(module: str) -> Any:
    """An optional module by its full name, such as `sklearn.linear_model`; the error says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingPackageError(f"This needs {package} ({error}); pip install 'hf-reinforce[transfer]'.") from error
