"""The pictures of `study_report.py`."""

from hf_reinforce.evaluation.pictures import (
    SIZE,
    draw_reliability,
    finish_axis,
    line_style,
    new_figure,
    save_figure,
    set_title,
)
from hf_reinforce.metrics import ReliabilityDiagram


def draw_pictures(results, path):
    """Accuracy against time, and reliability, of the students of the headline."""
    draw_progress(results["rows"], path)
    longest = {}  # the longest training of every student, with its first seed
    for item in sorted(results["rows"], key=lambda item: -item["epochs"]):
        longest.setdefault(f"{item['labels']['student']}, {item['labels']['method']}", item)
    diagrams = {name: ReliabilityDiagram(**item["reliability"]) for name, item in longest.items()}
    errors = {name: item["metrics"]["ece"] for name, item in longest.items()}
    draw_reliability(diagrams, errors, path.with_name(f"{path.stem}-reliability.png"), columns=3)


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
