"""The pictures of a comparison: metrics with intervals, corruptions, training time, pairs of classes that changed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_reinforce.evaluation.bootstrap import HIGHER_IS_BETTER
from hf_reinforce.evaluation.comparison import Comparison
from hf_reinforce.evaluation.confusions import LEAST, ChangedPair
from hf_reinforce.evaluation.pictures import (
    COLOURS,
    SIZE,
    finish_axis,
    line_style,
    new_figure,
    pair_name,
    save_figure,
    set_title,
)
from hf_reinforce.evaluation.runs import Group

_GREY = "#8d99ae"
_COLUMNS = 5  # of small panels
_UNITS = (("hours", 3600), ("minutes", 60), ("seconds", 1))

_LABELS = {  # metric -> what a panel calls it, and the factor from its value to what is drawn
    "accuracy": ("top-1 accuracy (%)", 100),
    "accuracy_top5": ("top-5 accuracy (%)", 100),
    "nll": ("NLL (nats)", 1),
    "brier": ("Brier score", 1),
    "ece": ("ECE, equal widths", 1),
    "ece_adaptive": ("ECE, equal masses", 1),
}


def draw_corruptions(
    accuracies: Mapping[str, Mapping[str, Mapping[int, float]]], clean: Mapping[str, float], path: Path
) -> None:
    """Draws accuracy against severity, a small panel for each corruption and a line for each group.

    Args:
        accuracies: group -> corruption -> severity -> accuracy in [0, 1].
        clean: group -> accuracy without corruption, where it is known: severity 0.
        path: of the picture.
    """
    corruptions = list(next(iter(accuracies.values())))
    columns = min(_COLUMNS, len(corruptions))
    lines = -(-len(corruptions) // columns)
    figure = new_figure(max(2.1 * columns, 4), 1.8 * lines + 0.6)
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for place, corruption in enumerate(corruptions):
        axis = axes.flat[place]
        for index, (group, by_corruption) in enumerate(accuracies.items()):
            points = {**({0: clean[group]} if group in clean else {}), **by_corruption[corruption]}
            x = sorted(points)
            axis.plot(x, [100 * points[severity] for severity in x], label=group, markersize=4, **line_style(index))
        axis.grid(alpha=0.25)
        finish_axis(axis)
        set_title(axis, corruption.replace("_", " "), SIZE)
    for axis in axes.flat[len(corruptions) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)")
    for column in range(columns):
        lowest = max(place for place in range(len(corruptions)) if place % columns == column)
        axes.flat[lowest].set_xlabel("severity (0: clean)" if clean else "severity")
        axes.flat[lowest].tick_params(labelbottom=True)
    severities = {severity for row in next(iter(accuracies.values())).values() for severity in row}
    axes[0, 0].set_xticks(sorted(severities | ({0} if clean else set())))
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=SIZE)
    save_figure(figure, path)


def draw_changed_pairs(changes: Mapping[str, Mapping[str, Sequence[ChangedPair]]], baseline: str, path: Path) -> None:
    """Draws the pairs of classes that each group confuses less and more often than the first, in images.

    Args:
        changes: group -> `"fewer"` and `"more"` -> pairs.
        baseline: name of the first group.
        path: of the picture.
    """
    heights = [1.1 + 0.27 * max(1, *(len(pairs) for pairs in change.values())) for change in changes.values()]
    figure = new_figure(11, sum(heights) + 0.3)
    axes = figure.subplots(len(changes), 2, squeeze=False, height_ratios=heights)
    for line, (group, change) in zip(axes, changes.items(), strict=True):
        for axis, direction in zip(line, ("fewer", "more"), strict=True):
            pairs = change[direction]
            before, after = [pair.baseline for pair in pairs], [pair.found for pair in pairs]
            places = range(len(pairs))
            axis.hlines(places, before, after, color=_GREY, linewidth=2.5, zorder=1)
            dots = [axis.scatter(before, places, marker="o", color=COLOURS[0], zorder=2)]
            dots.append(axis.scatter(after, places, marker="s", color=COLOURS[1], zorder=2))
            axis.set_yticks(places, [pair_name(pair.label, pair.prediction) for pair in pairs], parse_math=False)
            axis.set(ylim=(max(len(pairs), 1) - 0.4, -0.6), xlabel=f"images confused so (changes of {LEAST} or more)")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set_xlim(left=-0.02 * max(*before, *after, 1))
            axis.grid(axis="x", alpha=0.25)
            set_title(axis, f"{group} confuses {'less' if direction == 'fewer' else 'more'} often than {baseline}")
            finish_axis(axis)
    names = [baseline, next(iter(changes)) if len(changes) == 1 else "the other student"]
    figure.legend(dots, names, loc="outside upper center", ncols=2, frameon=False, fontsize=SIZE)
    save_figure(figure, path)


def _line_name(method: str, groups: Sequence[Group]) -> str:
    names = ", ".join(group.name for group in groups)
    return names if len(groups) == 1 else f"{method}: {names}"


def draw_estimates(comparison: Comparison, path: Path) -> None:
    """Draws every metric of every group with its 95 % interval, a panel for each metric, a row for each data set."""
    groups = list(comparison.groups)
    rows = len(comparison.datasets) * (len(groups) + 1)
    figure = new_figure(11, 2 * (0.75 + 0.19 * rows) + 0.5)
    axes = figure.subplots(2, 3, sharey=True)
    for axis, (metric, (label, factor)) in zip(axes.flat, _LABELS.items(), strict=True):
        for line, found in enumerate(comparison.datasets.values()):
            for index, group in enumerate(groups):
                estimate = found.estimates[group][metric]
                value, ends = factor * estimate.value, factor * np.array([[estimate.low], [estimate.high]])
                errors = np.abs(ends - value)
                place = line * (len(groups) + 1) + index
                name = group if line == 0 else None
                axis.errorbar(
                    value, place, xerr=errors, capsize=3, label=name, **{**line_style(index), "linestyle": "none"}
                )
        axis.grid(axis="x", alpha=0.25)
        way = "\N{RIGHTWARDS ARROW} better" if metric in HIGHER_IS_BETTER else "\N{LEFTWARDS ARROW} better"
        set_title(axis, f"{label}   {way}")
        finish_axis(axis)
    middles = [line * (len(groups) + 1) + (len(groups) - 1) / 2 for line in range(len(comparison.datasets))]
    axes[0, 0].set_yticks(middles, [found.title for found in comparison.datasets.values()], parse_math=False)
    axes[0, 0].set_ylim(rows - 1.4, -0.7)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=SIZE)
    save_figure(figure, path)


def draw_wall_clock(comparison: Comparison, groups: Sequence[Group], name: str, path: Path) -> bool:
    """Draws accuracy against the time of training, a line for each method, a point for each group (paper, Figure 1).

    The legend names the groups; those of a method in the order that was given.

    Args:
        comparison: of the groups.
        groups: the runs.
        name: data set whose accuracy is drawn.
        path: of the picture.

    Returns:
        Whether the time of two groups or more is known, without which nothing is drawn.
    """
    timed = [group for group in groups if comparison.groups[group.name]["seconds"] is not None]
    if len(timed) < 2:
        return False
    longest = max(comparison.groups[group.name]["seconds"] for group in timed)
    unit, divisor = next((unit, size) for unit, size in _UNITS if longest >= 2 * size or size == 1)
    figure = new_figure(7, 4)
    axis = figure.subplots()
    for index, method in enumerate(dict.fromkeys(group.method for group in timed)):
        points, members = [], [group for group in timed if group.method == method]
        for group in members:
            estimate = comparison.datasets[name].estimates[group.name]["accuracy"]
            seconds = comparison.groups[group.name]["seconds"] / divisor
            points.append((seconds, *(100 * end for end in (estimate.value, estimate.low, estimate.high))))
            for training in (run.training for run in group.runs if run.training and run.training.history):
                steps = 100 * np.array(training.history) / [100 * divisor, 1]
                axis.plot(*steps.T, color=COLOURS[index % len(COLOURS)], alpha=0.5, linewidth=1)
        x, y, low, high = np.array(sorted(points)).T
        axis.errorbar(
            x,
            y,
            yerr=[y - low, high - y],
            capsize=3,
            markersize=6,
            label=_line_name(method, members),
            **line_style(index),
        )
    axis.set(xlabel=f"training time, wall-clock ({unit})", ylabel="top-1 accuracy (%)")
    axis.set_xlim(0, 1.25 * longest / divisor)
    axis.grid(alpha=0.25)
    set_title(axis, f"Accuracy against training time, {comparison.datasets[name].title}")
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False, fontsize=SIZE)
    finish_axis(axis)
    save_figure(figure, path)
    return True
