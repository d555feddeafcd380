"""A distribution over classes as a target: top-k, tail, codebook, and the sparse distillation loss.

A record holds the log-probabilities of the K most likely classes and the log of the mass that remains. Probabilities
are rounded to 255 levels `(q / 255) ** 2.2`, so a Parquet dictionary page stores each in one byte; readers see floats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import List, Value
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hf_reinforce.schema import Count, Index
from hf_reinforce.targets.base import Per, Target

# Fields of a record, and the entries of samples and batches that they become.
_LABEL, _VALUE, _TAIL = FIELDS = ("label", "value", "tail")
_KEYS = tuple(f"target_{field}" for field in FIELDS)

CODEBOOK_LEVELS = 255
CODEBOOK_EXPONENT = 2.2
KL_BOUND = 1e-4
"""Most that rounding may cost a record: KL(full-precision top-k and tail || stored)."""

_LOG_ZERO = -1e4  # exp() of it is exactly 0 in float32, and 0 * it is 0 where 0 * -inf is nan
_ROUNDING = 1e-3  # what a sum of float32 probabilities may exceed 1 by


class Targets(NamedTuple):
    """Sparse targets of B samples.

    Attributes:
        label: int64 [B, K], class indices, most likely first.
        value: float32 [B, K], log-probabilities.
        tail: float32 [B], log of the mass outside of the top k; -inf when K is the number of classes.
    """

    label: Tensor
    value: Tensor
    tail: Tensor


def top_k_targets(log_probs: Tensor, top_k: int) -> Targets:
    """The K largest of log-probabilities [B, C] and the tail, in full precision; ValueError for nan."""
    log_probs = log_probs.float()
    if log_probs.isnan().any():
        raise ValueError("The teacher answered with nan; run it in float32 or bfloat16, which do not overflow.")
    order = log_probs.argsort(dim=-1, descending=True, stable=True)  # topk leaves the order of ties open
    rest = log_probs.gather(-1, order[:, top_k:])
    tail = rest.logsumexp(-1) if rest.shape[-1] else log_probs.new_full(log_probs.shape[:1], -torch.inf)
    label = order[:, :top_k]
    return Targets(label, log_probs.gather(-1, label), tail)


def encode(targets: Targets) -> Targets:
    """Rounds values and tail to the codebook.

    A record that rounding would move by more than `KL_BOUND` keeps its full precision, so the bound holds for every
    record. It does not happen at K = 10; from about K = 20 on it does, and the stored size grows.
    """
    tail = torch.where(targets.tail.isneginf(), targets.tail, _round(targets.tail))
    rounded = Targets(targets.label, _round(targets.value), tail)
    keep = rounding_kl(targets, rounded) > KL_BOUND
    value = torch.where(keep.unsqueeze(-1), targets.value, rounded.value)
    return Targets(targets.label, value, torch.where(keep, targets.tail, rounded.tail))


def _round(log_p: Tensor) -> Tensor:
    level = (log_p / CODEBOOK_EXPONENT).exp().mul(CODEBOOK_LEVELS).round().clamp(1, CODEBOOK_LEVELS)
    # The levels come from a table so that equal levels are equal floats on every device.
    table = (torch.arange(CODEBOOK_LEVELS + 1, dtype=torch.float64) / CODEBOOK_LEVELS).log() * CODEBOOK_EXPONENT
    return table.float().to(log_p.device)[level.long()]


def rounding_kl(exact: Targets, stored: Targets) -> Tensor:
    """KL(exact || stored) over the K classes and the tail, both renormalised; float [B], in nats."""
    masses = (torch.cat([targets.value, targets.tail.unsqueeze(-1)], -1) for targets in (exact, stored))
    p, q = (mass.double().clamp_min(_LOG_ZERO).log_softmax(-1) for mass in masses)
    return (p.exp() * (p - q)).sum(-1).float()


def sparse_kl(logits: Tensor, targets: Targets, temperature: float = 1.0) -> Tensor:
    """Distillation loss KL(teacher || student) per sample, without ever building the teacher's dense distribution.

    The teacher's tail is spread evenly over the classes outside of the top k. At a temperature T > 0 both sides are
    softened, the teacher from its stored log-probabilities, and the loss is multiplied by T^2 (Hinton et al., 2015).
    Of student logits [B, C] it is float32 [B], in nats, >= 0.
    """
    rest = logits.shape[-1] - targets.label.shape[-1]
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = targets.value.clamp_min(_LOG_ZERO) / temperature
    student_top = student.gather(-1, targets.label)
    if rest == 0:
        teacher = teacher.log_softmax(-1)
        return (teacher.exp() * (teacher - student_top)).sum(-1) * temperature**2
    spread = float(torch.tensor(rest).log())
    tail = (targets.tail.clamp_min(_LOG_ZERO) - spread) / temperature + spread
    masses = torch.cat([teacher, tail.unsqueeze(-1)], -1).log_softmax(-1)
    teacher, tail = masses[:, :-1], masses[:, -1]
    student_rest = (student.sum(-1) - student_top.sum(-1)) / rest
    loss = (teacher.exp() * (teacher - student_top)).sum(-1) + tail.exp() * (tail - spread - student_rest)
    return loss * temperature**2


def one_hot(labels: Tensor, top_k: int, num_classes: int) -> Targets:
    """Hard labels [B] as sparse targets: all mass on the label, the other K - 1 entries on other classes with none."""
    others = (labels.unsqueeze(-1) + torch.arange(top_k, device=labels.device)) % num_classes
    value = torch.full((labels.shape[0], top_k), _LOG_ZERO, device=labels.device)
    value[:, 0] = 0.0
    return Targets(others, value, torch.full(labels.shape, _LOG_ZERO, device=labels.device))


def batch_targets(batch: Mapping[str, Tensor]) -> Targets:
    """The targets in a batch that `ClassDistribution.collate` made."""
    return Targets(*(batch[key] for key in _KEYS))


@dataclass(frozen=True)
class ClassDistribution(Target):
    """Log-probabilities of the K most likely of C classes, and the log of the mass of all others.

    Attributes:
        top_k: K, 1 <= K <= C; ValueError for any other.
        num_classes: C.
        class_names: names of the classes, where known.
        temperature: temperature of the teacher's softmax.
        class_map: the teacher's class for each class of the targets, None for its own classes.
    """

    kind: ClassVar[str] = "class_distribution"
    per: ClassVar[Per] = "view"
    encodings: ClassVar[Mapping[str, str]] = {_LABEL: "BYTE_STREAM_SPLIT"}

    top_k: Count
    num_classes: Count
    class_names: tuple[str, ...] | None = None
    temperature: float = 1.0
    class_map: tuple[Index, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_classes:
            raise ValueError(f"top_k must lie between 1 and the {self.num_classes} classes, not {self.top_k}.")

    @classmethod
    def of(cls, num_classes: int, top_k: int | None = None, **settings: Any) -> "ClassDistribution":
        """The target of a teacher with `num_classes` classes; by default the 10 most likely are stored."""
        return cls((), min(10, num_classes) if top_k is None else top_k, num_classes, **settings)

    def storing(self, top_k: int) -> "ClassDistribution":
        """The same with another K."""
        return replace(self, top_k=top_k)

    @property
    def column(self) -> str:
        return "teacher_logits"

    @property
    def feature(self) -> dict[str, Any]:
        label = Value("int16" if self.num_classes <= 2**15 else "int32")
        lists = {_LABEL: List(label, length=self.top_k), _VALUE: List(Value("float32"), length=self.top_k)}
        return {**lists, _TAIL: Value("float32")}

    @property
    def class_count(self) -> int:
        return self.num_classes

    def recorded(self, teachers: Sequence[dict[str, Any]], class_names: Sequence[str] | None) -> "ClassDistribution":
        names = tuple(class_names) if class_names else self.class_names
        return replace(self, teachers=tuple(teachers), class_names=names)

    @property
    def words(self) -> str:
        return f"the {self.top_k} most likely of {self.num_classes:,} classes"

    def encode(self, answer: Tensor) -> pa.StructArray:
        """Turns log-probabilities [B, C] into records, rounded to the codebook."""
        return self.records(encode(top_k_targets(answer, self.top_k)))

    def records(self, targets: Targets) -> pa.StructArray:
        """Arrow records [B] of targets of K classes as they are."""
        label, value, tail = (tensor.cpu().numpy() for tensor in targets)
        fields = list(self.arrow_type)
        kind = fields[0].type.value_type.to_pandas_dtype()
        lists = [
            pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=field.type)
            for field, values in zip(fields, (label.astype(kind), value.astype(np.float32)), strict=False)
        ]
        return pa.StructArray.from_arrays([*lists, pa.array(tail.astype(np.float32))], fields=fields)

    def read(self, record: Any) -> dict[str, Any]:
        label, value, tail = (record[field] for field in FIELDS)
        return dict(zip(_KEYS, (label.astype(np.int64), value.astype(np.float32), np.float32(tail)), strict=True))

    def of_label(self, label: int) -> dict[str, Any]:
        targets = one_hot(torch.tensor([label]), self.top_k, self.num_classes)
        return dict(zip(_KEYS, (tensor[0].numpy() for tensor in targets), strict=True))

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        label, value, tail = stored = [np.stack([sample[key] for sample in samples]) for key in _KEYS]
        wrong = None
        if label.min() < 0 or label.max() >= self.num_classes:
            wrong = f"classes of {label.min()} to {label.max()}, but they are 0 to {self.num_classes - 1}"
        elif not (value.max() <= _ROUNDING and tail.max() <= _ROUNDING):  # nan is not
            wrong = f"log-probabilities of up to {value.max()} and {tail.max()}, but they are at most 0"
        if wrong:
            raise ValueError(
                f"Stored targets hold {wrong}; find the damaged shard with recipes/inspect_dataset.py DATASET "
                "--verify True."
            )
        return {key: torch.as_tensor(array) for key, array in zip(_KEYS, stored, strict=True)}

    def exact(self, answer: Tensor) -> dict[str, Tensor]:
        return dict(zip(_KEYS, top_k_targets(answer, answer.shape[-1]), strict=True))

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor], temperature: float) -> Tensor:
        return sparse_kl(outputs, batch_targets(batch), temperature)

    def masses(self, records: pa.StructArray) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Classes [T, K] of T records, and their probabilities with that of all others [T, K + 1], which sum to 1."""
        lists = (records.field(field).flatten().to_numpy() for field in (_LABEL, _VALUE))
        label, value = (values.reshape(-1, self.top_k) for values in lists)
        tail = records.field(_TAIL).to_numpy().astype(np.float64)
        masses = np.exp(np.concatenate([value.astype(np.float64), tail[:, None]], axis=1))
        return label.astype(np.int64), masses / masses.sum(axis=1, keepdims=True)

    def figures(self, records: pa.StructArray) -> dict[str, NDArray[Any]]:
        _, masses = self.masses(records)
        return {
            "mass in the top K": masses[:, :-1].sum(axis=1),
            "entropy (nats)": -(masses * np.log(np.maximum(masses, 1e-30))).sum(axis=1),
            "probability of the most likely class": masses[:, 0],
        }

    def most_likely(self, sample: Mapping[str, Any], count: int) -> list[tuple[int, float]]:
        """The `count` most likely classes of one stored target, at most K, with their probabilities."""
        label, value = (sample[key][: min(count, self.top_k)] for key in _KEYS[:2])
        return list(zip(label.tolist(), np.exp(value).tolist(), strict=True))
