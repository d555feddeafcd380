"""Names of classes for people: ImageNet's classes are often named by WordNet ids."""

import re
import unicodedata
from collections.abc import Iterable, Sequence


def printable(value: object) -> str:
    """A value as text of which nothing moves the cursor or colours a terminal; such characters are written out."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in str(value))


def some(items: Iterable[object], most: int = 6) -> str:
    """The first items of a list, and how many more there are."""
    items = list(items)
    return ", ".join(map(printable, items[:most])) + (f", ... ({len(items) - most} more)" if len(items) > most else "")


def unnamed(names: Sequence[str]) -> bool:
    """Whether the names are the placeholders of transformers, `LABEL_0`, `LABEL_1`, ... in this order."""
    return all(name == f"LABEL_{index}" for index, name in enumerate(names))


def class_words(names: Sequence[str]) -> Sequence[str]:
    """The classes in words: WordNet ids become descriptions (`"tench, Tinca tinca"`), other names stay as they are,
    but for characters that only a terminal would obey.

    Args:
        names: of all classes; they stay too if not all are WordNet ids, or one is of no class of ImageNet-21k.
    """
    if not all(re.fullmatch(r"n\d{8}", name) for name in names):
        return [printable(name) for name in names]
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet21k")
    try:
        return [info.label_name_to_description(name) for name in names]
    except KeyError:  # WordNet has more than ImageNet
        return names
