"""One pass over the shards of a reinforced data set: its targets by operation, what they contradict, duplicates."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_reinforce import schema
from hf_reinforce.config import ReinforcementConfig
from hf_reinforce.inspection.duplicates import Duplicates, find_duplicates
from hf_reinforce.inspection.strengths import mixed, order, strengths

_BATCH_TARGETS = 2**15
_BATCH_CELLS = 2**22  # of the images' mean answers


@dataclass(frozen=True)
class Group:
    """The targets of some views.

    Attributes:
        operation: an operation of the policy, or `"all"`.
        strength: its strength in words, empty where it has none.
        targets: number of targets.
        entropy: their mean entropy over top k and tail, nats.
        confidence: mean probability of their most likely class.
        agreement: share of those with a label whose most likely class is the label; None without labels.
    """

    operation: str
    strength: str
    targets: int
    entropy: float
    confidence: float
    agreement: float | None


@dataclass(frozen=True)
class Disagreement:
    """An image whose label is not what the teacher sees; probabilities are means over its unmixed views.

    Attributes:
        row: row of the source.
        position: row of the reinforced data set.
        image_hash: hash of the encoded image.
        label: its label.
        label_probability: probability of the label, 0 where it never is among the top k.
        prediction: the most likely class.
        probability: its probability.
    """

    row: int
    position: int
    image_hash: str
    label: int
    label_probability: float
    prediction: int
    probability: float


@dataclass(frozen=True)
class Inspection:
    """What `measure` finds. Probabilities, masses and shares lie in [0, 1].

    Attributes:
        num_rows: images.
        num_bytes: size of the Parquet files.
        captured_mass: mean probability inside the stored top k.
        everything: all targets.
        groups: targets by operation and strength.
        compared_rows: images with a label and an unmixed view.
        disagreeing_rows: those of them whose mean target has another most likely class than the label.
        disagreements: the strongest of these, the most certain first.
        duplicates: images that are there more than once.
    """

    num_rows: int
    num_bytes: int
    captured_mass: float
    everything: Group
    groups: tuple[Group, ...]
    compared_rows: int
    disagreeing_rows: int
    disagreements: tuple[Disagreement, ...]
    duplicates: Duplicates

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dict."""
        return dataclasses.asdict(self)


def measure(shards: Sequence[str], config: ReinforcementConfig, most: int) -> Inspection:
    """Reads every target once; memory does not grow with their number, and by 80 bytes with each image.

    Args:
        shards: the Parquet files of a configuration, in order.
        config: its configuration.
        most: disagreements that are kept.

    Raises:
        ValueError: if there are no targets.
    """
    sums = _Sums(config, most)
    for batch in _batches(shards, config):
        sums.add(batch)
    if not sums.rows:
        raise ValueError(
            "The reinforced data set has no rows to inspect; run the command that reinforces it again, or publish it "
            "again if shards are missing."
        )
    return sums.inspection(sum(Path(shard).stat().st_size for shard in shards))


