"""One pass over the stored targets of a configuration: what the card and the inspection say about them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_reinforce.augmentations.base import Mask
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.store.config import ReinforcementConfig
from hf_reinforce.store.shards import open_shard
from hf_reinforce.targets import ClassDistribution

BINS = 20
_MAX_TARGETS = 2**18
_MAX_SHARDS = 32
_BATCH_TARGETS = 2**15
_BATCH_CELLS = 2**22  # of the images' mean answers


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
    return classes_of(config).largest_entropy


def classes_of(config: ReinforcementConfig) -> ClassDistribution:
    """The target that statistics are about.

    Raises:
        ValueError: if no target is a distribution over classes.
    """
    if config.classes is None:
        raise ValueError("There are statistics of distributions over classes only, and no target here is one.")
    return config.classes


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


@dataclass(frozen=True)
class StoredTargets:
    """The stored targets of B images, N of each, with K of C classes.

    Attributes:
        label: the images' labels, -1 where there is none: [B].
        top: classes, the most likely first: [B, N, K].
        masses: their probabilities, and last that of all others: [B, N, K + 1].
        num_classes: C.
    """

    label: NDArray[np.int64]
    top: NDArray[np.int64]
    masses: NDArray[np.float64]
    num_classes: int

    @classmethod
    def read(cls, batch: pa.RecordBatch, config: ReinforcementConfig) -> "StoredTargets":
        """Of rows of a shard with the column of the targets, and that of the labels where there is one."""
        n, column, target = config.num_samples, config.source.label_column, classes_of(config)
        top, masses = target.masses(batch.column(target.column).flatten())
        label = np.full(len(batch), -1)
        if column is not None:
            label = batch.column(column).cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
            label = np.where((label >= 0) & (label < config.num_classes), label, -1)
        return cls(label, top.reshape(len(batch), n, -1), masses.reshape(len(batch), n, -1), config.num_classes)

    @cached_property
    def entropy(self) -> NDArray[np.float64]:
        """Of each target over top k and tail: [B, N], nats."""
        return np.asarray(-(self.masses * np.log(np.maximum(self.masses, 1e-30))).sum(axis=-1))

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Probability of the most likely class: [B, N]."""
        return self.masses[..., 0]

    @cached_property
    def hit(self) -> Mask:
        """Whether the most likely class is the label: [B, N]."""
        return np.asarray(self.top[..., 0] == self.label[:, None])

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        """The mean of each image's targets: [B, C]."""
        return self._summed(self.masses[..., :-1], self.top.shape[1])

    def mean_of(self, views: Mask) -> NDArray[np.float64]:
        """The mean of each image's targets for some of its views, bool [B, N]; 0 where it has none of them: [B, C]."""
        if views.all():
            return self.mean
        return self._summed(self.masses[..., :-1] * views[..., None], np.maximum(views.sum(axis=1, keepdims=True), 1))

    def _summed(self, masses: NDArray[np.float64], counts: Any) -> NDArray[np.float64]:
        shape = len(masses), self.num_classes
        cells = np.arange(len(masses))[:, None, None] * self.num_classes + self.top
        sums = np.bincount(cells.ravel(), masses.ravel(), minlength=shape[0] * shape[1])
        return np.asarray(sums.reshape(shape) / counts)


