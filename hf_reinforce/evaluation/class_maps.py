"""From a model's classes to those of a data set: by names, WordNet ids, a published table, indices, or a file."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_reinforce.augmentations.documents import read_document, shortened
from hf_reinforce.models.class_matching import ModelClasses
from hf_reinforce.models.class_words import some
from hf_reinforce.models.imagenet_classes import plain

TABLES = Path(__file__).parent / "class_tables"
SCORINGS = ("restricted", "full")

logger = logging.getLogger(__name__)

ClassSpec = str | Sequence[int | str] | Mapping[str, Any] | None

MERGES: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda members: members.amax(-1),
    "sum": lambda members: members.logsumexp(-1),
    "mean": lambda members: members.logsumexp(-1) - members.isfinite().sum(-1).to(members.dtype).log(),
}
"""How the log-probabilities [..., G] of several classes of the model become one; -inf stands for no class."""


@dataclass(frozen=True)
class ClassMap:
    """How a model's answers are scored against the labels of a data set.

    Attributes:
        names: names of the K scored classes.
        targets: label of the data set -> the scored classes that are right for it, each in [0, K).
        groups: for each scored class the model's classes that count for it; None: the model's own classes.
        merge: key of `MERGES`, for groups of several classes.
        description: all of this in words.
    """

    names: tuple[str, ...]
    targets: Mapping[int, tuple[int, ...]]
    groups: tuple[tuple[int, ...], ...] | None
    merge: str
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
        index = torch.tensor([[*group, *[-1] * (widest - len(group))] for group in self.groups])
        index = index.to(log_probabilities.device)
        members = log_probabilities[:, index.clamp(min=0)].masked_fill(index < 0, -torch.inf)
        return F.log_softmax(MERGES[self.merge](members), dim=-1)


def make_class_map(
    model_names: Sequence[str] | None,
    num_classes: int,
    data_names: Sequence[str] | None,
    labels: Sequence[int],
    classes: ClassSpec = None,
    scoring: str | None = None,
    merge: str = "max",
    declared: bool = True,
) -> ClassMap:
    """Fits a model's classes to those of a data set.

    Args:
        model_names: names of the model's classes; None or `LABEL_0`, ... where it knows none.
        num_classes: C, classes of the model.
        data_names: names of the data set's classes in the order of their labels, None where it names none.
        labels: labels that occur, in any order.
        classes: None: by the names, or where there are none the labels are the model's classes; `"index"`: the labels
            (or their names) are indices of the model's classes; a published table (`tables()`), or a YAML or JSON file
            with one; a list with the model's class for each label; a mapping from the data set's names to the model's
            classes. A class of the model is an index, a name or a WordNet id, or a list of these.
        scoring: `"restricted"`: only the data set's classes compete ("n-way"); `"full"`: all C classes of the model;
            None: restricted where the data set or `classes` lists them, full where only labels are known.
        merge: what becomes of several classes of the model that are one of the data set: `"max"`, `"sum"` or `"mean"`
            of their probabilities.
        declared: whether the data set declares `data_names`; False: they are those that happen to occur.

    Raises:
        ValueError: if classes do not correspond, or an argument is none of these.
    """
    if scoring not in (None, *SCORINGS) or merge not in MERGES:
        raise ValueError(
            f"scoring must be one of {', '.join(SCORINGS)} and merge one of {', '.join(MERGES)}, "
            f"not {scoring!r} and {merge!r}."
        )
    found = ModelClasses(model_names, num_classes)
    display, members, words = _members(found, data_names, labels, classes, declared)
    by_occurrence = classes in (None, "index") and (data_names is None or not declared)
    order = sorted(members)
    groups = tuple(members[label] for label in order)
    identical = groups == tuple((index,) for index in range(num_classes))
    if scoring == "full" or (scoring is None and by_occurrence and not identical):
        words = f"{words}; all {num_classes} classes of the model compete"
        if by_occurrence and len(groups) < num_classes:
            words += f", of which {len(groups)} occur"
        return ClassMap(found.display_names(), members, None, merge, words)
    if identical:
        targets = {label: (place,) for place, label in enumerate(order)}
        return ClassMap(tuple(display[label] for label in order), targets, None, merge, words)
    kind = f", the {merge} of several" if max(map(len, groups)) > 1 else ""
    extent = f"{len(groups)} classes of the data set out of the model's {num_classes}"
    if by_occurrence:
        extent = f"the {len(groups)} classes that occur in the data set out of the model's {num_classes}"
        logger.warning("Scored are only %s; list its classes with --classes_from FILE, or score in full.", extent)
    return ClassMap(
        tuple(display[label] for label in order),
        {label: (place,) for place, label in enumerate(order)},
        groups,
        merge,
        f"{words}{kind}; restricted to {extent}",
    )


def _members(
    model: ModelClasses, data_names: Sequence[str] | None, labels: Sequence[int], classes: ClassSpec, declared: bool
) -> tuple[dict[int, str], dict[int, tuple[int, ...]], str]:
    """Name and the model's classes for each label, and where they come from."""
    if isinstance(classes, str) and classes != "index":
        table = load_table(classes)
        words = f"classes from the table {classes}"
    else:
        table, words = classes, "classes from a given map"
    if table is None and data_names is not None:
        places, words = model.match(data_names)
        return dict(enumerate(data_names)), {label: (index,) for label, index in enumerate(places)}, words
    if table is None or table == "index":
        return _indexed(model, data_names, labels)
    if isinstance(table, Mapping):
        if data_names is None:
            data_names = list(map(str, table))  # the labels count the entries
        entries = {plain(str(name)): entry for name, entry in table.items()}
        if not declared:  # the table has classes that happen not to occur
            occurring = set(map(plain, map(str, data_names)))
            data_names = [*data_names, *(name for name in map(str, table) if plain(name) not in occurring)]
        missing = [name for name in data_names if plain(name) not in entries]
        if missing:
            raise ValueError(
                f"The class map has no entry for {len(missing)} classes of the data set: {some(missing)}; it has "
                f"{some(list(table))}. Add them, or name another map."
            )
        found = {label: model.find(entries[plain(name)]) for label, name in enumerate(data_names)}
        names = dict(enumerate(data_names))
    else:
        found = {label: model.find(entry) for label, entry in enumerate(table)}
        names = {label: model.display_names()[members[0]] for label, members in found.items()}
        if data_names is not None and len(data_names) != len(found):
            raise ValueError(
                f"The class map must have one entry for each of the data set's {len(data_names)} classes, but has "
                f"{len(found)}."
            )
        names |= dict(enumerate(data_names or ()))
    outside = sorted(set(labels) - set(found))
    if outside:
        raise ValueError(f"The class map has {len(found)} classes, but the data set has the label {outside[0]}.")
    return names, found, words


