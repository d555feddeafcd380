"""Splits as `datasets` names them, and parts of them: `train`, `train[:50%]`, `train[5:15]`, `train+test`."""

import re

from datasets import ReadInstruction

WRITE = "On the command line, write the result with .to_parquet('FOLDER/train.parquet') and name FOLDER."
"""How a dataset that was changed in Python is given to a recipe, for messages."""

_PLUS = re.compile(r"\s*\+\s*")
_PART = re.compile(r"[\[+(]")  # where the name of a split ends
_ALL = "all"


def split_text(split: object) -> str:
    """A split, a NamedSplit or a ReadInstruction as the text that all of `datasets` takes."""
    return _PLUS.sub("+", str(split).strip())


def split_names(split: str) -> tuple[str, ...]:
    """Names of the splits that a part takes rows from, each once; of `all` its own.

    Raises:
        ValueError: if `datasets` cannot read it.
    """
    try:
        ReadInstruction.from_spec(split)
    except (ValueError, AssertionError) as error:
        reason = str(error).rstrip(".!")
        raise ValueError(
            f"The split {split!r} cannot be read ({reason}); name a split, such as 'train', or a part of splits, such "
            "as 'train[:50%]', 'train[5:15]' or 'train+test'."
        ) from error
    return tuple(dict.fromkeys(_plain(part) for part in _PLUS.split(split)))


def is_part(split: str) -> bool:
    """Whether it is a part of a split, or of several, rather than the name of one."""
    return split == _ALL or _PART.search(split) is not None


def stored_split(split: str) -> str:
    """The split under which rows of a split or part are stored: the first that they come from, `train` for `all`.

    File names, cards and `load_dataset` want a plain name.
    """
    return "train" if split == _ALL else _plain(split)


def _plain(part: str) -> str:
    return _PART.split(part, maxsplit=1)[0].rstrip() or part


def count_rows(split: str, rows: dict[str, int]) -> int:
    """Rows of a split or part.

    Args:
        split: the split or part.
        rows: of each split that it takes rows from.
    """
    if split == _ALL:
        return sum(rows.values())
    parts = ReadInstruction.from_spec(split).to_absolute(rows)
    return sum(max(0, part.to - part.from_) for part in parts)
