"""One pass over the stored targets of a configuration: what the card and the inspection say about them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_reinforce import schema
from hf_reinforce.augmentations.base import Mask, valid
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.store.config import ReinforcementConfig
from hf_reinforce.store.shards import open_shard
from hf_reinforce.targets import ClassDistribution

BINS = 20
_MAX_TARGETS, _MAX_SHARDS = 2**18, 32  # that a card is measured on
_BATCH_TARGETS, _BATCH_CELLS = 2**15, 2**22  # that are read at once: targets, and probabilities of the images' means


@dataclass(frozen=True)
class Statistics:
    """What the stored targets of a configuration say. Probabilities and shares are in [0, 1]; None without labels.

    Attributes:
        num_rows: images of the dataset.
        num_bytes: size of the Parquet files.
        measured_rows: images that the rest is measured on, with all their targets.
        captured_mass: mean probability of the stored top k together.
        entropy: mean entropy of a target over the top k and the tail, nats.
        confidence: mean probability of the most likely class.
        agreement: share of the targets whose most likely class is the label.
        agreement_of_mean: share of the images whose mean target over the unmixed views is most likely the label.
        confidence_counts: targets by the probability of their most likely class, in `BINS` equal bins.
        confidence_hits: those of them whose most likely class is the label.
        class_agreement: `agreement` of each class; None for a class without measured images.
        groups: number of targets, entropy, confidence and agreement of each operation and strength.
    """

    num_rows: int
    num_bytes: int
    measured_rows: int
    captured_mass: float
    entropy: float
    confidence: float
    agreement: float | None
    agreement_of_mean: float | None
    confidence_counts: list[int]
    confidence_hits: list[int] | None
    class_agreement: list[float | None] | None
    groups: list[dict[str, Any]] = field(default_factory=list)


def classes_of(config: ReinforcementConfig) -> ClassDistribution:
    """The target that statistics are about.

    Raises:
        ValueError: if no target is a distribution over classes.
    """
    if config.classes is None:
        raise ValueError("There are statistics of distributions over classes only, and no target here is one.")
    return config.classes


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
    """Rows of a shard, as its footer says."""
    with open_shard(shard) as file:
        return int(file.metadata.num_rows)


def measure(
    shards: Sequence[Path], config: ReinforcementConfig, every_row: bool = False
) -> tuple[Statistics, dict[str, NDArray[Any]]]:
    """Reads the stored targets once. Memory grows by about 100 bytes with each image that is read.

    Args:
        shards: the Parquet files of a configuration, in order.
        config: the configuration.
        every_row: read every row; else up to 2^18 targets, of evenly spaced rows of up to 32 evenly spaced shards.

    Returns:
        The statistics; and what was found for each image that was read, arrays [R]: `row` of the source, `hash`,
        `label` (-1: none), `hits` (targets whose most likely class it is), `compared` (it has a label and an unmixed
        view), and of the mean target over the unmixed views the `prediction`, its `probability` and the
        `label_probability`.

    Raises:
        ValueError: if there are no rows, or a shard is damaged.
    """
    counts = [num_rows(shard) for shard in shards]
    chosen, step = [shard for shard, count in zip(shards, counts, strict=True) if count], 1
    if not chosen:
        raise ValueError(
            "The reinforced dataset has no rows; run the command that reinforces it again, or publish it again if "
            "shards are missing."
        )
    if not every_row:
        spaced = np.unique(np.linspace(0, len(chosen) - 1, _MAX_SHARDS).round().astype(int))
        chosen = [chosen[index] for index in spaced]
        step = -(-sum(map(num_rows, chosen)) * config.num_samples // _MAX_TARGETS)
    groups: dict[tuple[str, str], NDArray[np.float64]] = defaultdict(lambda: np.zeros(5))
    histogram, mass, images = np.zeros((2, BINS), np.int64), 0.0, []
    for batch in tqdm(_batches(chosen, config, step), desc="Reading targets", unit="batch", leave=False):
        top, masses = _answers(batch, config)
        label, params = _labels(batch, config), batch.column(schema.AUGMENTATION_PARAMS).flatten()
        hit, confidence = top[..., 0] == label[:, None], masses[..., 0]
        entropy = -(masses * np.log(np.maximum(masses, 1e-30))).sum(axis=-1)
        known = np.broadcast_to(label[:, None] >= 0, hit.shape)
        values = np.stack([np.ones(hit.shape), entropy, confidence, hit, known]).reshape(5, -1)
        for operation, strength, mask in _bins(params, config):
            groups[operation, strength] += values[:, mask].sum(axis=1)
        mass += float(masses[..., :-1].sum())
        histogram += [np.histogram(found, BINS, (0, 1))[0] for found in (confidence, confidence[hit])]
        images.append(
            {"label": label, "hits": hit.sum(axis=1), **_mean_targets(batch, label, top, masses, params, config)}
        )
    found = {key: np.concatenate([part[key] for part in images]) for key in images[0]}
    everything, *others = _sorted(groups)
    right, compared = found["compared"] & (found["prediction"] == found["label"]), int(found["compared"].sum())
    labelled = found["label"] >= 0
    targets, hits = (
        np.bincount(found["label"][labelled], weights[labelled], minlength=config.num_classes).tolist()
        for weights in (np.full(len(labelled), config.num_samples), found["hits"])
    )
    statistics = Statistics(
        num_rows=sum(counts),
        num_bytes=sum(Path(shard).stat().st_size for shard in shards),
        measured_rows=len(found["row"]),
        captured_mass=mass / everything["targets"],
        entropy=everything["entropy"],
        confidence=everything["confidence"],
        agreement=everything["agreement"],
        agreement_of_mean=float(right.sum() / compared) if compared else None,
        confidence_counts=histogram[0].tolist(),
        confidence_hits=histogram[1].tolist() if labelled.any() else None,
        class_agreement=[h / n if n else None for h, n in zip(hits, targets, strict=True)] if labelled.any() else None,
        groups=others,
    )
    return statistics, found


def _batches(shards: Sequence[Path], config: ReinforcementConfig, step: int) -> Iterator[pa.RecordBatch]:
    """Every `step`-th row of some shards, as many at a time as fit into some ten megabytes."""
    label = config.source.label_column
    columns = [schema.SOURCE_ROW, schema.IMAGE_HASH, schema.AUGMENTATION_PARAMS, classes_of(config).column]
    size = max(min(_BATCH_TARGETS // config.num_samples, _BATCH_CELLS // config.num_classes), 1)
    for shard in shards:
        start = 0
        with open_shard(shard) as file:
            for batch in file.iter_batches(size, columns=[*columns, *([label] if label else [])]):
                first = -start % step
                start += len(batch)
                if first < len(batch):
                    yield batch if step == 1 else batch.take(pa.array(range(first, len(batch), step)))


def _answers(batch: pa.RecordBatch, config: ReinforcementConfig) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The stored classes, most likely first: [B, N, K]; their probabilities and that of all others: [B, N, K + 1]."""
    target, shape = classes_of(config), (len(batch), config.num_samples, -1)
    top, masses = target.masses(batch.column(target.column).flatten())
    return top.reshape(shape), masses.reshape(shape)