class Sums:
    """Adds up what `Statistics` are made of."""

    def __init__(self, config: ReinforcementConfig) -> None:
        self.config = config
        self.rows = 0
        self.mass = self.entropy = self.confidence = 0.0
        self.hits_of_mean = 0
        self.confidence_counts, self.confidence_hits, self.entropy_counts = np.zeros((3, BINS), dtype=np.int64)
        self.class_rows, self.class_hits = np.zeros((2, config.num_classes), dtype=np.int64)

    def add(self, targets: StoredTargets) -> None:
        """Adds the targets of some images."""
        self.rows += len(targets.label)
        self.mass += float(targets.masses[..., :-1].sum())
        self.entropy += float(targets.entropy.sum())
        self.confidence += float(targets.confidence.sum())
        self.entropy_counts += _histogram(targets.entropy / largest_entropy(self.config))
        self.confidence_counts += _histogram(targets.confidence)
        known = targets.label >= 0
        label, classes = targets.label[known], self.config.num_classes
        if not len(label):
            return
        self.confidence_hits += _histogram(targets.confidence[targets.hit])
        self.hits_of_mean += int((targets.mean.argmax(axis=1)[known] == label).sum())
        self.class_rows += np.bincount(label, minlength=classes)
        self.class_hits += np.bincount(label, targets.hit.sum(axis=1)[known], minlength=classes).astype(np.int64)

    def statistics(self, num_rows: int, num_bytes: int) -> Statistics:
        """What was added.

        Args:
            num_rows: of the data set.
            num_bytes: of its shards.
        """
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
            captured_mass=self.mass / targets,
            entropy=self.entropy / targets,
            confidence=self.confidence / targets,
            agreement=float(self.class_hits.sum() / labelled / self.config.num_samples) if labelled else None,
            agreement_of_mean=self.hits_of_mean / labelled if labelled else None,
            confidence_counts=tuple(self.confidence_counts.tolist()),
            confidence_hits=tuple(self.confidence_hits.tolist()) if labelled else None,
            entropy_counts=tuple(self.entropy_counts.tolist()),
            class_rows=tuple(self.class_rows.tolist()) if labelled else None,
            class_agreement=tuple(by_class) if labelled else None,
        )


def _histogram(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.bincount(np.clip((values * BINS).astype(int), 0, BINS - 1).reshape(-1), minlength=BINS)


def summaries(shard: Path, config: ReinforcementConfig) -> dict[str, dict[str, float]]:
    """Figures of the targets that are no distributions over classes, by column, from the first rows of a shard."""
    found = {}
    for target in config.targets:
        if not isinstance(target, ClassDistribution):
            with open_shard(shard) as file:
                column = next(file.iter_batches(PARTNER_BLOCK, columns=[target.column])).column(0)
            found[target.column] = target.summary(column if target.per == "row" else column.flatten())
    return found


def num_rows(shard: str | Path) -> int:
    """Rows of a shard, by its footer."""
    with open_shard(shard) as file:
        return int(file.metadata.num_rows)


def batches(
    shards: Sequence[str | Path], config: ReinforcementConfig, columns: Sequence[str] = (), step: int = 1
) -> Iterator[pa.RecordBatch]:
    """Rows of some shards with their targets and labels, as many at a time as fit into some ten megabytes.

    Args:
        shards: the shards.
        config: their configuration.
        columns: further ones to read.
        step: only every so many rows of a shard, from its first.
    """
    label = config.source.label_column
    size = max(min(_BATCH_TARGETS // config.num_samples, _BATCH_CELLS // config.num_classes), 1)
    for shard in shards:
        start = 0
        with open_shard(shard) as file:
            for batch in file.iter_batches(
                size, columns=[classes_of(config).column, *columns, *([label] if label else [])]
            ):
                first = -start % step
                start += len(batch)
                if first < len(batch):
                    yield batch if step == 1 else batch.take(pa.array(range(first, len(batch), step)))


def measure(shards: Sequence[Path], config: ReinforcementConfig) -> Statistics:
    """Statistics of a configuration, from up to 2^18 targets of evenly spaced rows of up to 32 evenly spaced shards.

    Args:
        shards: its Parquet files, in order.
        config: the configuration.

    Raises:
        ValueError: if a shard is damaged.
    """
    rows = {shard: num_rows(shard) for shard in shards}
    filled = [shard for shard in shards if rows[shard]]
    chosen = [filled[i] for i in np.unique(np.linspace(0, len(filled) - 1, _MAX_SHARDS).round().astype(int)) if filled]
    sums = Sums(config)
    step = -(-sum(rows[shard] for shard in chosen) * config.num_samples // _MAX_TARGETS) or 1
    for batch in batches(chosen, config, step=step):
        sums.add(StoredTargets.read(batch, config))
    return sums.statistics(sum(rows.values()), sum(shard.stat().st_size for shard in shards))
