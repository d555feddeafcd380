"""`preview.png`: a few images, some of their views, and the teacher's answers as bars."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset

from hf_reinforce import schema
from hf_reinforce.config import ReinforcementConfig
from hf_reinforce.dataset import ReinforcedDataset
from hf_reinforce.randomness import PARTNER_BLOCK

PREVIEW_FILE = "preview.png"
_IMAGES, _VIEWS, _BARS = 3, 4, 5


def write_preview(
    folder: Path, config: ReinforcementConfig, shards: Sequence[Path], source: Dataset | IterableDataset
) -> None:
    """Draws `preview.png` into the folder of a configuration.

    Args:
        folder: the configuration's folder.
        config: its configuration.
        shards: its Parquet files; the first one is drawn from.
        source: the data set with the images. Of a stream, the first rows are enough.
    """
    table = pq.read_table(shards[0])
    if isinstance(source, IterableDataset):
        head = next(iter(source.with_format("arrow").iter(batch_size=PARTNER_BLOCK)))
        source = Dataset(head)
        table = table.slice(0, PARTNER_BLOCK)
    if not len(table):
        return
    reinforced = Dataset(table)
    dataset = ReinforcedDataset(reinforced, config, source, accept_pixel_mismatch=True)
    draw(dataset, range(min(_IMAGES, len(dataset))), folder / PREVIEW_FILE)


def draw(dataset: ReinforcedDataset, positions: Sequence[int], path: Path) -> None:
    """Draws the images at some positions, their first views, and the stored targets of these."""
    from matplotlib.figure import Figure  # the object interface: no display and no global state

    views = min(_VIEWS, dataset.config.num_samples)
    figure = Figure(figsize=(2.2 * (views + 1), 3.3 * len(positions)), layout="constrained")
    axes = figure.subplots(2 * len(positions), views + 1, squeeze=False, height_ratios=[2, 1.1] * len(positions))
    for row, position in enumerate(positions):
        top, bottom = axes[2 * row], axes[2 * row + 1]
        top[0].imshow(dataset.image(position).permute(1, 2, 0).numpy())
        top[0].set_title(_title(dataset, position), fontsize=8)
        bottom[0].axis("off")
        for slot in range(views):
            top[slot + 1].imshow(dataset.view(position, slot).permute(1, 2, 0).round().numpy().astype(np.uint8))
            top[slot + 1].set_title(_describe(dataset.params(position, slot)), fontsize=6)
            _bars(bottom[slot + 1], dataset, position, slot)
        for axis in top:
            axis.set_xticks([])
            axis.set_yticks([])
    figure.savefig(path, dpi=110)


def _name(dataset: ReinforcedDataset, label: int) -> str:
    names = dataset.config.class_names
    return (names[label] if names else str(label)).split(",")[0][:16]


def _title(dataset: ReinforcedDataset, position: int) -> str:
    label = dataset._label(position).get("labels")
    return "source image" if label is None else f"source: {_name(dataset, label)}"


def _bars(axis: "object", dataset: ReinforcedDataset, position: int, slot: int) -> None:
    target = dataset.target(position, slot)
    shown = min(_BARS, dataset.config.top_k)
    names = [_name(dataset, int(label)) for label in target["target_label"][:shown]]
    bars = axis.barh(range(shown), np.exp(target["target_value"][:shown]), color="#4c72b0")  # type: ignore[attr-defined]
    axis.bar_label(bars, names, padding=2, fontsize=6)  # type: ignore[attr-defined]
    axis.set(xlim=(0, 1.9), ylim=(shown - 0.4, -0.6), yticks=[], xticks=[0, 1])  # type: ignore[attr-defined]
    axis.tick_params(labelsize=6)  # type: ignore[attr-defined]
    axis.spines[["top", "right"]].set_visible(False)  # type: ignore[attr-defined]


def _describe(params: dict[str, object]) -> str:
    parts = []
    for step in params.get(schema.RAND_AUGMENT) or ():  # type: ignore[attr-defined]
        op, magnitude = schema.RAND_AUGMENT_OPERATIONS[step["op"]], step["magnitude"]
        parts.append(f"{op} {magnitude:.3g}" if magnitude else op)
    parts += [name for name in (schema.HFLIP, schema.ERASE, schema.MIXUP, schema.CUTMIX) if params.get(name)]
    return "\n".join(", ".join(parts[i : i + 2]) for i in range(0, len(parts), 2)) or "crop"
