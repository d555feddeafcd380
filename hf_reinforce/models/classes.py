"""Which classes of a dataset and of a network are the same: by names, WordNet ids, tables or indices."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_reinforce.augmentations.documents import read_document, shortened

TABLES = Path(__file__).parent / "class_tables"
SCORINGS = ("restricted", "full")

ClassSpec = str | Sequence[int | str] | Mapping[str, Any] | None

_TIMM_TABLES = ("imagenet", "imagenet_a", "imagenet_r")
_SAME_ORDER = "the same number of classes, taken in the same order"
_MEND = "mend the file of --classes_from or of the suite, or --class_map"
_WORDNET_ID = re.compile(r"\bn\d{8}\b")

logger = logging.getLogger(__name__)


# -- names --------------------------------------------------------------------------------------------------------


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


def plain(name: str) -> str:
    """A name of a class for comparison: lower case, blanks for underscores."""
    return " ".join(name.lower().replace("_", " ").split())


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
        names: WordNet ids, descriptions (`"tench, Tinca tinca"`) or synonyms (`"tench"`); a number at the end, which
            keeps two equal names apart, is left out. Names that fit all classes of ImageNet in their order stand for
            these, although two of them are called crane.
    """
    known, found = _imagenet_names(), []
    for name in names:
        stated = _WORDNET_ID.search(name)  # transformers writes "crane (n02012849)"
        unnumbered = plain(name).rstrip("0123456789").rstrip()
        fits = known.get(plain(name)) or known.get(unnumbered, frozenset())
        found.append(frozenset([stated.group()]) if stated else fits)
    if len(names) == 1000 and all(own in fits for own, fits in zip(imagenet_classes(), found, strict=True)):
        return list(imagenet_classes())
    return [next(iter(fits)) if len(fits) == 1 else None for fits in found]


# -- a network's classes ------------------------------------------------------------------------------------------


class ModelClasses:
    """The classes of a network.

    Args:
        names: their names; None or `LABEL_0`, ... where it knows none.
        count: how many there are.

    Attributes:
        names: the names, empty where it knows none.
        count: how many there are.
    """

    def __init__(self, names: Sequence[str] | None, count: int) -> None:
        known = names is not None and not unnamed(names)
        self.names, self.count = tuple(names or ()) if known else (), count
        self._by_name = _places(map(plain, self.names))
        # Every classifier of ImageNet has its classes in the order of their ids.
        in_order = imagenet_classes() if not known and count == 1000 else ()
        self._by_wordnet = _places(wordnet_ids(self.names) or in_order)

    def display_names(self) -> tuple[str, ...]:
        """Names of the classes, or their numbers."""
        return self.names or tuple(map(str, range(self.count)))

    def find(self, entry: Any) -> tuple[int, ...]:
        """The classes that an entry of a list, mapping or table names: an index, a name, a WordNet id, or a list.

        Raises:
            ValueError: if there is none.
        """
        if isinstance(entry, (list, tuple)) and entry and not any(isinstance(item, (list, tuple)) for item in entry):
            return tuple(index for item in entry for index in self.find(item))
        if isinstance(entry, int) and not isinstance(entry, bool):
            if not 0 <= entry < self.count:
                raise ValueError(
                    f"The model has classes 0 to {self.count - 1}, but the class map names {shortened(entry)}; "
                    f"{_MEND}."
                )
            return (entry,)
        index = None
        if isinstance(entry, str):
            index = self._by_name.get(plain(entry))
            index = self._by_wordnet.get(wordnet_ids([entry])[0]) if index is None else index
        if index is None:
            known = some(self.names) if self.names else f"no names, only indices 0 to {self.count - 1}"
            raise ValueError(
                f"The class map names {shortened(entry)}, which is no class of the model; it has {known}; {_MEND}."
            )
        return (index,)

    def places(self, names: Sequence[str]) -> tuple[list[int], str] | None:
        """For each of the names its class, all different, and by what they were found; None where that fails."""
        simple = [plain(name) for name in names]
        if self.names and simple == [plain(name) for name in self.names]:
            return list(range(self.count)), "the same class names"
        for found, words in ((map(self._by_name.get, simple), "class names"), (self._ids(names), "WordNet ids")):
            indices = [index for index in found if index is not None]
            if len(indices) == len(names) == len(set(indices)):
                same = not self.names and indices == list(range(self.count))
                return indices, _SAME_ORDER if same else f"classes by {words}"
        return None

    def match(self, names: Sequence[str]) -> tuple[list[int], str]:
        """As `places`; a network without names has the classes of as many names, in their order.

        Raises:
            ValueError: if names are not found, or not apart from each other.
        """
        found = self.places(names)
        if found is not None:
            return found
        if not self.names and len(names) == self.count:
            return list(range(self.count)), _SAME_ORDER
        missing = [
            name
            for name, place in zip(names, self._ids(names), strict=True)
            if place is None and plain(name) not in self._by_name
        ]
        raise ValueError(
            f"The classes of the dataset and of the model differ: {len(missing) or 'some'} of the dataset's "
            f"{len(names)} classes ({some(missing or names)}) are not found, or not apart from each other, among the "
            f"model's {self.count} ({some(self.names) or 'no names'}). Say how they correspond: --classes_from with a "
            "column of the model's class indices or a file, or --class_map (classes in the file of a suite)."
        )

    def _ids(self, names: Sequence[str]) -> list[int | None]:
        """For each of the names the class with its WordNet id."""
        return [self._by_wordnet.get(name) for name in wordnet_ids(names)]


