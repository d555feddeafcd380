"""The pictures of an evaluation: reliability, accuracy under corruptions, confused classes; and the style of them all.

The colours are those of Okabe and Ito, which colour-blind readers tell apart; shapes or words say the same again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_reinforce.metrics import ReliabilityDiagram

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#8d99ae"
SIZE = 9
"""Of the letters, in points."""
_DPI = 130


def draw_reliability(
    diagrams: Mapping[str, ReliabilityDiagram], errors: Mapping[str, float | None], path: Path, columns: int = 4
) -> None:
    """Draws accuracy against confidence, a panel for each model or dataset, and how many images each bin holds.

    Args:
        diagrams: title -> diagram.
        errors: title -> expected calibration error.
        path: of the picture.
        columns: most panels side by side.
    """
    columns = min(len(diagrams), columns)
    lines = -(-len(diagrams) // columns)
    figure = new_figure(max(3.0 * columns, 4.0), 3.7 * lines + 0.3)
    grid = figure.add_gridspec(2 * lines, columns, height_ratios=[3, 1] * lines)
    for place, (title, diagram) in enumerate(diagrams.items()):
        line, column = divmod(place, columns)
        axis = figure.add_subplot(grid[2 * line, column])
        below = figure.add_subplot(grid[2 * line + 1, column], sharex=axis)
        _reliability_panel(axis, diagram)
        width = 1 / len(diagram.count)
        counts = np.array(diagram.count, float)
        below.bar(
            np.arange(len(counts)) * width, 100 * counts / max(counts.sum(), 1), width, align="edge", color=_GREY
        )
        error = errors.get(title)
        set_title(axis, title if error is None else f"{title}\nECE {error:.3f}")
        axis.tick_params(labelbottom=False)
        below.set(xlabel="confidence", ylabel="" if column else "images (%)")
        axis.set_ylabel("" if column else "accuracy")
        if place == 0:
            handles, names = axis.get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False, fontsize=SIZE)
    save_figure(figure, path)


def _reliability_panel(axis: Any, diagram: ReliabilityDiagram) -> None:
    width = 1 / len(diagram.count)
    starts = np.arange(len(diagram.count)) * width
    accuracy = np.array([np.nan if value is None else value for value in diagram.accuracy], float)
    confidence = np.array([np.nan if value is None else value for value in diagram.confidence], float)
    axis.bar(
        starts, accuracy, width, align="edge", color=COLOURS[0], edgecolor="white", linewidth=0.5, label="accuracy"
    )
    gap = {"facecolor": "none", "edgecolor": COLOURS[5], "hatch": "////", "linewidth": 0.8}
    axis.bar(starts, confidence - accuracy, width, accuracy, align="edge", label="gap to the confidence", **gap)
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
    axis.set(xlim=(0, 1), ylim=(0, 1))


def draw_corruption_map(accuracies: Mapping[str, Mapping[int, float]], clean: float | None, path: Path) -> None:
    """Draws accuracy by corruption (a row each) and severity (a column each) in colours and figures.

    Args:
        accuracies: corruption -> severity -> accuracy in [0, 1].
        clean: accuracy without corruption, None if it isn't known.
        path: of the picture.
    """
    severities = sorted({severity for by_severity in accuracies.values() for severity in by_severity})
    values = 100 * np.array([[row.get(severity, np.nan) for severity in severities] for row in accuracies.values()])
    values = np.column_stack([values, np.nanmean(values, axis=1)])
    names = [*map(str, severities), "mean"]
    if clean is not None:
        values, names = np.column_stack([np.full(len(values), 100 * clean), values]), ["clean", *names]
    figure = new_figure(2.2 + 0.75 * len(names), 1.2 + 0.32 * len(values))
    axis = figure.subplots()
    image = axis.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=max(np.nanmax(values), 1))
    for (row, column), value in np.ndenumerate(values):
        dark = value < image.norm.vmax * 0.55
        label = "" if np.isnan(value) else f"{value:.1f}"
        axis.text(column, row, label, ha="center", va="center", fontsize=SIZE, color="white" if dark else "black")
    axis.set_yticks(range(len(values)), [name.replace("_", " ") for name in accuracies], parse_math=False)
    axis.set_xticks(range(len(names)), names)
    axis.set_xlabel("severity")
    set_title(axis, "Accuracy (%) by corruption and severity")
    finish_axis(axis)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    save_figure(figure, path)


def draw_confusions(pairs: Sequence[tuple[str, str, float]], title: str, path: Path) -> None:
    """Draws how often classes are taken for others.

    Args:
        pairs: (right class, class it is taken for, images), the most frequent first; at least one.
        title: of the dataset.
        path: of the picture.
    """
    figure = new_figure(7, 0.9 + 0.27 * len(pairs))
    axis = figure.subplots()
    bars = axis.barh(range(len(pairs)), [count for *_, count in pairs], color=COLOURS[0])
    axis.bar_label(bars, [f"{count:g}" for *_, count in pairs], padding=3, fontsize=SIZE)
    names = [pair_name(label, taken) for label, taken, _ in pairs]
    axis.set_yticks(range(len(pairs)), names, parse_math=False)
    axis.set(ylim=(len(pairs) - 0.4, -0.6), xlabel="images")
    axis.xaxis.get_major_locator().set_params(integer=True)
    set_title(axis, f"{title}, most confused: right class \N{RIGHTWARDS ARROW} what it is taken for")
    finish_axis(axis)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches."""
    from matplotlib.figure import Figure  # the object interface: no display and no global state

    return Figure(figsize=(width, height), layout="constrained")


def line_style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line with this index, and its width."""
    colour, marker = COLOURS[index % len(COLOURS)], _MARKERS[index % len(_MARKERS)]
    return {"color": colour, "marker": marker, "linestyle": ("-", "--", "-.", ":")[index % 4], "linewidth": 1.4}


def set_title(axis: Any, text: str, size: int = SIZE + 1) -> None:
    """A title in which no sign has a meaning."""
    axis.set_title(text, fontsize=size, parse_math=False)


def finish_axis(axis: Any) -> None:
    """Letters of one size, and no frame."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.label.set_size(SIZE)
    axis.yaxis.label.set_size(SIZE)
    axis.tick_params(labelsize=SIZE)


def pair_name(label: str, taken: str) -> str:
    """A pair of classes: the right one and what it is taken for."""
    return f"{_short(label)} \N{RIGHTWARDS ARROW} {_short(taken)}"


def _short(name: str) -> str:
    name = name.split(",")[0].replace("_", " ")
    return name if len(name) <= 24 else f"{name[:23]}\N{HORIZONTAL ELLIPSIS}"


def save_figure(figure: Any, path: Path) -> None:
    """Writes a PNG file."""
    figure.savefig(path, dpi=_DPI)
