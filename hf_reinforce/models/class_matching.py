"""Which of a network's classes is meant: by index, by name, or by WordNet id."""

from collections.abc import Iterable, Sequence
from typing import Any

from hf_reinforce.augmentations.documents import shortened
from hf_reinforce.models.class_words import some, unnamed
from hf_reinforce.models.imagenet_classes import imagenet_classes, plain, wordnet_ids


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
                    f"The model has classes 0 to {self.count - 1}, but the class map names {shortened(entry)}."
                )
            return (entry,)
        index = None
        if isinstance(entry, str):
            index = self._by_name.get(plain(entry))
            index = self._by_wordnet.get(wordnet_ids([entry])[0]) if index is None else index
        if index is None:
            known = some(self.names) if self.names else f"no names, only indices 0 to {self.count - 1}"
            raise ValueError(
                f"The class map names {shortened(entry)}, which is no class of the model; it has {known}."
            )
        return (index,)

    def places(self, names: Sequence[str]) -> tuple[list[int], str] | None:
        """For each of the names its class, all different, and by what they were found; None where that fails."""
        simple = [plain(name) for name in names]
        if self.names and simple == [plain(name) for name in self.names]:
            return list(range(self.count)), "the same class names"
        by_name = [self._by_name.get(name) for name in simple]
        for found, words in ((by_name, "class names"), (self._wordnet_places(names), "WordNet ids")):
            indices = [index for index in found if index is not None]
            if len(indices) == len(names) and len(set(indices)) == len(names):
                same = not self.names and indices == list(range(self.count))
                return (
                    indices,
                    "the same number of classes, taken in the same order" if same else f"classes by {words}",
                )
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
            return list(range(self.count)), "the same number of classes, taken in the same order"
        by_wordnet = self._wordnet_places(names)
        missing = [
            n for n, place in zip(names, by_wordnet, strict=True) if place is None and plain(n) not in self._by_name
        ]
        theirs = some(self.names) if self.names else "no names"
        raise ValueError(
            f"The classes of the data set and of the model differ: {len(missing) or 'some'} of the data set's "
            f"{len(names)} classes ({some(missing or names)}) are not found, or not apart from each other, among the "
            f"model's {self.count} ({theirs}). Say how they correspond: classes_from with a column of the model's "
            "class indices or a file, or class_map."
        )

    def _wordnet_places(self, names: Sequence[str]) -> list[int | None]:
        return [self._by_wordnet.get(name) for name in wordnet_ids(names)]


def _places(names: Iterable[str | None]) -> dict[str | None, int]:
    """Where each name is that comes once."""
    places: dict[str | None, list[int]] = {}
    for index, name in enumerate(names):
        places.setdefault(name, []).append(index)
    return {name: found[0] for name, found in places.items() if len(found) == 1 and name is not None}