def _places(names: Iterable[str | None]) -> dict[str | None, int]:
    """Where each name is that comes once."""
    names = list(names)
    counts = Counter(names)
    return {name: index for index, name in enumerate(names) if name is not None and counts[name] == 1}


# -- tables -------------------------------------------------------------------------------------------------------


def tables() -> list[str]:
    """Names of the published tables of classes."""
    return sorted([*(path.stem for path in TABLES.glob("*.yaml")), *_TIMM_TABLES])


def load_table(name_or_path: str) -> Any:
    """A table of classes: a list of the model's classes by label, or a mapping from the dataset's names to them.

    Args:
        name_or_path: one of `tables()`, or a YAML or JSON file.

    Raises:
        ValueError: if there is none, or the file holds neither a list nor a mapping.
    """
    if name_or_path in _TIMM_TABLES:  # timm ships the WordNet ids, sorted as the folders of the datasets
        file = files("timm") / "data" / "_info" / f"{name_or_path}_synsets.txt"
        return file.read_text(encoding="utf-8").split()
    path = TABLES / f"{name_or_path}.yaml"
    path = path if path.exists() else Path(name_or_path)
    if not path.is_file():
        raise ValueError(
            f"There is no table of classes {name_or_path!r}: neither one of {', '.join(tables())} nor a file."
        )
    content = read_document(path)
    if not isinstance(content, (list, dict)) or not content:
        raise ValueError(
            f"{path} must hold a list of classes or a mapping from names to classes, not {shortened(content)}."
        )
    return content


# -- scoring ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassMap:
    """How a model's answers are scored against the labels of a dataset.

    Attributes:
        names: names of the K scored classes.
        targets: label of the dataset -> the scored classes that are right for it, each in [0, K).
        groups: for each scored class the model's classes that count for it, of which the most probable is taken;
            None: the model's own classes.
        description: all of this in words.
    """

    names: tuple[str, ...]
    targets: Mapping[int, tuple[int, ...]]
    groups: tuple[tuple[int, ...], ...] | None
    description: str

    @property
    def scoring(self) -> str:
        """`"full"` where all of the model's classes compete, else `"restricted"`."""
        return SCORINGS[self.groups is None]

    def __call__(self, log_probabilities: Tensor) -> Tensor:
        """Log-probabilities of the scored classes, renormalised over them: float [B, C] to float [B, K]."""
        if self.groups is None:
            return log_probabilities
        widest = max(map(len, self.groups))
        index = torch.tensor([[*group, *group[:1] * (widest - len(group))] for group in self.groups])
        return F.log_softmax(log_probabilities[:, index.to(log_probabilities.device)].amax(-1), dim=-1)


