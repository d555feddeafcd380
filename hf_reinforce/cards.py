"""Dataset cards, rendered from what is in the folder and nothing else."""

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from hf_reinforce import schema
from hf_reinforce.config import CONFIG_FILE, ReinforcementConfig

_TEMPLATE = Path(__file__).parent / "templates" / "dataset_card.md"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_SAMPLE_ROWS = 4096


@dataclass(frozen=True)
class Statistics:
    """What the shards of a configuration say about its targets.

    Attributes:
        num_rows: images.
        num_bytes: size of the Parquet files.
        captured_mass: mean probability inside the stored top k, in [0, 1].
        entropy: mean entropy of the stored targets over top k and tail, nats.
        agreement: share of the targets whose most likely class is the label, in [0, 1]; None without labels.
    """

    num_rows: int
    num_bytes: int
    captured_mass: float
    entropy: float
    agreement: float | None


def statistics(folder: Path, config: ReinforcementConfig) -> Statistics:
    """Statistics of a configuration; those of the targets are over the first 4,096 rows."""
    shards = sorted(folder.glob("[!.]*.parquet"))
    files = [pq.ParquetFile(shard) for shard in shards]
    label = config.source.label_column
    first = _first_rows(files, [schema.TEACHER_LOGITS, *([label] if label else [])])
    items = first.column(schema.TEACHER_LOGITS).combine_chunks().flatten()
    value = items.field(schema.VALUE).flatten().to_numpy().reshape(-1, config.top_k).astype(np.float64)
    tail = items.field(schema.TAIL).to_numpy().astype(np.float64)
    masses = np.exp(np.concatenate([value, tail[:, None]], axis=1))
    masses /= masses.sum(axis=1, keepdims=True)
    top = items.field(schema.LABEL).flatten().to_numpy().reshape(-1, config.top_k)[:, 0]
    agreement = None
    if label:
        agreement = float((top.reshape(-1, config.num_samples) == first.column(label).to_numpy()[:, None]).mean())
    return Statistics(
        num_rows=sum(file.metadata.num_rows for file in files),
        num_bytes=sum(shard.stat().st_size for shard in shards),
        captured_mass=float(masses[:, :-1].sum(axis=1).mean()),
        entropy=float(-(masses * np.log(np.maximum(masses, 1e-30))).sum(axis=1).mean()),
        agreement=agreement,
    )


def _first_rows(files: Sequence[pq.ParquetFile], columns: list[str]) -> pa.Table:
    batches, missing = [], _SAMPLE_ROWS
    for file in files:
        for batch in file.iter_batches(batch_size=missing, columns=columns) if file.metadata.num_rows else ():
            batches.append(batch.slice(0, missing))
            missing -= len(batches[-1])
            if missing == 0:
                return pa.Table.from_batches(batches).combine_chunks()
    return pa.Table.from_batches(batches).combine_chunks()


def _version(folder: Path, config: ReinforcementConfig) -> str:
    """Three numbers that change with the contents: `datasets` keeps a folder's rows in its cache by them."""
    digest = zlib.crc32((folder / CONFIG_FILE).read_bytes()) % 1_000_000
    return f"{config.schema_version}.{config.num_samples}.{digest}"


def write_dataset_card(folder: str | Path) -> None:
    """Writes `README.md` for a folder of configurations: `dataset_card` of all that are finished."""
    dataset_card(folder).save(Path(folder) / "README.md")


def dataset_card(folder: str | Path, config_names: Collection[str] | None = None) -> DatasetCard:
    """The card of a folder of configurations, as the Hub wants it.

    Args:
        folder: holds one subfolder with `reinforcement.json` and Parquet files for each configuration.
        config_names: the configurations to describe, default all that are finished.

    Raises:
        FileNotFoundError: if there is no finished configuration.
    """
    folder = Path(folder)
    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    configs = {path.name: ReinforcementConfig.load(path) for path in found}
    configs = {
        name: config
        for name, config in configs.items()
        if config.complete and (config_names is None or name in config_names)
    }
    if not configs:
        raise FileNotFoundError(f"{folder} holds no finished configuration of a reinforced data set.")
    stats = {name: statistics(folder / name, config) for name, config in configs.items()}
    first = next(iter(configs.values()))
    num_rows = max(item.num_rows for item in stats.values())
    # An unnamed or local source has no page on the Hub that the card could link to.
    source_id = first.source.name if first.source.name and first.source.name.count("/") == 1 else None
    data = DatasetCardData(
        pretty_name=folder.resolve().name,
        annotations_creators=["machine-generated"],
        task_categories=["image-classification"],
        size_categories=[next((name for limit, name in _SIZES if num_rows < limit), "1M<n<10M")],
        source_datasets=[source_id] if source_id and not source_id.startswith((".", "/")) else None,
        tags=["dataset-reinforcement", "knowledge-distillation"],
        configs=[
            {
                "config_name": name,
                "version": _version(folder / name, config),
                "data_files": [{"split": config.source.split, "path": f"{name}/{config.source.split}-*.parquet"}],
            }
            for name, config in configs.items()
        ],
    )
    return DatasetCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        configs=configs,
        stats=stats,
        folder_name=folder.resolve().name,
        first=first,
    )