def _batches(shards: Sequence[str], config: ReinforcementConfig) -> Iterator[pa.RecordBatch]:
    label = config.source.label_column
    columns = [*schema.REINFORCEMENT_COLUMNS, *([label] if label else [])]
    size = max(min(_BATCH_TARGETS // config.num_samples, _BATCH_CELLS // config.num_classes), 1)
    with tqdm(total=sum(pq.read_metadata(shard).num_rows for shard in shards), desc="Inspecting", unit="row") as bar:
        for shard in shards:
            with pq.ParquetFile(shard) as file:
                for batch in file.iter_batches(size, columns=columns):
                    yield batch
                    bar.update(len(batch))


@dataclass
class _Answers:
    """The targets of a batch of B images."""

    top: NDArray[np.int64]  # [B, N, K] classes, the most likely first
    masses: NDArray[np.float64]  # [B, N, K + 1] probabilities, the last is the tail
    entropy: NDArray[np.float64] = field(init=False)  # [B * N], nats

    def __post_init__(self) -> None:
        logs = np.log(np.maximum(self.masses, 1e-30))
        self.entropy = -(self.masses * logs).sum(axis=-1).reshape(-1)


def _answers(batch: pa.RecordBatch, config: ReinforcementConfig) -> _Answers:
    n, k = config.num_samples, config.top_k
    items = batch.column(schema.TEACHER_LOGITS).flatten()
    value = items.field(schema.VALUE).flatten().to_numpy().reshape(-1, k)
    tail = items.field(schema.TAIL).to_numpy().reshape(-1, 1)
    masses = np.exp(np.concatenate([value, tail], axis=1).astype(np.float64))
    masses /= masses.sum(axis=1, keepdims=True)
    top = items.field(schema.LABEL).flatten().to_numpy().astype(np.int64)
    return _Answers(top.reshape(-1, n, k), masses.reshape(-1, n, k + 1))


class _Sums:
    """Adds up what an `Inspection` is made of."""

    def __init__(self, config: ReinforcementConfig, most: int) -> None:
        self.config, self.most = config, most
        self.rows = self.compared = self.disagreeing = 0
        self.mass = 0.0
        self.groups: dict[tuple[str, str], NDArray[np.float64]] = {}
        self.disagreements: list[Disagreement] = []
        self.source_rows: list[NDArray[np.int64]] = []
        self.hashes: list[NDArray[np.uint64]] = []
        self.labels: list[NDArray[np.int64]] = []

    def add(self, batch: pa.RecordBatch) -> None:
        answers = _answers(batch, self.config)
        label = self._labels(batch)
        rows = batch.column(schema.SOURCE_ROW).to_numpy().astype(np.int64)
        hashes = _hashes(batch)
        params = batch.column(schema.AUGMENTATION_PARAMS).flatten()
        self.mass += float(answers.masses[..., :-1].sum())
        known = np.repeat(label >= 0, self.config.num_samples)
        hit = ((answers.top[..., 0] == label[:, None]) & (label[:, None] >= 0)).reshape(-1)
        confidence = answers.masses[..., 0].reshape(-1)
        values = np.stack([np.ones(len(hit)), answers.entropy, confidence, hit, known])
        self._group("all", "", values)
        for operation, strength, mask in strengths(params, self.config):
            self._group(operation, strength, values[:, mask])
        self._compare(answers, label, ~mixed(params).reshape(label.size, -1), rows, hashes)
        self.rows += len(batch)
        self.source_rows.append(rows)
        self.hashes.append(hashes)
        self.labels.append(label)

    def _labels(self, batch: pa.RecordBatch) -> NDArray[np.int64]:
        """The label of each row, -1 where there is none."""
        column = self.config.source.label_column
        if column is None:
            return np.full(len(batch), -1)
        label = batch.column(column).cast(pa.int64()).fill_null(-1).to_numpy()
        return np.where((label >= 0) & (label < self.config.num_classes), label, -1)

    def _group(self, operation: str, strength: str, values: NDArray[np.float64]) -> None:
        sums = self.groups.setdefault((operation, strength), np.zeros(len(values)))
        sums += values.sum(axis=1)

    def _compare(
        self,
        answers: _Answers,
        label: NDArray[np.int64],
        unmixed: NDArray[np.bool_],
        rows: NDArray[np.int64],
        hashes: NDArray[np.uint64],
    ) -> None:
        """Counts and keeps the images whose mean target contradicts their label."""
        chosen = np.flatnonzero((label >= 0) & unmixed.any(axis=1))
        if not len(chosen):
            return
        masses = answers.masses[chosen, :, :-1] * unmixed[chosen, :, None]
        mean = np.zeros((len(chosen), self.config.num_classes))
        where = np.repeat(np.arange(len(chosen)), masses[0].size)
        np.add.at(mean, (where, answers.top[chosen].reshape(-1)), masses.reshape(-1))
        mean /= unmixed[chosen].sum(axis=1, keepdims=True)
        prediction, index = mean.argmax(axis=1), np.arange(len(chosen))
        probability, own = mean[index, prediction], mean[index, label[chosen]]
        wrong = np.flatnonzero(prediction != label[chosen])
        self.compared += len(chosen)
        self.disagreeing += len(wrong)
        for i in wrong[np.argsort(own[wrong] - probability[wrong], kind="stable")[: self.most]].tolist():
            at = int(chosen[i])
            found = int(rows[at]), self.rows + at, f"{int(hashes[at]):016x}", int(label[at])
            self.disagreements.append(
                Disagreement(*found, round(float(own[i]), 6), int(prediction[i]), round(float(probability[i]), 6))
            )
        self.disagreements.sort(key=lambda item: item.label_probability - item.probability)
        del self.disagreements[self.most :]

    def inspection(self, num_bytes: int) -> Inspection:
        groups = [
            Group(
                operation,
                strength,
                int(count),
                round(entropy / count, 6),
                round(confidence / count, 6),
                round(hits / known, 6) if known else None,
            )
            for (operation, strength), sums in self.groups.items()
            for count, entropy, confidence, hits, known in [sums.tolist()]
            if count
        ]
        everything, *operations = groups
        return Inspection(
            num_rows=self.rows,
            num_bytes=num_bytes,
            captured_mass=round(self.mass / everything.targets, 6),
            everything=everything,
            groups=tuple(sorted(operations, key=lambda group: order(group.operation, group.strength))),
            compared_rows=self.compared,
            disagreeing_rows=self.disagreeing,
            disagreements=tuple(self.disagreements),
            duplicates=find_duplicates(
                np.concatenate(self.hashes), np.concatenate(self.source_rows), np.concatenate(self.labels)
            ),
        )


def _hashes(batch: pa.RecordBatch) -> NDArray[np.uint64]:
    text = "".join(batch.column(schema.IMAGE_HASH).to_pylist())
    return np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64)