def make_class_map(
    model_names: Sequence[str] | None,
    num_classes: int,
    data_names: Sequence[str] | None,
    labels: Sequence[int],
    classes: ClassSpec = None,
    scoring: str | None = None,
    declared: bool = True,
) -> ClassMap:
    """Fits a model's classes to those of a dataset.

    Args:
        model_names: names of the model's classes; None or `LABEL_0`, ... where it knows none.
        num_classes: C, classes of the model.
        data_names: names of the dataset's classes in the order of their labels, None where it names none.
        labels: labels that occur, in any order.
        classes: None: by the names, or where there are none the labels are the model's classes; `"index"`: the labels
            (or their names) are indices of the model's classes; a published table (`tables()`), or a YAML or JSON file
            with one; a list with the model's class for each label; a mapping from the dataset's names to the model's
            classes. A class of the model is an index, a name or a WordNet id; several classes of the model in a list
            are one class of the dataset, whose probability is that of the most probable of them.
        scoring: `"restricted"`: only the dataset's classes compete ("n-way"); `"full"`: all C classes of the model;
            None: restricted where the dataset or `classes` lists them, full where only labels are known.
        declared: whether the dataset declares `data_names`; False: they are those that happen to occur.

    Raises:
        ValueError: if classes do not correspond, or an argument is none of these.
    """
    if scoring not in (None, *SCORINGS):
        raise ValueError(f"scoring must be one of {', '.join(SCORINGS)}, not {scoring!r}.")
    model = ModelClasses(model_names, num_classes)
    names, entries, words = _entries(model, data_names, labels, classes, declared)
    members = {label: model.find(entries[label]) for label in sorted(entries)}
    identical = list(members.values()) == [(index,) for index in range(num_classes)]
    by_occurrence = classes in (None, "index") and (data_names is None or not declared)
    display = model.display_names()
    if scoring == "full" or (scoring is None and by_occurrence and not identical):
        words = f"{words}; all {num_classes} classes of the model compete"
        if by_occurrence and len(members) < num_classes:
            words += f", of which {len(members)} occur"
        return ClassMap(display, members, None, words)
    if not identical:
        extent = f"{len(members)} classes of the dataset out of the model's {num_classes}"
        if by_occurrence:
            extent = f"the {len(members)} classes that occur in the dataset out of the model's {num_classes}"
            logger.warning("Scored are only %s; list its classes with --classes_from FILE, or score in full.", extent)
        words += ", the most probable of several" if max(map(len, members.values())) > 1 else ""
        words += f"; restricted to {extent}"
    return ClassMap(
        names=tuple(names[label] if names else display[own[0]] for label, own in members.items()),
        targets={label: (place,) for place, label in enumerate(members)},
        groups=None if identical else tuple(members.values()),
        description=words,
    )


def _entries(
    model: ModelClasses, names: Sequence[str] | None, labels: Sequence[int], classes: ClassSpec, declared: bool
) -> tuple[Sequence[str] | None, dict[int, Any], str]:
    """Names of the labels, None for the model's own; an entry for `find` of each label; and where they come from."""
    if classes is None and names is not None:
        places, words = model.match(names)
        return names, dict(enumerate(places)), words
    if classes is None or classes == "index":
        return None, _indices(model, names, labels), "labels that are the model's indices"
    table, words = classes, "classes from a given map"
    if isinstance(table, str):
        table, words = load_table(table), f"classes from the table {classes}"
    if isinstance(table, Mapping):
        found = {plain(str(name)): entry for name, entry in table.items()}
        known = list(names or ())
        if names is None or not declared:  # labels count the table's classes, or some of them happen not to occur
            occurring = set(map(plain, known))
            known += [name for name in map(str, table) if plain(name) not in occurring]
        missing = [name for name in known if plain(name) not in found]
        if missing:
            raise ValueError(
                f"The class map has no entry for {len(missing)} classes of the dataset: {some(missing)}; it has "
                f"{some(list(table))}. Add them: {_MEND}."
            )
        names, table = known, [found[plain(name)] for name in known]
    elif names is not None and len(names) != len(table):
        raise ValueError(
            f"The class map must have one entry for each of the dataset's {len(names)} classes, but has "
            f"{len(table)}; {_MEND}."
        )
    outside = sorted(set(labels) - set(range(len(table))))
    if outside:
        raise ValueError(
            f"The class map has {len(table)} classes, but the dataset has the label {outside[0]}; {_MEND}."
        )
    return names, dict(enumerate(table)), words


def _indices(model: ModelClasses, names: Sequence[str] | None, labels: Sequence[int]) -> dict[int, int]:
    """The model's class for each label, where the labels or their names are its indices."""
    wrong = [name for name in names or () if not name.strip().isdecimal()]
    if wrong:
        raise ValueError(
            "--classes_from index (classes: index in a suite) needs class names that are numbers, such as '17'; "
            f"found {some(wrong)}."
        )
    found = dict(enumerate(map(int, names))) if names else {int(label): int(label) for label in labels}
    largest = max(found.values(), default=0)
    if largest >= model.count:
        raise ValueError(
            f"The {'names of the classes' if names else 'labels'} go up to {largest}, the model has {model.count} "
            f"classes (0 to {model.count - 1}). Say how they correspond: --classes_from FILE (classes in a suite); or "
            "name a model with enough classes."
        )
    return found
