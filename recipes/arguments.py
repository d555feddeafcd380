"""Command lines of the recipes: flags, or a YAML file and flags that override it."""

import dataclasses
import difflib
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from checks import check_values

_OF_THE_FILE = {"selection", "plain_fraction", "save_steps", "save_total_limit"}
DROPPED = {
    "images_on_device": "give --cache_images True, which keeps decoded images in memory, also large ones.",
    "timm_scheduler": "give --lr_scheduler_type, which names a schedule of transformers, such as cosine.",
}
"""Flags of earlier versions, and the sentence that names what replaces each."""

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
    parser = flag_parser([*classes, *further()])
    own = all(action.dest != "log_level" for action in parser._actions)  # transformers.TrainingArguments has it too
    if own:
        parser.add_argument("--log_level", choices=_LOG_LEVELS)
    parsed = parser.parse_args_into_dataclasses(args=known_words(argv, parser), look_for_args_file=False)
    check_values(parsed)
    levels = next(values for values in parsed if hasattr(values, "log_level"))
    start_logging(levels.log_level, getattr(levels, "log_level_replica", "warning"))
    return parsed[:-1] if own else parsed


def flag_parser(classes: Sequence[type]) -> Any:
    """A parser of the flags of dataclasses, that raises ValueError for what it cannot parse."""
    from transformers import HfArgumentParser

    def error(message: str) -> None:
        raise ValueError(f"{message}; --help lists the flags.")

    parser = HfArgumentParser(classes, allow_abbrev=False)
    parser.error = error
    return parser


def known_words(argv: list[str], parser: Any) -> list[str]:
    """The arguments with those of their YAML file.

    Raises:
        ValueError: for a flag that the parser does not know; the message names its replacement or the most similar
            flag.
    """
    known = {name for action in parser._actions for name in action.option_strings}
    words = with_file(argv)
    of_file = len(words) - len(argv) + 1 if is_file(argv) else 0
    for place, word in enumerate(words):
        name = word.partition("=")[0]
        if not name.startswith("--") or name in known:
            continue
        where = f" in {argv[0]}" if place < of_file else ""
        similar = difflib.get_close_matches(name, sorted(known), 1)
        meant = f"did you mean {similar[0]}? " if similar else ""
        advice = f"{meant}--help lists the flags."
        instead = DROPPED.get(name[2:].replace("-", "_"), advice)
        instead = instead if any(flag in instead.replace(",", "").split() for flag in known) else advice
        raise ValueError(f"There is no flag {name}{where}; {instead}")
    return words


def given(first: str | None = None) -> set[str]:
    """Names of the flags that the command line and its YAML file give.

    What a file says for its own way of training (`_OF_THE_FILE`) does not count where the command line has another.
    """
    argv = with_first_flag(sys.argv[1:], first)
    own, whole = (
        {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}
        for words in (argv, with_file(argv))
    )
    return whole - (_OF_THE_FILE - own) if own & {"method", "save_strategy"} else whole


def is_file(argv: Sequence[str]) -> bool:
    """Whether the first argument is a YAML file of flags."""
    return bool(argv) and argv[0].endswith((".yaml", ".yml"))


def with_first_flag(argv: list[str], first: str | None) -> list[str]:
    """The arguments, with the flag `first` before words that no flag and no YAML file comes before."""
    bare = argv and not argv[0].startswith("-") and not is_file(argv)
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


def with_file(argv: list[str]) -> list[str]:
    """The arguments, with the flags of a YAML file instead of its name.

    Raises:
        ValueError: if there is no such file, or it holds something else than flags.
    """
    return [*_flags_of_file(argv[0]), *argv[1:]] if is_file(argv) else argv


def _flags_of_file(path: str) -> list[str]:
    from hf_reinforce.augmentations.documents import read_document

    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    values = read_document(Path(path)) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold flags, a line `flag: value` for each, not a {type(values).__name__}.")
    flags = []
    for key, value in values.items():
        if value is None:
            continue
        if isinstance(value, dict):
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
            if isinstance(error, OSError) and error.filename:
                text = f"{error.filename}: {error.strerror}"
            if text.startswith("Caught "):  # a worker of a DataLoader sends its whole traceback as the message
                text = text.strip().splitlines()[-1].partition(": ")[2]
            rank, world = process()
            raise SystemExit(f"{f'[RANK {rank}] ' if world > 1 else ''}error: {' '.join(text.split())}") from error

    return wrapped


def write_json(path: str | Path, content: Any) -> None:
    """Writes a JSON file and the folders that lead to it."""
    from hf_reinforce.store.atomic import write_whole

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), json.dumps(content, indent=1) + "\n")


def class_map(text: str | None) -> Any:
    """The value of `--class_map`: nothing, `identity`, or a list or object in JSON.

    Raises:
        ValueError: for anything else.
    """
    if text in (None, "identity"):
        return text
    return _from_json("class_map", text, (list, dict), "identity, or a list or object in JSON")


def json_object(flag: str, text: str | None) -> Any:
    """The value of a flag that holds a JSON object, empty where it is not given.

    Raises:
        ValueError: for anything else.
    """
    return _from_json(flag, text or "{}", dict, "an object in JSON")


def _from_json(flag: str, text: str | None, kinds: Any, expected: str) -> Any:
    try:
        found = json.loads(text or "")
    except ValueError as error:
        raise ValueError(f"--{flag} must be {expected}, not {text!r} ({error}).") from error
    if not isinstance(found, kinds):
        raise ValueError(f"--{flag} must be {expected}, not {text!r}.")
    return found


def option(help: str, default: Any = None) -> Any:
    """A dataclass field with a help text."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def required(help: str) -> Any:
    """A dataclass field without a default."""
    return dataclasses.field(metadata={"help": help})
