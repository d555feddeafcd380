"""The pictures of cards: images and views with the teacher's answers, and what the targets look like."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset

from hf_reinforce.augmentations import Crop
from hf_reinforce.cards.statistics import BINS, Statistics, largest_entropy
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.replay.dataset import ReinforcedDataset
from hf_reinforce.store.config import ReinforcementConfig
from hf_reinforce.store.parquet import whole_file

PREVIEW_FILE = "preview.png"
STATISTICS_FILE = "statistics.png"
_IMAGES, _VIEWS, _BARS = 3, 4, 5
_VIEW_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7")
_RIGHT, _OTHER = "#2a9d5c", "#8d99ae"
_SIZE = 9  # of the smallest letters, points
_LINE = 23  # letters of a caption


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
    """Draws the images at some positions, their first views, and the stored targets of these.

    The box that a view was cropped from has the colour of the view's frame.
    """
    from matplotlib.figure import Figure  # the object interface: no display and no global state

    views = min(_VIEWS, dataset.config.num_samples)
    figure = Figure(figsize=(1.8 * (views + 1), 3.1 * len(positions)), layout="constrained")
    axes = figure.subplots(2 * len(positions), views + 1, squeeze=False, height_ratios=[2, 1.1] * len(positions))
    for row, position in enumerate(positions):
        top, bottom = axes[2 * row], axes[2 * row + 1]
        image = dataset.image(position).permute(1, 2, 0).numpy()
        top[0].imshow(image)
        top[0].set_title(_title(dataset, position), fontsize=_SIZE, fontweight="bold", parse_math=False)
        bottom[0].axis("off")
        for slot in range(views):
            top[slot + 1].imshow(dataset.view(position, slot).permute(1, 2, 0).round().numpy().astype(np.uint8))
            top[slot + 1].set_title(_caption(dataset, position, slot), fontsize=_SIZE)
            top[slot + 1].spines[:].set(color=_VIEW_COLOURS[slot], linewidth=2.5)
            _outline(top[0], dataset, position, slot, image.shape)
            _bars(bottom[slot + 1], dataset, position, slot)
        for axis in top:
            axis.set(xticks=[], yticks=[])
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=160)


def draw_statistics(statistics: Statistics, config: ReinforcementConfig, path: Path) -> None:
    """Draws how sure the teacher was, and where there are labels how often it was right, overall and by class."""
    from matplotlib.figure import Figure

    by_class = sorted(100 * share for share in statistics.class_agreement or () if share is not None)
    panels = 3 if len(by_class) > 1 else 2
    figure = Figure(figsize=(3 * panels, 2.7), layout="constrained")
    axes = figure.subplots(1, panels)
    share = 100 / max(sum(statistics.confidence_counts), 1)
    steps = np.arange(BINS) / BINS
    counts, hits = np.array(statistics.confidence_counts), np.array(statistics.confidence_hits or [0] * BINS)
    other = "it is another class" if statistics.confidence_hits else None
    axes[0].bar(steps, hits * share, 0.9 / BINS, align="edge", color=_RIGHT, label="it is the label")
    axes[0].bar(steps, (counts - hits) * share, 0.9 / BINS, hits * share, align="edge", color=_OTHER, label=other)
    axes[0].set(title="How sure the teacher was", xlabel="probability of the most likely class", xlim=(0, 1))
    if statistics.confidence_hits:
        axes[0].set_ylim(top=1.35 * float(counts.max()) * share)  # room for the legend
        axes[0].legend(frameon=False, fontsize=_SIZE, loc="upper left", handlelength=1, borderaxespad=0.2)
    most = largest_entropy(config)
    entropies = np.array(statistics.entropy_counts) * share
    axes[1].bar(steps * most, entropies, 0.9 * most / BINS, align="edge", color=_OTHER)
    axes[1].set(title="How spread out its answers are", xlabel="entropy of a target (nats)", xlim=(0, most))
    for axis in axes[:2]:
        axis.set_ylabel("share of the targets (%)")
    if panels == 3:
        axes[2].fill_between(np.arange(1, len(by_class) + 1), by_class, color=_RIGHT, alpha=0.35, linewidth=0)
        axes[2].plot(np.arange(1, len(by_class) + 1), by_class, color=_RIGHT)
        axes[2].set(title="How often it is right, by class", xlabel="classes, sorted", ylim=(0, 100))
        axes[2].set(ylabel="share of a class's targets (%)", xlim=(1, len(by_class)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_size(_SIZE + 1)
        axis.xaxis.label.set_size(_SIZE)
        axis.yaxis.label.set_size(_SIZE)
        axis.tick_params(labelsize=_SIZE)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=160)


def _name(dataset: ReinforcedDataset, label: int) -> str:
    names = dataset.config.class_names
    name = (names[label] if names else str(label)).split(",")[0]
    return name if len(name) <= 16 else f"{name[:15]}\N{HORIZONTAL ELLIPSIS}"


def _title(dataset: ReinforcedDataset, position: int) -> str:
    label = dataset._label(position).get("labels")
    return "image" if label is None else f"image: {_name(dataset, label)}"


def _outline(axis: Any, dataset: ReinforcedDataset, position: int, slot: int, shape: Sequence[int]) -> None:
    """The box of a view on its image, in pixels of that; a policy that resizes first has it in resized pixels."""
    from matplotlib.patches import Rectangle

    box = dataset.params(position, slot).get(Crop.field)
    if box is None:
        return
    resized = [operation.size for operation in dataset.policy.view_operations if operation.stage == "resize"]  # type: ignore[attr-defined]
    scale = min(shape[:2]) / resized[0] if resized else 1.0
    left, top, width, height = (scale * box[side] for side in ("left", "top", "width", "height"))
    corner = (left - 0.5, top - 0.5)
    axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=_VIEW_COLOURS[slot], linewidth=1.5))


def _bars(axis: Any, dataset: ReinforcedDataset, position: int, slot: int) -> None:
    if dataset.config.classes is None:
        axis.axis("off")
        return
    classes, values = zip(*dataset.config.classes.most_likely(dataset.target(position, slot), _BARS), strict=True)
    shown, label = len(classes), dataset._label(position).get("labels")
    colours = [_RIGHT if index == label else _OTHER for index in classes]
    axis.barh(range(shown), values, color=colours, alpha=0.55)
    for place, (index, value) in enumerate(zip(classes, values, strict=True)):
        share = f"{value:.0%}" if value >= 0.01 else "<1%"
        axis.text(0.02, place, _name(dataset, index), fontsize=_SIZE, va="center", parse_math=False)
        axis.text(1, place, share, fontsize=_SIZE, va="center", ha="right")
    axis.set(xlim=(0, 1), ylim=(shown - 0.4, -0.6), yticks=[], xticks=[])
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def _caption(dataset: ReinforcedDataset, position: int, slot: int) -> str:
    """The operations that made a view, as each of them says it."""
    params = dataset.params(position, slot)
    stored = [(operation, params.get(operation.field or "")) for operation in dataset.policy.operations]
    drawn = [operation.caption(own) for operation, own in stored if own is not None]
    return fill(", ".join(filter(None, drawn)), _LINE) or "crop"
