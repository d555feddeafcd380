"""The pictures of cards and inspections: images and views with the teacher's answers, and doubtful labels."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from datasets import Dataset, Image, IterableDataset
from torch import Tensor

from hf_reinforce.augmentations import Crop
from hf_reinforce.models.classes import class_words
from hf_reinforce.randomness import PARTNER_BLOCK
from hf_reinforce.replay.dataset import ReinforcedDataset
from hf_reinforce.store.atomic import whole_file
from hf_reinforce.store.config import ReinforcementConfig
from hf_reinforce.store.rows import ParquetRows
from hf_reinforce.store.shards import shard_files

PREVIEW_FILE = "preview.png"
_IMAGES, _VIEWS, _BARS = 3, 4, 5
_COLUMNS = 4  # of doubtful labels
_VIEW_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7")
_RIGHT, _OTHER = "#2a9d5c", "#8d99ae"
_BOX = ("left", "top", "width", "height")
_SIZE = 9  # of the letters, points
_LINE = 23  # letters of a caption


def write_preview(folder: str | Path, images: Dataset | IterableDataset | None = None) -> None:
    """Draws the first images of a reinforced dataset, some of their views and targets: `preview.png`.

    Args:
        folder: the folder of a finished configuration, as `reinforce` returns it.
        images: the dataset that was reinforced, in the same order; None if its images are embedded.

    Raises:
        ValueError: if a shard is damaged, or `images` are others.

    Example:
        from hf_reinforce import load_source, write_preview

        write_preview("outputs/cifar100-plus/small_randaug", load_source("uoft-cs/cifar100"))
    """
    folder = Path(folder)
    config = ReinforcementConfig.load(folder)
    embedded = [config.source.image_column] if config.embed_images else []
    rows = ParquetRows([str(shard) for shard in shard_files(folder, config.split)], config.own_columns + embedded)
    if not len(rows):
        return
    if images is not None:
        images = images.cast_column(config.source.image_column, Image(decode=False))
    if isinstance(images, IterableDataset):
        images = Dataset(next(iter(images.with_format("arrow").iter(batch_size=PARTNER_BLOCK))))
        rows = rows.select(range(min(PARTNER_BLOCK, len(rows))))
    dataset = ReinforcedDataset(rows, config, images, accept_pixel_mismatch=True)
    draw(dataset, range(min(_IMAGES, len(rows))), folder / PREVIEW_FILE)


def draw(dataset: ReinforcedDataset, positions: Sequence[int], path: Path) -> None:
    """Draws the images at some positions, and their first views with the stored targets.

    The box that a view was cropped from has the colour of the view's frame.
    """
    from matplotlib.figure import Figure  # the object interface: no display and no global state
    from matplotlib.patches import Rectangle

    views, names = min(_VIEWS, dataset.config.num_samples), class_words(dataset.config.class_names or ())
    figure = Figure(figsize=(1.8 * (views + 1), 3.1 * len(positions)), layout="constrained")
    axes = figure.subplots(2 * len(positions), views + 1, squeeze=False, height_ratios=[2, 1.1] * len(positions))
    resized: list[Any] = [operation for operation in dataset.policy.view_operations if operation.stage == "resize"]
    for position, top, bottom in zip(positions, axes[::2], axes[1::2], strict=True):
        image = dataset.image(position).permute(1, 2, 0).numpy()
        scale = min(image.shape[:2]) / resized[0].size if resized else 1.0  # boxes are in resized pixels
        label = dataset._label(position).get("labels")
        title = "image" if label is None else f"image: {_name(names, label)}"
        top[0].set_title(title, fontsize=_SIZE, fontweight="bold", parse_math=False)
        top[0].imshow(image)
        for slot, colour in enumerate(_VIEW_COLOURS[:views]):
            params, axis = dataset.params(position, slot), top[slot + 1]
            axis.imshow(dataset.view(position, slot).permute(1, 2, 0).round().numpy().astype(np.uint8))
            stored = [(operation, params.get(operation.field or "")) for operation in dataset.policy.operations]
            captions = [operation.caption(own) for operation, own in stored if own is not None]
            axis.set_title(fill(", ".join(filter(None, captions)), _LINE) or "crop", fontsize=_SIZE)
            axis.spines[:].set(color=colour, linewidth=2.5)
            if params.get(Crop.field) is not None:
                left, upper, width, height = (scale * params[Crop.field][side] for side in _BOX)
                corner = (left - 0.5, upper - 0.5)
                top[0].add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=1.5))
            if dataset.config.classes is not None:
                likely = dataset.config.classes.most_likely(dataset.target(position, slot), _BARS)
                _bars(bottom[slot + 1], likely, names, label)
        for axis in (*top, *bottom):
            axis.set(xticks=[], yticks=[])
        for axis in bottom if dataset.config.classes is None else bottom[:1]:
            axis.axis("off")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=160)


def _name(names: Sequence[str] | None, label: int) -> str:
    name = (names[label] if names else str(label)).split(",")[0]
    return name if len(name) <= 16 else f"{name[:15]}\N{HORIZONTAL ELLIPSIS}"


def _bars(axis: Any, likely: Sequence[tuple[int, float]], names: Sequence[str] | None, label: int | None) -> None:
    """The most likely classes of a target."""
    colours = [_RIGHT if index == label else _OTHER for index, _ in likely]
    axis.barh(range(len(likely)), [value for _, value in likely], color=colours, alpha=0.55)
    for place, (index, value) in enumerate(likely):
        share = f"{value:.0%}" if value >= 0.01 else "<1%"
        axis.text(0.02, place, _name(names, index), fontsize=_SIZE, va="center", parse_math=False)
        axis.text(1, place, share, fontsize=_SIZE, va="center", ha="right")
    axis.set(xlim=(0, 1), ylim=(len(likely) - 0.4, -0.6))
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def draw_doubtful(shown: Sequence[tuple[dict[str, Any], Tensor]], path: Path) -> None:
    """Draws a contact sheet: entries of `disagreements`, see `inspect_dataset`, with their images, uint8 [3, H, W]."""
    from matplotlib.figure import Figure

    lines = -(-len(shown) // _COLUMNS)
    figure = Figure(figsize=(2.6 * _COLUMNS, 3.1 * lines), layout="constrained")
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, (item, picture) in zip(axes, shown, strict=False):
        axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        caption = (
            f"row {item['row']}\nlabel: {_name([item['label_name']], 0)} {item['label_probability']:.0%}\n"
            f"teacher: {_name([item['prediction_name']], 0)} {item['probability']:.0%}"
        )
        axis.set_title(caption, fontsize=_SIZE, loc="left", parse_math=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=90)