def _indexed(
    model: ModelClasses, names: Sequence[str] | None, labels: Sequence[int]
) -> tuple[dict[int, str], dict[int, tuple[int, ...]], str]:
    wrong = [name for name in names or () if not name.strip().isdecimal()]
    if wrong:
        raise ValueError(f"classes: index needs class names that are numbers, such as '17'; found {some(wrong)}.")
    values = {label: int(names[label]) for label in range(len(names))} if names else {int(v): int(v) for v in labels}
    largest = max(values.values(), default=0)
    if largest >= model.count:
        raise ValueError(
            f"The {'names of the classes' if names else 'labels'} go up to {largest}, the model has {model.count} "
            f"classes (0 to {model.count - 1}). Say how they correspond: --classes_from FILE (classes in a suite); or "
            "name a model with enough classes."
        )
    found = {label: model.find(value) for label, value in sorted(values.items())}
    display = model.display_names()
    return {label: display[index] for label, (index,) in found.items()}, found, "labels that are the model's indices"


def tables() -> list[str]:
    """Names of the published tables of classes."""
    return sorted([*(path.stem for path in TABLES.glob("*.yaml")), *_TIMM_TABLES])


def is_table(name_or_path: str) -> bool:
    """Whether `load_table` finds a published table or a file of this name."""
    return name_or_path in tables() or Path(name_or_path).is_file()


_TIMM_TABLES = {"imagenet": "imagenet", "imagenet_a": "imagenet_a", "imagenet_r": "imagenet_r"}


def load_table(name_or_path: str) -> Any:
    """A table of classes: a list of the model's classes by label, or a mapping from the data set's names to them.

    Args:
        name_or_path: one of `tables()`, or a YAML or JSON file.

    Raises:
        ValueError: if there is none, or the file holds neither a list nor a mapping.
    """
    if name_or_path in _TIMM_TABLES:  # timm ships the WordNet ids, sorted as the folders of the data sets
        from importlib.resources import files

        file = files("timm") / "data" / "_info" / f"{_TIMM_TABLES[name_or_path]}_synsets.txt"
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
