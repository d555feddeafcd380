"""What is published about ImageNet-1k's classes, from the files that timm ships: WordNet ids, names, ReaL labels."""

import json
import re
from collections.abc import Sequence
from functools import cache

_WORDNET_ID = re.compile(r"\bn\d{8}\b")


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k's 1000 classes in their order: n01440764 (tench) is class 0."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo().label_names())


@cache
def _imagenet_names() -> dict[str, frozenset[str]]:
    """WordNet ids of the classes of ImageNet with a name: a whole description, else one of its synonyms."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    descriptions, synonyms = dict[str, set[str]](), dict[str, set[str]]()
    for synset in info.label_names():
        text = info.label_name_to_description(synset, detailed=False)
        descriptions.setdefault(plain(text), set()).add(synset)
        for name in text.split(","):
            synonyms.setdefault(plain(name), set()).add(synset)
    return {name: frozenset(ids) for name, ids in (synonyms | descriptions).items()}


def wordnet_ids(names: Sequence[str]) -> list[str | None]:
    """The WordNet ids of classes; None for what names no class of ImageNet, or several.

    Args:
        names: WordNet ids, descriptions (`"tench, Tinca tinca"`) or synonyms (`"tench"`). Names that fit all classes
            of ImageNet in their order stand for these, although two of them are called crane.
    """
    known = _imagenet_names()
    ids = [_WORDNET_ID.search(name) for name in names]  # transformers writes "crane (n02012849)"
    found = [
        frozenset([stated.group()]) if stated else known.get(plain(name)) or known.get(_unnumbered(name), frozenset())
        for name, stated in zip(names, ids, strict=True)
    ]
    if len(names) == 1000 and all(own in fits for own, fits in zip(imagenet_classes(), found, strict=True)):
        return list(imagenet_classes())
    return [next(iter(fits)) if len(fits) == 1 else None for fits in found]


@cache
def real_labels() -> list[list[int]]:
    """The classes of each image of ImageNet's validation split by Beyer et al. (2020), as timm ships them."""
    from importlib.resources import files

    text = (files("timm") / "data" / "_info" / "imagenet_real_labels.json").read_text(encoding="utf-8")
    found: list[list[int]] = json.loads(text)
    return found


def _unnumbered(name: str) -> str:
    """A name without the number that keeps the second of two equal names apart, such as `crane2`."""
    return plain(name).rstrip("0123456789").rstrip()


def plain(name: str) -> str:
    """A name of a class for comparison: lower case, blanks for underscores."""
    return " ".join(name.lower().replace("_", " ").split())
