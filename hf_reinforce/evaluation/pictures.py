"""Reliability diagrams, and the style of all pictures.

The colours are those of Okabe and Ito, which colour-blind readers tell apart; shapes or words say the same again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_reinforce.metrics import ReliabilityDiagram

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SIZE = 9
"""Of the letters, in points."""


def draw_reliability(
    diagrams: Mapping[str, ReliabilityDiagram], errors: Mapping[str, float | None], path: Path, columns: int = 4
) -> None:
    """Draws accuracy against confidence, a panel for each model or dataset by its title, and how many images each bin
    holds; `errors` are the calibration errors."""
    columns = min(len(diagrams), columns)
    lines = -(-len(diagrams) // columns)
    figure = new_figure(max(3.0 * columns, 4.0), 3.7 * lines + 0.3)
    grid = figure.add_gridspec(2 * lines, columns, height_ratios=[3, 1] * lines)
    gap = {"facecolor": "none", "edgecolor": COLOURS[5], "hatch": "////", "linewidth": 0.8}
    for place, (title, diagram) in enumerate(diagrams.items()):
        line, column = divmod(place, columns)
        axis = figure.add_subplot(grid[2 * line, column])
        below = figure.add_subplot(grid[2 * line + 1, column], sharex=axis)
        width = 1 / len(diagram.count)
        starts = np.arange(len(diagram.count)) * width
        accuracy, confidence = np.array(diagram.accuracy, float), np.array(diagram.confidence, float)  # nan for None
        shares = 100 * np.array(diagram.count) / max(sum(diagram.count), 1)
        bars = {"width": width, "align": "edge"}
        axis.bar(starts, accuracy, color=COLOURS[0], edgecolor="white", linewidth=0.5, label="accuracy", **bars)
        axis.bar(starts, confidence - accuracy, bottom=accuracy, label="gap to the confidence", **gap, **bars)
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
        below.bar(starts, shares, color="#8d99ae", **bars)
        error = errors.get(title)
        set_title(axis, title if error is None else f"{title}\nECE {error:.3f}")
        axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="" if column else "accuracy")
        axis.tick_params(labelbottom=False)
        below.set(xlabel="confidence", ylabel="" if column else "images (%)")
        if place == 0:
            handles, names = axis.get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False, fontsize=SIZE)
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


def save_figure(figure: Any, path: Path) -> None:
    """Writes a PNG file."""
    figure.savefig(path, dpi=130)
