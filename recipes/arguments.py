"""Command lines of the recipes: flags, or a YAML file and flags that override it."""

import dataclasses
import difflib
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

YAML = (".yaml", ".yml")
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
REPLACED = {"--images_on_device": "--cache_images", "--timm_scheduler": "--lr_scheduler_type"}
"""Flags of earlier versions, and what is given instead."""

# Numbers that are at least 1, and those that are at least 0, of any recipe or of transformers.TrainingArguments.
POSITIVE = """num_samples top_k image_size input_size batch_size shard_size max_samples max_train_samples
max_eval_samples max_records num_resamples jobs num_classes num_labels min_size max_size fpn_channels train_size
num_epochs teacher_epochs num_seeds per_device_train_batch_size per_device_eval_batch_size repeated_augmentation
gradient_accumulation_steps"""
NOT_NEGATIVE = """num_workers dataloader_num_workers num_images seed seeds learning_rate learning_rates
num_train_epochs plain_fraction weight_decay aux_weight minutes warmup_steps"""
LEAST = {name: least for least, names in ((1, POSITIVE), (0, NOT_NEGATIVE)) for name in names.split()}

if os.environ.get("RANK", "0") != "0":  # progress bars belong to the main process; libraries read this when imported
    for library in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ[library] = "1"


def option(help: str, default: Any = None) -> Any:
    """A dataclass field with a help text."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def required(help: str) -> Any:
    """A dataclass field without a default."""
    return dataclasses.field(metadata={"help": help})


def parse(
    description: str,
    classes: Sequence[type],
    further: Callable[[], Sequence[type]] = tuple,
    further_help: str = "",
    argv: Sequence[str] | None = None,
    first: str | None = None,
    defaults: dict[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Parses `[FILE.yaml] [--flag value ...]` into dataclasses, and starts the logging that `--log_level` asks for.

    Args:
        description: first lines of `--help`.
        classes: dataclasses whose fields are the recipe's own flags.
        further: returns dataclasses that are slow to import; `--help` never calls it.
        further_help: last lines of `--help`, about these.
        argv: arguments, default those of the process.
        first: the flag that may be left out before the first words.
        defaults: of flags that have another default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if first and argv and not argv[0].startswith("-") and not argv[0].endswith(YAML):
        argv.insert(0, f"--{first}")
    if "-h" in argv or "--help" in argv:
        print(_help(description, classes, further_help))
        raise SystemExit(0)
    from transformers import HfArgumentParser

    def error(message: str) -> None:
        raise ValueError(f"{message}; --help lists the flags.")

    parser = HfArgumentParser([*classes, *further()], allow_abbrev=False)
    parser.error = error
    own = all(action.dest != "log_level" for action in parser._actions)  # transformers.TrainingArguments has it too
    if own:
        parser.add_argument("--log_level", choices=LOG_LEVELS)
    parser.set_defaults(**defaults or {})
    parsed = parser.parse_args_into_dataclasses(args=known_words(argv, parser), look_for_args_file=False)
    check_values(parsed)
    levels = next(values for values in parsed if hasattr(values, "log_level"))
    start_logging(levels.log_level, getattr(levels, "log_level_replica", "warning"))
    return parsed[:-1] if own else parsed


def known_words(argv: list[str], parser: Any) -> list[str]:
    """The arguments, with the flags of a YAML file instead of its name; all must be flags of the parser."""
    known = {name for action in parser._actions for name in action.option_strings}
    words = with_file(argv)
    for place, word in enumerate(words):
        name = word.partition("=")[0]
        if name.startswith("--") and name not in known:
            where = f" in {argv[0]}" if words != argv and place <= len(words) - len(argv) else ""
            meant = [REPLACED[name]] if REPLACED.get(name) in known else difflib.get_close_matches(name, known, 1)
            advice = f"did you mean {meant[0]}? " if meant else ""
            raise ValueError(f"There is no flag {name}{where}; {advice}--help lists the flags.")
    return words


def with_file(argv: list[str]) -> list[str]:
    """The arguments, with the flags of a YAML file instead of its name."""
    from hf_reinforce.augmentations.documents import read_document

    if not argv or not argv[0].endswith(YAML):
        return argv
    if not Path(argv[0]).is_file():
        raise ValueError(f"There is no file {argv[0]}.")
    values = read_document(Path(argv[0])) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{argv[0]} must hold flags, a line `flag: value` for each, not a {type(values).__name__}.")
    flags = []
    for key, value in values.items():
        if value is not None:
            words = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            flags += [f"--{key}", *map(str, words)]
    return [*flags, *argv[1:]]


def _help(description: str, classes: Sequence[type], further_help: str) -> str:
    lines = [f"usage: {Path(sys.argv[0]).name} [FILE.yaml] [--flag value ...]", "", description.strip(), ""]
    for field in (field for cls in classes for field in dataclasses.fields(cls)):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = None if field.default is dataclasses.MISSING else field.default
        note = " (required)" if required else "" if default is None else f" (default: {default})"
        lines.append(f"  --{field.name:24} {field.metadata['help']}{note}")
    lines.append(f"  --{'log_level':24} {', '.join(LOG_LEVELS)}; default info, of other libraries warning.")
    return "\n".join([*lines, "", further_help.strip()]).rstrip()


def check_values(parsed: Sequence[Any]) -> None:
    """Refuses an empty text, a number below the least one, and an output folder that cannot be one."""
    fields = [field for values in filter(dataclasses.is_dataclass, parsed) for field in dataclasses.fields(values)]
    may_be_empty = {"label_column_name", *(field.name for field in fields if field.default == "")}
    for flag, value in (item for values in parsed for item in vars(values).items()):
        if value == "" and flag not in may_be_empty:
            raise ValueError(f"--{flag} is empty; give it a value, or leave it out.")
        if flag == "crop_pct" and value is not None and not 0 < value <= 1:
            raise ValueError(f"--crop_pct must lie above 0 and be at most 1, not {value}.")
        for number in value if isinstance(value, list) else [value]:
            if flag in LEAST and isinstance(number, (int, float)) and not number >= LEAST[flag]:
                raise ValueError(f"--{flag} must be at least {LEAST[flag]}, not {number}.")
        if flag in ("output_dir", "output_json") and value:
            path = Path(value).absolute()
            folder = path if flag == "output_dir" else path.parent
            there = next(place for place in (folder, *folder.parents) if place.exists() or place.is_symlink())
            if not there.is_dir() or not os.access(there, os.W_OK):
                raise ValueError(f"--{flag} {value}: {there} is no folder to write to; choose another one.")
            if flag == "output_json" and path.is_dir():
                raise ValueError(f"--{flag} {value} is a folder; name a file.")


def check_device(name: str | None) -> None:
    """Refuses a `--device` that this machine does not have."""
    import torch

    try:
        torch.zeros(2, device=name).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"There is no device {name!r} here ({reason}); leave out --device, or give cpu.") from error


def process() -> tuple[int, int]:
    """Rank of this process and how many there are, as torchrun and accelerate say it in the environment."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def start_logging(level: str | None = None, replica_level: str = "warning") -> None:
    """Writes what is logged to stderr, a line with the rank where there are several processes.

    Without a level, or `passive`, it is what this project says from info on, and of everything else the warnings.
    """
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


def json_object(flag: str, text: str | None, kinds: Any = dict, expected: str = "an object in JSON") -> Any:
    """The value of a flag that holds a JSON object, empty where it is not given."""
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"--{flag} must be {expected}, not {text!r} ({error}).") from error
    if not isinstance(found, kinds):
        raise ValueError(f"--{flag} must be {expected}, not {text!r}.")
    return found


def class_map(text: str | None) -> Any:
    """The value of `--class_map`: nothing, `identity`, or a list or object in JSON."""
    if text in (None, "identity"):
        return text
    return json_object("class_map", text, (list, dict), "identity, or a list or object in JSON")
