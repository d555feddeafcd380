"""What is asked of a command line before anything is spent: flags, values, folders and devices that cannot be"""

import argparse
import dataclasses
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The least value of each number, of whichever recipe or of transformers.TrainingArguments.
_LEAST = {
    name: least
    for least, names in {
        1: "num_samples top_k image_size input_size batch_size shard_size max_samples max_train_samples "
        "max_eval_samples max_records num_resamples jobs num_classes num_labels min_size max_size fpn_channels "
        "train_size num_epochs teacher_epochs num_seeds per_device_train_batch_size per_device_eval_batch_size "
        "repeated_augmentation gradient_accumulation_steps",
        0: "num_workers dataloader_num_workers num_images seed seeds learning_rate learning_rates num_train_epochs "
        "plain_fraction weight_decay aux_weight minutes warmup_steps",
    }.items()
    for name in names.split()
}

_DROPPED = {"images_on_device": "give --cache_images True, which keeps decoded images in memory, also large ones"}
"""What takes the place of a flag that there was."""


def known_flags(argv: list[str], parser: argparse.ArgumentParser, where: str = "") -> list[str]:
    """The arguments, all of whose flags the parser knows.

    Args:
        argv: the arguments.
        parser: of the recipe.
        where: where they stand, for the message.

    Raises:
        ValueError: for a flag that it does not know; the message names the most similar one.
    """
    known = {name for action in parser._actions for name in action.option_strings}
    for word in argv:
        name = word.partition("=")[0]
        if name.startswith("--") and name[2:] in _DROPPED:
            raise ValueError(f"There is no flag {name}{where} any more; {_DROPPED[name[2:]]}.")
        if name.startswith("--") and name not in known:
            similar = difflib.get_close_matches(name, sorted(known), 1)
            meant = f"did you mean {similar[0]}? " if similar else ""
            raise ValueError(f"There is no flag {name}{where}; {meant}--help lists the flags.")
    return argv


def check_values(parsed: Sequence[Any]) -> None:
    """Refuses what no flag may be: an empty text, a number below the least one, an output folder that cannot be one.

    Raises:
        ValueError: naming the flag.
    """
    for values in parsed:
        for field in dataclasses.fields(values) if dataclasses.is_dataclass(values) else ():
            value, default = getattr(values, field.name), field.default
            least = _LEAST.get(field.name)
            if value == "" and default != "" and field.name != "label_column_name":
                raise ValueError(f"--{field.name} is empty; give it a value, or leave it out.")
            if field.name == "crop_pct" and value is not None and not 0 < value <= 1:
                raise ValueError(f"--crop_pct must lie above 0 and be at most 1, not {value}.")
            for number in value if isinstance(value, list) else [value]:
                if least is not None and isinstance(number, (int, float)) and not number >= least:
                    raise ValueError(f"--{field.name} must be at least {least}, not {number}.")
    for values in parsed:
        for flag in ("output_dir", "output_json"):
            if written := getattr(values, flag, None):
                _check_place(flag, Path(written))


def _check_place(flag: str, path: Path) -> None:
    folder = path if flag == "output_dir" else path.absolute().parent
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists() or place.is_symlink())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"--{flag} {path}: {there} is no folder to write to; choose another one.")
    if flag != "output_dir" and path.is_dir():
        raise ValueError(f"--{flag} {path} is a folder; name a file.")


def check_device(name: str | None) -> None:
    """Refuses a `--device` that this machine does not have.

    Raises:
        ValueError: if it has no such device.
    """
    if name is None:
        return
    import torch

    try:
        (torch.zeros(2, device=name) + 1).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"There is no device {name!r} here ({reason}); leave out --device, or give cpu.") from error


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
        from arguments import write_json

        write_json(path, asked)
