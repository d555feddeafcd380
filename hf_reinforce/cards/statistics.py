"""What the stored targets of a configuration look like, measured on rows from all over its shards."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_reinforce import schema
from hf_reinforce.config import ReinforcementConfig
from hf_reinforce.shards import open_shard, shard_files

BINS = 20
_MAX_TARGETS = 2**18
_MAX_SHARDS = 32
_BATCH_ROWS = 256


@dataclass(frozen=True)
class Statistics:
    """What the shards of a configuration say about its targets.

    Probabilities, shares and rates lie in [0, 1]. Without labels, what compares with them is None.

    Attributes:
        num_rows: images.
        num_bytes: size of the Parquet files.
        measured_rows: images that the rest is measured on, with all their targets.
        captured_mass: mean probability inside the stored top k.
        entropy: mean entropy of the stored targets over top k and tail, nats.
        confidence: mean probability of the most likely class.
        agreement: share of the targets whose most likely class is the label.
        agreement_of_mean: share of the images for which the mean of their N targets is most likely the label.
        confidence_counts: targets by the probability of their most likely class, in `BINS` equal bins.
        confidence_hits: those of them whose most likely class is the label.
        entropy_counts: targets by entropy, in `BINS` equal bins from 0 to `largest_entropy`.
        class_rows: measured images of each class.
        class_agreement: `agreement` of each class; None for a class without measured images.
    """

    num_rows: int
    num_bytes: int
    measured_rows: int
    captured_mass: float
    entropy: float
    confidence: float
    agreement: float | None
    agreement_of_mean: float | None
    confidence_counts: tuple[int, ...]
    confidence_hits: tuple[int, ...] | None
    entropy_counts: tuple[int, ...]
    class_rows: tuple[int, ...] | None
    class_agreement: tuple[float | None, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dict, with numbers rounded to six digits."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Statistics":
        """Reads what `to_dict` made."""
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
        return cls(**values)


def largest_entropy(config: ReinforcementConfig) -> float:
    """The most that the entropy of a stored target can be, its tail taken as one class: nats, > 0."""
    return float(np.log(max(min(config.num_classes, config.top_k + 1), 2)))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def measure(folder: Path, config: ReinforcementConfig) -> Statistics:
    """Statistics of a configuration.

    Up to 2^18 targets are read, of evenly spaced rows of up to 32 evenly spaced shards.

    Args:
        folder: the configuration's folder.
        config: its configuration.

    Raises:
        ValueError: if a shard is damaged.
    """
    shards = shard_files(folder, config.split)
    sums = _Sums(config)
    for batch in _rows(shards, config):
        sums.add(batch)
    return sums.statistics(sum(map(_num_rows, shards)), sum(shard.stat().st_size for shard in shards))


def _num_rows(shard: Path) -> int:
    with open_shard(shard) as file:
        return int(file.metadata.num_rows)


def _rows(shards: Sequence[Path], config: ReinforcementConfig) -> Iterator[pa.RecordBatch]:
    """Batches of evenly spaced rows."""
    filled = [shard for shard in shards if _num_rows(shard)]
    chosen = [filled[i] for i in np.unique(np.linspace(0, len(filled) - 1, _MAX_SHARDS).round().astype(int)) if filled]
    step = -(-sum(map(_num_rows, chosen)) * config.num_samples // _MAX_TARGETS) or 1
    label = config.source.label_column
    columns = [schema.TEACHER_LOGITS, *([label] if label else [])]
    for shard in chosen:
        start = 0
        with open_shard(shard) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                first = -start % step
                start += len(batch)
                if first < len(batch):
                    yield batch.take(pa.array(range(first, len(batch), step)))


class _Sums:
    """Adds up what `Statistics` are made of."""

    def __init__(self, config: ReinforcementConfig) -> None:
        self.config = config
        self.rows = 0
        self.mass = self.entropy = self.confidence = 0.0
        self.hits_of_mean = 0
        self.confidence_counts, self.confidence_hits, self.entropy_counts = np.zeros((3, BINS), dtype=np.int64)
        self.class_rows, self.class_hits = np.zeros((2, config.num_classes), dtype=np.int64)

    def add(self, batch: pa.RecordBatch) -> None:
        n, k, classes = self.config.num_samples, self.config.top_k, self.config.num_classes
        items = batch.column(schema.TEACHER_LOGITS).flatten()
        value = items.field(schema.VALUE).flatten().to_numpy().reshape(-1, k).astype(np.float64)
        tail = items.field(schema.TAIL).to_numpy().astype(np.float64)
        top = items.field(schema.LABEL).flatten().to_numpy().reshape(-1, k)
        masses = np.exp(np.concatenate([value, tail[:, None]], axis=1))
        masses /= masses.sum(axis=1, keepdims=True)
        entropy = -(masses * np.log(np.maximum(masses, 1e-30))).sum(axis=1)
        confidence = masses[:, 0]
        self.rows += len(batch)
        self.mass += masses[:, :-1].sum()
        self.entropy += entropy.sum()
        self.confidence += confidence.sum()
        self.entropy_counts += _histogram(entropy / largest_entropy(self.config))
        self.confidence_counts += _histogram(confidence)
        if self.config.source.label_column is None:
            return
        label = batch.column(self.config.source.label_column).cast(pa.int64()).fill_null(-1).to_numpy()
        known = (label >= 0) & (label < classes)  # -1 stands for none
        hit = top[:, 0].reshape(-1, n) == label[:, None]
        self.confidence_hits += _histogram(confidence[hit.ravel()])
        mean = np.zeros((len(batch), classes))
        np.add.at(mean, (np.repeat(np.arange(len(batch)), n * k), top.ravel()), masses[:, :-1].ravel())
        self.hits_of_mean += int((mean.argmax(axis=1) == label).sum())
        self.class_rows += np.bincount(label[known], minlength=classes)
        self.class_hits += np.bincount(label[known], hit.sum(axis=1)[known], minlength=classes).astype(np.int64)

    def statistics(self, num_rows: int, num_bytes: int) -> Statistics:
        targets = max(self.rows * self.config.num_samples, 1)
        labelled = int(self.class_rows.sum())
        by_class = [
            float(hits / rows / self.config.num_samples) if rows else None
            for rows, hits in zip(self.class_rows, self.class_hits, strict=True)
        ]
        return Statistics(
            num_rows=num_rows,
            num_bytes=num_bytes,
            measured_rows=self.rows,
            captured_mass=float(self.mass / targets),
            entropy=float(self.entropy / targets),
            confidence=float(self.confidence / targets),
            agreement=float(self.class_hits.sum() / labelled / self.config.num_samples) if labelled else None,
            agreement_of_mean=self.hits_of_mean / labelled if labelled else None,
            confidence_counts=tuple(self.confidence_counts.tolist()),
            confidence_hits=tuple(self.confidence_hits.tolist()) if labelled else None,
            entropy_counts=tuple(self.entropy_counts.tolist()),
            class_rows=tuple(self.class_rows.tolist()) if labelled else None,
            class_agreement=tuple(by_class) if labelled else None,
        )


def _histogram(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.bincount(np.clip((values * BINS).astype(int), 0, BINS - 1), minlength=BINS)
