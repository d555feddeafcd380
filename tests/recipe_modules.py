"""The recipes as modules, by path: `evaluate` is also the name of a package."""

import contextlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

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


class Asked(Exception):
    """A recipe has asked for its flags."""


def flag_classes(name: str) -> list[type]:
    """The dataclasses whose fields are the flags of a recipe."""

    def parse(description, classes, further=tuple, *args, **options):
        raise Asked([*classes, *further()])

    modules = [load_recipe(name), sys.modules.get("detect")]  # segment.py has its flags parsed there
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", [name]))
        for module in (module for module in modules if hasattr(module, "parse")):
            stack.enter_context(mock.patch.object(module, "parse", parse))
        try:
            load_recipe(name).main()
        except Asked as asked:
            return asked.args[0]
    raise AssertionError("it asks for no flags")


def parse_flags(name: str, argv: list[str], **options) -> dict:
    """The values of all flags that a recipe makes of its arguments."""
    parsed = load_recipe("arguments").parse("", flag_classes(name), argv=argv, **options)
    return {flag: value for values in parsed for flag, value in vars(values).items()}
