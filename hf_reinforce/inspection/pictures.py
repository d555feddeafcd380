"""The pictures of an inspection: targets by operation, and the images that the teacher disagrees with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_reinforce import images
from hf_reinforce.images import ImageError
from hf_reinforce.inspection.measure import Disagreement
from hf_reinforce.sources.loading import load_source, remote_source
from hf_reinforce.sources.rows import ParquetRows, column_reader
from hf_reinforce.splits import is_part
from hf_reinforce.store.config import ReinforcementConfig

OPERATIONS_FILE = "operations.png"
DISAGREEMENTS_FILE = "disagreements.png"
_COLUMNS = 4
_BARS, _LINE = ("#8cc8ee", "#c9dff0"), "#d55e00"
_WIDTH = 26  # of a caption, letters
_SIZE = 9  # points


def draw_operations(content: Mapping[str, Any], path: Path) -> bool:
    """Draws mean entropy, and with labels the agreement, of every operation and strength; False: there are none."""
    from matplotlib.figure import Figure  # the object interface: no display and no global state

    everything, groups = content["everything"], content["groups"]
    if not groups:
        return False
    panels = [("entropy of a target (nats)", [group["entropy"] for group in groups], everything["entropy"])]
    if everything["agreement"] is not None:
        shares = [100 * (group["agreement"] or 0.0) for group in groups]
        panels.append(("top-1 agreement with the label (%)", shares, 100 * everything["agreement"]))
    operations = list(dict.fromkeys(group["operation"] for group in groups))
    colours = [_BARS[operations.index(group["operation"]) % 2] for group in groups]
    figure = Figure(figsize=(3.2 + 3.4 * len(panels), 1.1 + 0.2 * len(groups)), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, values, mean) in zip(axes, panels, strict=True):
        bars = axis.barh(range(len(groups)), values, color=colours, height=0.8)
        texts = [f"{value:.2f}" if value < 10 else f"{value:.1f}" for value in values]
        axis.bar_label(bars, texts, label_type="center", fontsize=_SIZE - 1)
        axis.axvline(mean, color=_LINE, linewidth=1, linestyle="--")
        axis.set_title(f"{title}\ndashed: all targets", fontsize=_SIZE)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=_SIZE - 1)
    names = [f"{group['operation']}  {group['strength']}".strip() for group in groups]
    axes[0].set_yticks(range(len(groups)), names, parse_math=False)
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    figure.savefig(path, dpi=110)
    return True


def draw_disagreements(
    disagreements: Sequence[Disagreement], pictures: Sequence[Tensor], names: Sequence[str], path: Path
) -> None:
    """Draws images with their label and the teacher's class.

    Args:
        disagreements: what is known of each image, at least one.
        pictures: the images, uint8 [3, H, W].
        names: of the classes.
        path: of the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = -(-len(pictures) // _COLUMNS)
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
    figure = Figure(figsize=(2.6 * _COLUMNS, 3.1 * lines), layout=layout)
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, item, picture in zip(axes, disagreements, pictures, strict=False):
        axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        side = max(picture.shape[1:])
        axis.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))  # captions stand in line
        caption = (
            f"row {item.row}\nlabel: {_short(names[item.label])} {item.label_probability:.0%}\n"
            f"teacher: {_short(names[item.prediction])} {item.probability:.0%}"
        )
        axis.set_title(caption, fontsize=_SIZE, loc="left", parse_math=False)
    figure.savefig(path, dpi=90)


def read_images(
    disagreements: Sequence[Disagreement], config: ReinforcementConfig, shards: Sequence[str], source: str | None
) -> tuple[list[Tensor | None], list[str | None]]:
    """The images of some rows, without downloading the data set that holds them.

    Args:
        disagreements: the rows.
        config: the configuration.
        shards: its Parquet files, which hold the images if they are embedded.
        source: Hub id or folder of the images, default the recorded one.

    Returns:
        uint8 [3, H, W], and the name of the file where it has one; None for an image that is not the one that was
        reinforced, or cannot be read.

    Raises:
        ValueError: if the source is not known or cannot be read; the message says what to do.
    """
    record = config.source
    if config.embed_images:
        rows: Any = ParquetRows(shards, [record.image_column])
    else:
        name = source or record.name
        if name is None:
            raise ValueError("where the images are is not recorded; name them with --source_name_or_path.")
        revision = record.revision if source is None else None
        where = (record.config_name, record.split, revision)
        remote = None if is_part(record.split) else remote_source(name, [record.image_column], *where)
        rows = load_source(name, *where) if remote is None else remote
    read = column_reader(rows, record.image_column)
    found: dict[int, tuple[Tensor | None, str | None]] = {}
    for item in sorted(disagreements, key=lambda item: item.position if config.embed_images else item.row):
        at = item.position if config.embed_images else item.row
        found[item.position] = _decoded(read(at) if at < len(rows) else None, item)
    both = [found[item.position] for item in disagreements]
    return [picture for picture, _ in both], [file for _, file in both]


def _decoded(stored: dict[str, object] | None, item: Disagreement) -> tuple[Tensor | None, str | None]:
    try:
        encoded = images.read_encoded(stored)
        if images.image_hash(encoded) != item.image_hash:
            return None, None
        file = (stored or {}).get("path")
        return images.decode(encoded), None if file is None else Path(str(file)).name
    except ImageError:
        return None, None


def _short(name: str) -> str:
    first = name.split(",")[0]
    return first if len(first) <= _WIDTH - 8 else f"{first[: _WIDTH - 9]}\N{HORIZONTAL ELLIPSIS}"
