"""Command lines of the recipes: flags, or a YAML file and flags that override it."""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def parse(
    description: str,
    classes: Sequence[type],
    further: Callable[[], Sequence[type]] = tuple,
    further_help: str = "",
    argv: Sequence[str] | None = None,
) -> tuple[Any, ...]:
    """Parses `[FILE.yaml] [--flag value ...]` into dataclasses.

    Args:
        description: first lines of `--help`.
        classes: dataclasses whose fields are the recipe's own flags.
        further: returns dataclasses that are slow to import; `--help` never calls it.
        further_help: last lines of `--help`, about these.
        argv: arguments, default those of the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "-h" in argv or "--help" in argv:
        print(_help(description, classes, further_help))
        raise SystemExit(0)
    from transformers import HfArgumentParser

    usage = f"{Path(sys.argv[0]).name} [FILE.yaml] [--flag value ...]; --help lists the flags"
    parser = HfArgumentParser([*classes, *further()], allow_abbrev=False, usage=usage)
    if argv and argv[0].endswith((".yaml", ".yml")):
        argv = [*_flags_of_file(argv[0], parser), *argv[1:]]
    return parser.parse_args_into_dataclasses(args=argv, look_for_args_file=False)


def _flags_of_file(path: str, parser: argparse.ArgumentParser) -> list[str]:
    import yaml

    if not Path(path).exists():
        parser.error(f"there is no file {path}")
    values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    known = {action.dest for action in parser._actions}
    unknown = sorted(set(values) - known)
    if unknown:
        parser.error(f"{path} has unknown keys {unknown}; --help lists the flags")
    flags = []
    for key, value in values.items():
        if value is None:
            continue
        if isinstance(value, dict):
            import json

            value = json.dumps(value)
        flags += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return flags


def _help(description: str, classes: Sequence[type], further_help: str) -> str:
    lines = [f"usage: {Path(sys.argv[0]).name} [FILE.yaml] [--flag value ...]", "", description.strip(), ""]
    for cls in classes:
        for field in dataclasses.fields(cls):
            default = field.default if field.default is not dataclasses.MISSING else None
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            note = " (required)" if required else "" if default is None else f" (default: {default})"
            lines.append(f"  --{field.name:24} {field.metadata.get('help', '')}{note}")
    return "\n".join([*lines, "", further_help.strip()]).rstrip()


def one_line_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Decorates a recipe's `main`: what the user can mend ends it with one line instead of a traceback."""

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            main()
        except (ValueError, OSError) as error:
            text = str(error)
            if text.startswith("Caught "):  # a worker of a DataLoader sends its whole traceback as the message
                text = text.strip().splitlines()[-1].partition(": ")[2]
            raise SystemExit(f"error: {text}") from error

    return wrapped


def write_json(path: str | Path, content: Any) -> None:
    """Writes a JSON file and the folders that lead to it."""
    import json

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(f"{path}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)  # whoever reads it meanwhile sees all of it or nothing


def class_map(text: str | None) -> Any:
    """The value of `--class_map`: nothing, `identity`, or a list or object in JSON.

    Raises:
        ValueError: for anything else.
    """
    if text in (None, "identity"):
        return text
    import json

    try:
        found = json.loads(text or "")
    except ValueError as error:
        raise ValueError(f"--class_map must be identity, or a list or object in JSON, not {text!r}.") from error
    if not isinstance(found, (list, dict)):
        raise ValueError(f"--class_map must be identity, or a list or object in JSON, not {text!r}.")
    return found


def option(help: str, default: Any = None) -> Any:
    """A dataclass field with a help text."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def required(help: str) -> Any:
    """A dataclass field without a default."""
    return dataclasses.field(metadata={"help": help})
