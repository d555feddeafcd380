"""The contract of a target: one column of teachers' answers, and everything that is done with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import pyarrow as pa
from datasets import Features, List
from numpy.typing import NDArray
from torch import Tensor

Per = Literal["view", "row", "text"]


@dataclass(frozen=True)
class Target:
    """What is stored of a teacher's answers, in one column. No other file knows the fields of a record.

    A subclass is a frozen dataclass whose fields are the settings that `reinforcement.json` records.

    Attributes:
        kind: key of the class in `TARGETS`.
        per: what has one record: each `"view"` of an image, each `"row"` of the dataset, or each `"text"` of a row.
        encodings: Parquet encoding of each leaf by the name of its column or of a field above it; the others are
            dictionaries.
        teachers: the networks that answered, see `Teacher.describe`.
    """

    kind: ClassVar[str]
    per: ClassVar[Per]
    encodings: ClassVar[Mapping[str, str]] = {}

    teachers: tuple[dict[str, Any], ...]

    @property
    def column(self) -> str:
        """Name of the column."""
        raise NotImplementedError

    @property
    def feature(self) -> Any:
        """The `datasets` feature of one record."""
        raise NotImplementedError

    @property
    def class_count(self) -> int | None:
        """Number of classes that labels and students must have as well; None where there are no classes."""
        return None

    @property
    def words(self) -> str:
        """The target in a phrase, for cards."""
        return self.kind.replace("_", " ")

    def recorded(self, teachers: Sequence[dict[str, Any]], class_names: Sequence[str] | None) -> "Target":
        """This target as `reinforcement.json` records it, with the teachers and the dataset's names of its classes."""
        return replace(self, teachers=tuple(teachers))

    def column_feature(self, num_samples: int) -> Any:
        """The `datasets` feature of the column in a dataset of N reinforcements of each image."""
        if self.per == "row":
            return self.feature
        return List(self.feature, length=num_samples) if self.per == "view" else List(self.feature)

    @property
    def arrow_type(self) -> pa.DataType:
        """Arrow type of one record."""
        return Features({self.column: self.feature}).arrow_schema.field(0).type

    def encode(self, answer: Any) -> pa.Array:
        """A teacher's answers to B views or rows as records, `arrow_type` [B]; ValueError for an answer of nan."""
        raise NotImplementedError

    def read(self, record: Any) -> dict[str, Any]:
        """The entries of a sample that one stored record becomes; lists of numbers in it are NumPy arrays."""
        raise NotImplementedError

    def of_label(self, label: int) -> dict[str, Any]:
        """The same entries for a label instead of a teacher's answer; ValueError if labels say nothing about them."""
        raise ValueError(f"A {self.words} cannot be made from a label; leave plain_fraction (--plain_fraction) 0.")

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Batches the entries of B samples; ValueError for a value out of range, which would end a GPU's process."""
        raise NotImplementedError

    def exact(self, answer: Any) -> dict[str, Tensor]:
        """A teacher's answers as such a batch, in full precision, for online distillation."""
        raise NotImplementedError

    def loss(self, outputs: Any, batch: Mapping[str, Tensor], temperature: float) -> Tensor:
        """The loss of each sample, float32 [B].

        A student answers to B views with `outputs`, a classifier with logits [B, C]; `batch` is what `collate` or
        `exact` returned, on their device. A target without a temperature ignores that, which is > 0.
        """
        raise NotImplementedError

    def figures(self, records: pa.Array) -> dict[str, NDArray[Any]]:
        """Figures of each of T records by their names, float [T]; cards and inspections show their means."""
        raise NotImplementedError


class AnyTeacher(Protocol):
    """Whatever answers: a `Teacher` of classes is one.

    Called with views (uint8 or float [B, 3, S, S], values 0 to 255) it returns what its target encodes; for a target
    with one record per row it is called with the list of the rows' decoded images, uint8 [3, H, W] each.
    """

    def __call__(self, images: Any) -> Any: ...

    def target(self, **options: Any) -> Target: ...

    def with_classes(self, names: Sequence[str] | None, class_map: Any = None) -> "AnyTeacher": ...

    def to(self, device: Any) -> "AnyTeacher": ...

    def describe(self) -> list[dict[str, Any]]: ...

    def check_processes(self) -> None: ...
