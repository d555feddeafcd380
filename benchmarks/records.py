"""Reinforced datasets with made-up teacher outputs, in our format and in the original's, made once."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.measure import Settings
from benchmarks.original import to_record, write_record
from benchmarks.photos import photos_key
from hf_reinforce import (
    AugmentationPolicy,
    ReinforcementConfig,
    Teacher,
    images,
    load_policy,
    load_teacher,
    reinforce,
    schema,
)
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.store.config import PixelContract, SourceRecord
from hf_reinforce.store.pixel_contract import library_versions, reference_view
from hf_reinforce.store.shards import shard_name, write_shard
from hf_reinforce.targets import ClassDistribution
from hf_reinforce.targets.class_distribution import FIELDS, Targets, encode

CLASSES, TOP_K = 1000, 10
TARGET = ClassDistribution((), TOP_K, CLASSES)


class MadeUpNet(nn.Module):
    """A network that costs nothing: its logits depend on the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(pixels.mean((2, 3)))


def made_up_teacher(image_size: int) -> Teacher:
    """A teacher that costs nothing, for what does not depend on its answers."""
    torch.manual_seed(0)
    return load_teacher(MadeUpNet(), preprocessing=Preprocessing(image_size))


def made_up_targets(count: int, seed: int) -> dict[str, NDArray[Any]]:
    """Answers of `count` views by field of a record: classes [R, K], log-probabilities [R, K], tails [R]."""
    rng = np.random.default_rng(seed)
    masses = rng.dirichlet(np.full(TOP_K + 1, 0.4), count).clip(1e-6)
    masses /= masses.sum(axis=1, keepdims=True)
    values = -np.sort(-masses[:, :-1], axis=1)
    start, step = rng.integers(CLASSES, size=(count, 1)), rng.integers(1, CLASSES // TOP_K, (count, 1))
    return {
        "label": (start + step * np.arange(TOP_K)) % CLASSES,
        "value": np.log(values).astype(np.float32),
        "tail": np.log(masses[:, -1]).astype(np.float32),
    }


def reinforced_table(
    policy: AugmentationPolicy,
    num_samples: int,
    rows: Sequence[int],
    hashes: Sequence[str],
    params: pa.Array | list[Any],
    targets: dict[str, NDArray[Any]],
) -> pa.Table:
    """Rows of a reinforced dataset; `params` and `targets` hold the reinforcements of row after row."""
    features = schema.reinforced_features(
        {}, policy.feature, num_samples, {TARGET.column: TARGET.column_feature(num_samples)}
    )
    arrow = Features(features).arrow_schema
    lists = lambda values, field: pa.FixedSizeListArray.from_arrays(values, type=arrow.field(field).type)
    kind = arrow.field(schema.AUGMENTATION_PARAMS).type.value_type
    drawn = pa.array(params, kind) if isinstance(params, list) else params
    answers = TARGET.records(encode(Targets(*(torch.from_numpy(targets[field]) for field in FIELDS))))
    columns = {
        schema.SOURCE_ROW: pa.array(rows, pa.int64()),
        schema.IMAGE_HASH: pa.array(hashes, pa.string()),
        schema.AUGMENTATION_PARAMS: lists(drawn, schema.AUGMENTATION_PARAMS),
        TARGET.column: lists(answers, TARGET.column),
    }
    return pa.table([columns[name] for name in arrow.names], schema=arrow)


def made_up_config(policy: AugmentationPolicy, num_samples: int, num_rows: int) -> ReinforcementConfig:
    """A finished `reinforcement.json` without reference views."""
    return ReinforcementConfig(
        policy=policy,
        num_samples=num_samples,
        targets=(TARGET,),
        seed=0,
        source=SourceRecord(None, None, None, "train", num_rows, "image", None, ()),
        pixels=PixelContract(images.PIXEL_BACKEND, library_versions(), ()),
        shard_size=num_rows,
        shuffled=False,
        complete=True,
    )


def both_formats(settings: Settings, policy_name: str, num_samples: int) -> tuple[Path, Path]:
    """The same N records of every photo: a folder for `load_reinforced`, and one of the original's files."""
    photos, policy = settings.photos, load_policy(policy_name, settings.image_size)
    folder = settings.cache / f"{policy_name}-{len(photos)}x{num_samples}-{photos_key(photos)}"
    ours, original = folder / "ours", folder / "original"
    if (ours / policy_name / "reinforcement.json").exists():
        return ours, original
    (ours / policy_name).mkdir(parents=True, exist_ok=True)
    original.mkdir(exist_ok=True)
    tables, hashes, references = [], [], []
    for row, item in enumerate(tqdm(photos, desc=f"{num_samples} made-up {policy_name} records a photo")):
        encoded = item["image"]["bytes"]
        image = images.decode(encoded)
        params = [policy.sample(0, row, slot, *image.shape[1:]) for slot in range(num_samples)]
        targets = made_up_targets(num_samples, row)
        probs, labels = np.exp(targets["value"]).tolist(), targets["label"].tolist()
        write_record(original, row, [to_record(*record) for record in zip(params, probs, labels, strict=True)])
        hashes.append(images.image_hash(encoded))
        tables.append(reinforced_table(policy, num_samples, [row], hashes[-1:], params, targets))
        if row < 4:
            references.append(reference_view(policy, 0, row, 0, image))
    write_shard(ours / policy_name / shard_name("train", 0, 1), pa.concat_tables(tables).combine_chunks(), [TARGET])
    config = made_up_config(policy, num_samples, len(photos))
    replace(config, pixels=replace(config.pixels, reference_views=tuple(references))).save(ours / policy_name)
    return ours, original


def encoded_photos(photos: Dataset, count: int) -> list[bytes]:
    """The bytes of the first photos."""
    return [item["image"]["bytes"] for item in photos.select(range(min(count, len(photos))))]


def generate(photos: Dataset, teacher: Teacher, policy: AugmentationPolicy, folder: Path, **options: Any) -> None:
    """`reinforce` into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    reinforce(photos, teacher, policy, folder, **{"class_map": "identity", "device": "cpu", **options})