def _labels(batch: pa.RecordBatch, config: ReinforcementConfig) -> NDArray[np.int64]:
    """The labels of some images [B], -1 where there is none."""
    if config.source.label_column is None:
        return np.full(len(batch), -1)
    column = batch.column(config.source.label_column).cast(pa.int64())
    label = column.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.where((label >= 0) & (label < config.num_classes), label, -1)


def _bins(params: pa.StructArray, config: ReinforcementConfig) -> Iterator[tuple[str, str, Mask]]:
    """All views, and the views of each operation and strength."""
    yield "all", "", np.ones(len(params), bool)
    for operation in config.policy.operations:
        if operation.field is not None:
            yield from operation.bins(params.field(operation.field), config.policy.image_size)


def _mean_targets(
    batch: pa.RecordBatch,
    label: NDArray[np.int64],
    top: NDArray[np.int64],
    masses: NDArray[np.float64],
    params: pa.StructArray,
    config: ReinforcementConfig,
) -> dict[str, NDArray[Any]]:
    """Of each image the mean target over its unmixed views, see `measure`."""
    unmixed = np.ones(len(params), bool)
    for mixing in config.policy.mix_operations:
        unmixed &= ~valid(params.field(mixing.field))
    views = unmixed.reshape(top.shape[:2])
    index, classes = np.arange(len(top)), config.num_classes
    cells, weights = index[:, None, None] * classes + top, masses[..., :-1] * views[..., None]
    total = np.bincount(cells.ravel(), weights.ravel(), minlength=len(top) * classes).reshape(-1, classes)
    mean = total / np.maximum(views.sum(axis=1, keepdims=True), 1)
    prediction = mean.argmax(axis=1)
    return {
        "row": batch.column(schema.SOURCE_ROW).to_numpy(),
        "hash": np.array(batch.column(schema.IMAGE_HASH).to_pylist(), "S16"),
        "compared": (label >= 0) & views.any(axis=1),
        "prediction": prediction,
        "probability": mean[index, prediction],
        "label_probability": mean[index, label],
    }


def _sorted(groups: Mapping[tuple[str, str], NDArray[np.float64]]) -> list[dict[str, Any]]:
    """The figures of the groups that have targets, operations in their order, strengths by value if they are numbers.

    `groups` are sums over the targets: 1, entropy, confidence, hit, and whether the image has a label.
    """
    names = [name for name, _ in groups]
    found = []
    for name, strength in sorted(groups, key=lambda group: (names.index(group[0]), _number(group[1]))):
        count, entropy, confidence, hits, known = groups[name, strength].tolist()
        if count:
            group = {"operation": name, "strength": strength, "targets": int(count), "entropy": entropy / count}
            found.append({**group, "confidence": confidence / count, "agreement": hits / known if known else None})
    return found


def _number(strength: str) -> float:
    try:
        return float(strength)
    except ValueError:
        return 0.0
