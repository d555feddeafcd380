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
    """Names of the splits that a part takes rows from, each once; ValueError if `datasets` cannot read it."""
    try:
        ReadInstruction.from_spec(split)
    except (ValueError, AssertionError) as error:
        reason = str(error).rstrip(".!")
        examples = "'train', or a part of splits, such as 'train[:50%]', 'train[5:15]' or 'train+test'"
        raise ValueError(
            f"The split {split!r} cannot be read ({reason}); name a split, such as {examples}."
        ) from error
    return tuple(dict.fromkeys(_plain(part) for part in _PLUS.split(split)))


def is_part(split: str) -> bool:
    """Whether it is a part of a split, or of several, rather than the name of one."""
    return split == _ALL or _PART.search(split) is not None


def stored_split(split: str) -> str:
    """The plain name under which rows of a part are stored: of the first split they come from, `train` for `all`."""
    return "train" if split == _ALL else _plain(split)


def _plain(part: str) -> str:
    return _PART.split(part, maxsplit=1)[0].rstrip() or part


def count_rows(split: str, rows: dict[str, int]) -> int:
    """Rows of a split or part, out of the rows of each split that it takes some from."""
    if split == _ALL:
        return sum(rows.values())
    return sum(max(0, part.to - part.from_) for part in ReadInstruction.from_spec(split).to_absolute(rows))
