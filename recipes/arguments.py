"""Command lines of the recipes: flags, or a YAML file and flags that override it."""

import argparse
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_LOG_LEVELS = ("debug", "info", "warning", "error", "critical")

if os.environ.get("RANK", "0") != "0":  # progress bars belong to the main process; libraries read this when imported
    os.environ |= dict.fromkeys(
        ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"), "1"
    )


def parse(
    description: str,
    classes: Sequence[type],
    further: Callable[[], Sequence[type]] = tuple,
    further_help: str = "",
    argv: Sequence[str] | None = None,
    first: str | None = None,
) -> tuple[Any, ...]:
    """Parses `[FILE.yaml] [--flag value ...]` into dataclasses, and starts the logging that `--log_level` asks for.

    Args:
        description: first lines of `--help`.
        classes: dataclasses whose fields are the recipe's own flags.
        further: returns dataclasses that are slow to import; `--help` never calls it.
        further_help: last lines of `--help`, about these.
        argv: arguments, default those of the process.
        first: the flag that may be left out before the first words.
    """
    argv = with_first_flag(list(sys.argv[1:] if argv is None else argv), first)
    if "-h" in argv or "--help" in argv:
        print(_help(description, classes, further_help))
        raise SystemExit(0)
    from transformers import HfArgumentParser

    usage = f"{Path(sys.argv[0]).name} [FILE.yaml] [--flag value ...]; --help lists the flags"
    parser = HfArgumentParser([*classes, *further()], allow_abbrev=False, usage=usage)
    if argv and argv[0].endswith((".yaml", ".yml")):
        argv = [*_flags_of_file(argv[0], parser), *argv[1:]]
    own = all(action.dest != "log_level" for action in parser._actions)  # transformers.TrainingArguments has it too
    if own:
        parser.add_argument("--log_level", choices=_LOG_LEVELS)
    parsed = parser.parse_args_into_dataclasses(args=argv, look_for_args_file=False)
    levels = next(values for values in parsed if hasattr(values, "log_level"))
    start_logging(levels.log_level, getattr(levels, "log_level_replica", "warning"))
    return parsed[:-1] if own else parsed


def with_first_flag(argv: list[str], first: str | None) -> list[str]:
    """The arguments, with the flag `first` before words that no flag and no YAML file comes before."""
    bare = argv and not argv[0].startswith("-") and not argv[0].endswith((".yaml", ".yml"))
    return [f"--{first}", *argv] if first and bare else argv


def process() -> tuple[int, int]:
    """Rank of this process and how many there are, as torchrun and accelerate say it in the environment."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def start_logging(level: str | None = None, replica_level: str = "warning") -> None:
    """Writes what is logged to stderr, a line with the rank where there are several processes.

    Args:
        level: least level of a line of the main process; None or `passive`: what this project says from info on, and
            of everything else the warnings.
        replica_level: least level of the other processes.
    """
    import logging

    import datasets
    import huggingface_hub
    import transformers

    rank, world = process()
    chosen = replica_level if rank else level
    general = chosen.upper() if chosen not in (None, "passive", "detail") else None
    place = f"[RANK {rank}] " if world > 1 else ""
    logging.basicConfig(level=general or "WARNING", format=f"{place}%(levelname)s:%(name)s: %(message)s")
    logging.getLogger("hf_reinforce").setLevel(general or "INFO")
    for client in ("httpx", "httpx2", "httpcore", "urllib3", "botocore"):  # they log addresses with signatures
        logging.getLogger(client).setLevel(max(logging.WARNING, logging.getLogger().level))
    for library in (datasets, huggingface_hub, transformers):
        logger = logging.getLogger(library.__name__)
        logger.handlers.clear()  # its own, which know no rank; datasets would say everything twice
        logger.propagate = True
        if general:
            logger.setLevel(general)


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
    lines.append(f"  --{'log_level':24} {', '.join(_LOG_LEVELS)}; default info, of other libraries warning.")
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
            rank, world = process()
            raise SystemExit(f"{f'[RANK {rank}] ' if world > 1 else ''}error: {text}") from error

    return wrapped


def write_json(path: str | Path, content: Any) -> None:
    """Writes a JSON file and the folders that lead to it."""
    import json

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(f"{path}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)  # whoever reads it meanwhile sees all of it or nothing


def check_same_run(output_dir: str | Path, asked: dict[str, Any], write: bool) -> None:
    """Refuses to go on with what was begun with other settings.

    Args:
        output_dir: folder of the run; its `run.json` keeps the settings.
        asked: settings of this run; those that the file lacks are not compared.
        write: whether this process writes the file where there is none.

    Raises:
        ValueError: if a setting differs; the message names it.
    """
    import json

    path = Path(output_dir) / "run.json"
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        different = [
            f"{key}: {value!r}, not {there[key]!r}" for key, value in asked.items() if value != there.get(key, value)
        ]
        if different:
            raise ValueError(
                f"{output_dir} holds another run ({'; '.join(different)}); choose another --output_dir, or ask for "
                "the same."
            )
    elif write:
        write_json(path, asked)


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
