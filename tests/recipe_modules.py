"""The recipes as modules, by path: `evaluate` is also the name of a package."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

RECIPES = Path(__file__).parent.parent / "recipes"


def load_recipe(name: str) -> ModuleType:
    """The module of `recipes/NAME.py`; beside it stands `arguments`, which recipes import."""
    if str(RECIPES) not in sys.path:
        sys.path.append(str(RECIPES))  # last, so that it hides nothing
    module_name = name if name == "arguments" else f"recipe_{name}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, RECIPES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses and HfArgumentParser look their module up
        spec.loader.exec_module(module)
    return sys.modules[module_name]
