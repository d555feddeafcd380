"""One pass over the stored targets of a configuration: what the card and the inspection say about them."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_reinforce import schema
from hf_reinforce.augmentations.base import valid
from hf_reinforce.store.config import ReinforcementConfig
from hf_reinforce.store.shards import open_shard

_MAX_TARGETS, _MAX_SHARDS = 2**18, 32  # that a card is measured on
_BATCH_TARGETS, _BATCH_CELLS = 2**15, 2**22  # that are read at once: targets, and probabilities of the images' means


@dataclass(frozen=True)
class Statistics:
    """What the stored targets of a configuration say.

    Attributes:
        num_rows: images of the dataset.
        num_bytes: size of the Parquet files.
        measured_rows: images that the rest is measured on, with all their targets.
        agreement: share of the targets whose most likely class is the label; None without labels or classes.
        agreement_of_mean: share of the images whose mean target over the unmixed views is most likely the label.
        figures: means of what each target says of itself, see `Target.figures`.
        groups: number of `targets`, `agreement` and `figures` of each `operation` and `strength`.
    """

    num_rows: int
    num_bytes: int
    measured_rows: int
    agreement: float | None
    agreement_of_mean: float | None
    figures: dict[str, float]
    groups: list[dict[str, Any]]


def measure(
    shards: Sequence[Path], config: ReinforcementConfig, every_row: bool = False
) -> tuple[Statistics, dict[str, NDArray[Any]]]:
    """Reads the stored targets once. Memory grows by about 100 bytes with each image that is read.

    Without `every_row`, up to 2^18 targets are read, of evenly spaced rows of up to 32 evenly spaced shards.

    Returns:
        The statistics; and what was found for each image that was read, arrays [R]: `row` of the source, `hash`,
        `label` (-1: none), `compared` (it has a label and an unmixed view), and of the mean target over the unmixed
        views the `prediction`, its `probability` and the `label_probability`.

    Raises:
        ValueError: if there are no rows, or a shard is damaged.
    """
    counts = {}
    for shard in shards:
        with open_shard(shard) as file:
            counts[shard] = int(file.metadata.num_rows)
    chosen, step = [shard for shard, count in counts.items() if count], 1
    if not chosen:
        raise ValueError("The reinforced dataset has no rows; run the command that reinforces it again.")
    if not every_row:
        spaced = np.unique(np.linspace(0, len(chosen) - 1, _MAX_SHARDS).round().astype(int))
        chosen = [chosen[index] for index in spaced]
        step = -(-sum(counts[shard] for shard in chosen) * config.num_samples // _MAX_TARGETS)
    sums: dict[tuple[str, str], Any] = defaultdict(int)
    images = []
    for batch in tqdm(_batches(chosen, config, step), desc="Reading targets", unit="batch", leave=False):
        params = batch.column(schema.AUGMENTATION_PARAMS).flatten()
        agreement, of_images = _compared(batch, params, config)
        figures = _figures(batch, config)
        values = np.stack([np.ones(len(params)), agreement, *figures.values()])
        known = np.stack([np.nan_to_num(values), ~np.isnan(values)])  # sums over these are sums and counts
        sums["all", ""] += known.sum(axis=-1)
        for operation in config.policy.operations:
            if operation.field is not None:
                for name, strength, mask in operation.bins(params.field(operation.field), config.policy.image_size):
                    sums[name, strength] += known[..., mask].sum(axis=-1)
        images.append(of_images)

    def means(group: tuple[str, str]) -> dict[str, Any]:
        _, agreement, *others = (value / count if count else None for value, count in sums[group].T.tolist())
        return {"agreement": agreement, "figures": dict(zip(figures, others, strict=True))}

    def place(group: tuple[str, str]) -> tuple[int, float]:
        return names.index(group[0]), float(group[1]) if re.fullmatch(r"[\d.]+", group[1]) else 0.0

    names = [operation for operation, _ in sums]
    everything, *groups = sorted((group for group in sums if sums[group][0, 0]), key=place)
    found = {key: np.concatenate([part[key] for part in images]) for key in images[0]}
    right = (found["prediction"] == found["label"])[found["compared"]]
    statistics = Statistics(
        num_rows=sum(counts.values()),
        num_bytes=sum(shard.stat().st_size for shard in shards),
        measured_rows=len(found["row"]),
        agreement_of_mean=float(right.mean()) if len(right) else None,
        **means(everything),
        groups=[
            {"operation": group[0], "strength": group[1], "targets": int(sums[group][0, 0]), **means(group)}
            for group in groups
        ],
    )
    return statistics, found


def _batches(shards: Sequence[Path], config: ReinforcementConfig, step: int) -> Iterator[pa.RecordBatch]:
    """Every `step`-th row of some shards, as many at a time as fit into some ten megabytes."""
    size = max(min(_BATCH_TARGETS // config.num_samples, _BATCH_CELLS // max(config.num_classes, 1)), 1)
    for shard in shards:
        start = 0
        with open_shard(shard) as file:
            for batch in file.iter_batches(size, columns=config.own_columns):
                first = -start % step
                start += len(batch)
                if first < len(batch):
                    yield batch.take(pa.array(range(first, len(batch), step)))


def _figures(batch: pa.RecordBatch, config: ReinforcementConfig) -> dict[str, NDArray[Any]]:
    """The figures of all targets for each view [B * N]; those of a row belong to each of its views."""
    found = {}
    for target in config.targets:
        column = batch.column(target.column)
        for name, values in target.figures(column if target.per == "row" else column.flatten()).items():
            key = name if len(config.targets) == 1 else f"{target.column}: {name}"
            found[key] = np.repeat(values, config.num_samples) if target.per == "row" else values
    return found


def _compared(
    batch: pa.RecordBatch, params: pa.StructArray, config: ReinforcementConfig
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Whether each target's most likely class is the label [B * N], nan without one; and the images, see `measure`."""
    size, target, label = len(batch), config.classes, np.full(len(batch), -1)
    if config.source.label_column is not None:
        stored = batch.column(config.source.label_column).cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        label = np.where((stored >= 0) & (stored < config.num_classes), stored, -1)
    hits, views, mean = np.full(len(params), np.nan), np.zeros(size), np.zeros((size, 1))
    if target is not None:
        top, masses = target.masses(batch.column(target.column).flatten())
        image, of_image = (np.repeat(values, config.num_samples) for values in (np.arange(size), label))
        hits = np.where(of_image < 0, np.nan, top[:, 0] == of_image)
        unmixed = np.ones(len(params), bool)
        for mixing in config.policy.mix_operations:
            unmixed &= ~valid(params.field(mixing.field))
        views = unmixed.reshape(size, -1).sum(axis=1)
        cells, weights = image[:, None] * config.num_classes + top, masses[:, :-1] * unmixed[:, None]
        total = np.bincount(cells.ravel(), weights.ravel(), minlength=size * config.num_classes)
        mean = total.reshape(size, -1) / np.maximum(views, 1)[:, None]
    return hits, {
        "row": batch.column(schema.SOURCE_ROW).to_numpy(),
        "hash": np.array(batch.column(schema.IMAGE_HASH).to_pylist(), "S16"),
        "label": label,
        "compared": (label >= 0) & (views > 0),
        "prediction": mean.argmax(axis=1),
        "probability": mean.max(axis=1),
        "label_probability": mean[np.arange(size), np.minimum(label, mean.shape[1] - 1)],
    }
