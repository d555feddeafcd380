"""The pictures of `study_report.py`."""

import math
import statistics

from hf_reinforce.evaluation.pictures import (
    COLOURS,
    SIZE,
    draw_reliability,
    finish_axis,
    line_style,
    new_figure,
    save_figure,
    set_title,
)
from hf_reinforce.metrics import ReliabilityDiagram


def draw_pictures(results, baseline, path):
    """Of the headline's students accuracy against time and reliability; of a study of settings a panel for each."""
    if not results["rows"]:
        draw_stages({name: items for name, items in results["stages"].items() if name != "seeds"}, baseline, path)
        return
    draw_progress(results["rows"], path)
    longest = {}  # the longest training of every student, with its first seed
    for item in sorted(results["rows"], key=lambda item: -item["epochs"]):
        longest.setdefault(f"{item['labels']['student']}, {item['labels']['method']}", item)
    diagrams = {name: ReliabilityDiagram(**item["reliability"]) for name, item in longest.items()}
    errors = {name: item["metrics"]["ece"] for name, item in longest.items()}
    draw_reliability(diagrams, errors, path.with_name(f"{path.stem}-reliability.png"), columns=3)


def draw_stages(stages, baseline, path):
    """Accuracy of every setting, a panel for each stage, with its 95 % interval over test images; of the baseline the
    mean and two standard deviations over its seeds."""
    compared = [100 * metrics["accuracy"] for metrics in baseline]
    columns = min(4, len(stages))
    figure = new_figure(3 * columns, 3 * -(-len(stages) // columns))
    axes = figure.subplots(-(-len(stages) // columns), columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(stages) :]:
        axis.remove()
    for axis, (name, items) in zip(axes.flat, stages.items(), strict=False):
        if len(compared) > 1:
            mean, spread = statistics.mean(compared), 2 * statistics.stdev(compared)
            axis.axhspan(mean - spread, mean + spread, color=COLOURS[1], alpha=0.25, linewidth=0)
            axis.axhline(mean, color=COLOURS[1], linewidth=1)
        names, accuracy, half = [], [], []
        for item in items:
            share, images = item["metrics"]["accuracy"], item["metrics"]["num_samples"]
            labels = "\n".join(value.removeprefix(label) for label, value in item["labels"].items())
            names.append(labels.removeprefix("small_").replace("_", "\n"))
            accuracy.append(100 * share)
            half.append(196 * math.sqrt(share * (1 - share) / images))
        axis.errorbar(names, accuracy, yerr=half, fmt="o", capsize=3, color=COLOURS[0])
        axis.margins(x=0.2)
        axis.grid(axis="y", alpha=0.25)
        set_title(axis, name)
        finish_axis(axis)
    for axis in axes[:, 0]:
        axis.set_ylabel("top-1 accuracy (%)")
    save_figure(figure, path)


def draw_progress(rows, path):
    """Accuracy against the time of training, a panel for each student (the paper's Figure 1); where that was not
    measured, against steps."""
    students, methods = ({item["labels"][axis]: None for item in rows} for axis in ("student", "method"))
    figure = new_figure(max(3.6 * len(students), 4.5), 3.4)
    axes = figure.subplots(1, len(students), squeeze=False)[0]
    for axis, student in zip(axes, students, strict=True):
        items = [item for item in rows if item["labels"]["student"] == student]
        timed = all(item["seconds_per_step"] is not None for item in items)
        for item in items:
            steps = item["history"] or [[item["steps"], item["metrics"]["accuracy"]]]
            x = [step * item["seconds_per_step"] / 60 if timed else step for step, _ in steps]
            method = item["labels"]["method"]
            style = {**line_style(list(methods).index(method)), "markersize": 4}
            axis.plot(x, [100 * accuracy for _, accuracy in steps], label=method, **style)
        axis.set(xlabel="training, minutes" if timed else "steps", xlim=(0, None))
        axis.grid(alpha=0.25)
        set_title(axis, student)
        finish_axis(axis)
    axes[0].set_ylabel("top-1 accuracy (%)")
    named = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    legend = {"loc": "outside upper center", "ncols": len(named), "frameon": False, "fontsize": SIZE}
    figure.legend(named.values(), named.keys(), **legend)
    save_figure(figure, path)
