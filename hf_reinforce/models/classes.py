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

logger = logging.getLogger(__name__)


# -- names --------------------------------------------------------------------------------------------------------


def printable(value: object) -> str:
    """A value as text in which characters that move the cursor or colour a terminal are written out."""
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
    """Printable names of classes; where all are WordNet ids of ImageNet-21k, descriptions (`"tench, Tinca tinca"`)."""
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
def _imagenet_names() -> dict[str, set[str]]:
    """WordNet ids of the classes of ImageNet with a name: a whole description, else one of its synonyms."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    descriptions, synonyms = dict[str, set[str]](), dict[str, set[str]]()
    for synset in imagenet_classes():
        text = info.label_name_to_description(synset, detailed=False)
        descriptions.setdefault(plain(text), set()).add(synset)
        for name in text.split(","):
            synonyms.setdefault(plain(name), set()).add(synset)
    return synonyms | descriptions


def wordnet_ids(names: Sequence[str]) -> list[str | None]:
    """The WordNet ids of classes by their ids, descriptions (`"tench, Tinca tinca"`) or synonyms (`"tench"`).

    None for what names no class of ImageNet, or several. A number at the end, which keeps two equal names apart, is
    left out. Names of all classes in their order stand for these, although two of them are called crane.
    """
    known, found = _imagenet_names(), []
    for name in names:
        stated = re.search(r"\bn\d{8}\b", name)  # transformers writes "crane (n02012849)"
        fits = known.get(plain(name)) or known.get(plain(name).rstrip("0123456789").rstrip(), set())
        found.append({stated.group()} if stated else fits)
    if len(names) == 1000 and all(own in fits for own, fits in zip(imagenet_classes(), found, strict=True)):
        return list(imagenet_classes())
    return [next(iter(fits)) if len(fits) == 1 else None for fits in found]


# -- a network's classes ------------------------------------------------------------------------------------------


class ModelClasses:
    """The `count` classes of a network; `names` are empty where the given ones are None or `LABEL_0`, ...

    `by_name` and `by_wordnet` have the class of each plain name and WordNet id that only one class has.
    """

    def __init__(self, names: Sequence[str] | None, count: int) -> None:
        self.names, self.count = () if names is None or unnamed(names) else tuple(names), count
        self.by_name = _positions(map(plain, self.names))
        # Every classifier of ImageNet has its classes in the order of their ids.
        in_order = imagenet_classes() if not self.names and count == 1000 else ()
        self.by_wordnet = _positions(wordnet_ids(self.names) or in_order)

    def find(self, entry: Any) -> tuple[int, ...]:
        """The classes that an entry of a list, mapping or table names: an index, a name, a WordNet id, or a list."""
        if isinstance(entry, (list, tuple)) and entry and not any(isinstance(item, (list, tuple)) for item in entry):
            return tuple(index for item in entry for index in self.find(item))
        index = None
        if isinstance(entry, int) and not isinstance(entry, bool):
            index = entry if 0 <= entry < self.count else None
        elif isinstance(entry, str):
            index = self.by_name.get(plain(entry))
            index = self.by_wordnet.get(wordnet_ids([entry])[0]) if index is None else index
        if index is None:
            known = f"{some(self.names) or 'no names'}, and indices 0 to {self.count - 1}"
            raise ValueError(f"The class map names {shortened(entry)}, but the model has {known}; {_MEND}.")
        return (index,)

    def places(self, names: Sequence[str]) -> tuple[list[int], str] | None:
        """For each of the names its class, all different, and by what they were found; None where that fails."""
        simple = [plain(name) for name in names]
        if self.names and simple == [plain(name) for name in self.names]:
            return list(range(self.count)), "the same class names"
        by_name = [self.by_name.get(name) for name in simple]
        by_id = [self.by_wordnet.get(name) for name in wordnet_ids(names)]
        for found, words in ((by_name, "class names"), (by_id, "WordNet ids")):
            indices = [index for index in found if index is not None]
            if len(indices) == len(names) == len(set(indices)):
                same = not self.names and indices == list(range(self.count))
                return indices, _SAME_ORDER if same else f"classes by {words}"
        return None


def _positions(names: Iterable[str | None]) -> dict[str | None, int]:
    """Where each name is that comes once."""
    names = list(names)
    counts = Counter(names)
    return {name: index for index, name in enumerate(names) if name is not None and counts[name] == 1}


# -- tables -------------------------------------------------------------------------------------------------------


def tables() -> list[str]:
    """Names of the published tables of classes."""
    return sorted([*(path.stem for path in TABLES.glob("*.yaml")), *_TIMM_TABLES])


def load_table(name_or_path: str) -> Any:
    """One of `tables()`, or of a YAML or JSON file: a list of the model's classes by label, or a mapping from the
    dataset's names to them."""
    if name_or_path in _TIMM_TABLES:  # timm ships the WordNet ids, sorted as the folders of the datasets
        file = files("timm") / "data" / "_info" / f"{name_or_path}_synsets.txt"
        return file.read_text(encoding="utf-8").split()
    path = TABLES / f"{name_or_path}.yaml"
    path = path if path.exists() else Path(name_or_path)
    if not path.is_file():
        raise ValueError(f"There is no table of classes {name_or_path!r}: it is neither {some(tables())} nor a file.")
    content = read_document(path)
    if not isinstance(content, (list, dict)) or not content:
        raise ValueError(
            f"{path} must hold a list of classes or a mapping from names to them, not {shortened(content)}."
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
            (or their names) are indices of the model's classes; a list with the model's class for each label, or a
            mapping from the dataset's names to them; one of `tables()`, or a YAML or JSON file with either. A class of
            the model is an index, a name, a WordNet id, or a list of several, of which the most probable counts.
        scoring: `"restricted"`: only the dataset's classes compete ("n-way"); `"full"`: all C classes of the model;
            None: restricted where the dataset or `classes` lists them, full where only labels are known.
        declared: whether the dataset declares `data_names`; False: they are those that happen to occur.

    Raises:
        ValueError: if classes do not correspond, or an argument is none of these.
    """
    if scoring not in (None, *SCORINGS):
        raise ValueError(f"scoring must be one of {', '.join(SCORINGS)}, not {scoring!r}.")
    model = ModelClasses(model_names, num_classes)
    names, entries, words = label_entries(model, data_names, labels, classes, declared)
    members = {label: model.find(entries[label]) for label in sorted(entries)}
    identical = list(members.values()) == [(index,) for index in range(num_classes)]
    by_occurrence = classes in (None, "index") and (data_names is None or not declared)
    display = model.names or tuple(map(str, range(num_classes)))
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


def label_entries(
    model: ModelClasses, names: Sequence[str] | None, labels: Sequence[int], classes: ClassSpec, declared: bool = True
) -> tuple[Sequence[str] | None, dict[int, Any], str]:
    """Names of the labels, None for the model's own; an entry for `find` of each label; and where they come from.

    Arguments and errors as `make_class_map`.
    """
    if classes is None and names is not None:
        found = model.places(names)
        if found is None and not model.names and len(names) == model.count:
            found = list(range(model.count)), _SAME_ORDER
        if found is None:
            ids = zip(names, wordnet_ids(names), strict=True)
            missing = [name for name, own in ids if plain(name) not in model.by_name and own not in model.by_wordnet]
            raise ValueError(
                f"The classes of the dataset and of the model differ: {len(missing) or 'some'} of the dataset's "
                f"{len(names)} classes ({some(missing or names)}) are not found, or not apart from each other, among "
                f"the model's {model.count} ({some(model.names) or 'no names'}). Say how they correspond: "
                "--classes_from with a column of the model's class indices or a file, or --class_map (classes in the "
                "file of a suite)."
            )
        return names, dict(enumerate(found[0])), found[1]
    if classes is None or classes == "index":
        if wrong := [name for name in names or () if not name.strip().isdecimal()]:
            raise ValueError(
                "--classes_from index (classes: index in a suite) needs class names that are numbers, such as '17'; "
                f"found {some(wrong)}."
            )
        indices = dict(enumerate(map(int, names))) if names else {int(label): int(label) for label in labels}
        if max(indices.values(), default=0) >= model.count:
            raise ValueError(
                f"The {'names of the classes' if names else 'labels'} go up to {max(indices.values())}, the model has "
                f"classes 0 to {model.count - 1}. Say how they correspond: --classes_from FILE (classes in a suite); "
                "or name a model with enough classes."
            )
        return None, indices, "labels that are the model's indices"
    table, words = classes, "classes from a given map"
    if isinstance(table, str):
        table, words = load_table(table), f"classes from the table {classes}"
    if isinstance(table, Mapping):
        by_name = {plain(str(name)): entry for name, entry in table.items()}
        known = list(names or ())
        if names is None or not declared:  # labels count the table's classes, or some of them happen not to occur
            occurring = set(map(plain, known))
            known += [name for name in map(str, table) if plain(name) not in occurring]
        if missing := [name for name in known if plain(name) not in by_name]:
            raise ValueError(
                f"The class map has no entry for {len(missing)} classes of the dataset: {some(missing)}; it has "
                f"{some(list(table))}. Add them: {_MEND}."
            )
        names, table = known, [by_name[plain(name)] for name in known]
    expected = len(table) if names is None else len(names)
    outside = [label for label in sorted(set(labels)) if not 0 <= label < len(table)]
    if len(table) != expected or outside:
        wanted = f"the label {outside[0]}" if outside else f"{expected} classes"
        raise ValueError(f"The class map has {len(table)} classes, but the dataset has {wanted}; {_MEND}.")
    return names, dict(enumerate(table)), words
