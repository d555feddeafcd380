"""Writes what a study found: the raw figures as JSON, tables and a picture made from them.

    python recipes/study_report.py --study recipes/cifar100_plus/study.yaml --size cpu --output_dir docs/studies
    python recipes/study_report.py --results docs/studies/cifar100_plus-study-cpu.json   # tables and picture again

A stage `students` with the axes `student` and `method` becomes the table of the headline; its picture is accuracy
against time. Every other stage of trainings, but for teachers and timings, has a table of its own.
"""

import itertools
import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from arguments import one_line_errors, option, parse, write_json

EVALUATED = "evaluation/evaluation.json"
METRICS = ("eval_accuracy", "eval_nll", "eval_ece", "eval_num_samples")


@dataclass
class ReportArguments:
    study: str | None = option("YAML file of the study, whose runs are read.")
    size: str = option("Which of the file's sizes.", "cpu")
    results: str | None = option("JSON that was written before, instead of a study.")
    output_dir: str = option("Folder for NAME-SIZE.json, .md and .png, default that of --results.", "")


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [ReportArguments])
    if bool(args.study) == bool(args.results):
        raise ValueError(
            "Expected either --study FILE or --results FILE; recipes/cifar100_plus/study.yaml is a study."
        )
    if args.results:
        path = Path(args.results)
        results = json.loads(path.read_text(encoding="utf-8"))
    else:
        results = collect(Path(args.study), args.size)
        file = Path(args.study)
        path = Path(args.output_dir or "outputs") / f"{file.parent.name}-{file.stem}-{args.size}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, results)
    folder = Path(args.output_dir) if args.output_dir else path.parent
    text = markdown(results)
    (folder / path.with_suffix(".md").name).write_text(text, encoding="utf-8")
    (draw if results["rows"] else draw_stages)(results, folder / path.with_suffix(".png").name)
    print(text)


def markdown(results):
    """All tables."""
    return "\n".join([*([table(results)] if results["rows"] else []), *map(section, results["stages"].items())])


def collect(file, size):
    """The figures of a study's students that are trained and evaluated.

    Returns:
        {"study", "size", "machine", "versions", "seconds": {teachers and reinforcement}, "rows": one for each student:
        {"labels", "epochs", "steps", "metrics", "corrupted_accuracy", "seconds_per_step", "history", "reliability"},
        "stages": {other stage: [{"labels", "metrics"}]}}.

    Raises:
        ValueError: if none is.
    """
    import torch
    import yaml
    from study import runs_of

    from hf_reinforce.evaluation.runs import Training
    from hf_reinforce.evaluation.summary import machine, versions

    study = yaml.safe_load(file.read_text(encoding="utf-8"))
    runs, folder = runs_of(study, size, []), Path(study["output_dir"]) / size
    found = [run for run in runs if run.stage == "students" and (folder / run.name / EVALUATED).exists()]
    rows = [row(folder / run.name, run.labels, speed_folder(folder, run, runs)) for run in found]
    stages = {}
    for run in runs:
        results = folder / run.name / "eval_results.json"
        if run.stage not in ("teacher", "students", "speed") and results.exists():
            metrics = json.loads(results.read_text(encoding="utf-8"))
            metrics = {key.removeprefix("eval_"): metrics[key] for key in METRICS}
            stages.setdefault(run.stage, []).append({"labels": run.labels, "metrics": metrics})
    if not rows and not stages:
        raise ValueError(f"{folder} has no evaluated students; run recipes/study.py --study {file} --size {size}.")
    seconds = {
        run.name: training.seconds
        for run in runs
        if run.stage == "teacher" and (training := Training.load(folder / run.name))
    }
    if (record := folder / "done" / "reinforce.json").exists():
        seconds["reinforce"] = json.loads(record.read_text(encoding="utf-8"))["seconds"]
    about = {"study": str(file), "size": size, "machine": machine("cuda" if torch.cuda.is_available() else "cpu")}
    return {**about, "versions": versions(), "seconds": seconds, "rows": rows, "stages": stages}


def speed_folder(folder, run, runs):
    """Where the stage `speed` has timed the same student and method."""
    for other in runs:
        if other.stage == "speed" and other.labels.items() <= run.labels.items():
            return folder / other.name
    return folder / run.name


def row(folder, labels, timed):
    """The figures of one student."""
    from hf_reinforce.evaluation.results import Evaluation

    evaluation = Evaluation.load(folder / "evaluation")
    clean = next(iter(evaluation.datasets.values()))
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    corrupted = folder / "robustness"
    summary = Evaluation.load(corrupted).summary if (corrupted / "evaluation.json").exists() else {}
    return {
        "labels": labels,
        "epochs": state["num_train_epochs"],
        "steps": state["max_steps"],
        "metrics": clean.metrics,
        "corrupted_accuracy": summary.get("mean_corruption_accuracy"),
        "seconds_per_step": seconds_per_step(timed),
        "history": [
            [entry["step"], entry["eval_accuracy"]] for entry in state["log_history"] if "eval_accuracy" in entry
        ],
        "reliability": asdict(clean.reliability),
    }


def seconds_per_step(folder):
    """Seconds of a step, the median over the entries of a training's log; None where there are none."""
    if not (path := folder / "trainer_state.json").exists():
        return None
    log = json.loads(path.read_text(encoding="utf-8"))["log_history"]
    times = [(entry["step"], entry["train_seconds"]) for entry in log if "loss" in entry and "train_seconds" in entry]
    each = [(end - begin) / (last - first) for (first, begin), (last, end) in itertools.pairwise(times)]
    return statistics.median(each) if each else None


def groups(results):
    """Rows that differ only in the seed: {(student, epochs): {method: rows}}."""
    found = {}
    for item in results["rows"]:
        place = found.setdefault((item["labels"]["student"], item["epochs"]), {})
        place.setdefault(item["labels"]["method"], []).append(item)
    return found


def mean_and_spread(values, digits, factor=1):
    """`mean`, with the standard deviation where there are several; a dash where one is missing."""
    if any(value is None for value in values):
        return "-"
    values = [factor * value for value in values]
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def table(results):
    """The table of all students, and what they cost."""
    lines = [
        "| student, epochs | training | top-1, % | NLL | ECE | top-1 under corruptions, % | s/epoch | training, min |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (student, epochs), methods in groups(results).items():
        best = max(
            methods, key=lambda method: sum(r["metrics"]["accuracy"] for r in methods[method]) / len(methods[method])
        )
        for method, rows in methods.items():
            figures = [
                mean_and_spread([r["metrics"]["accuracy"] for r in rows], 1, 100),
                mean_and_spread([r["metrics"]["nll"] for r in rows], 3),
                mean_and_spread([r["metrics"]["ece"] for r in rows], 3),
                mean_and_spread([r["corrupted_accuracy"] for r in rows], 1, 100),
                *durations(rows),
            ]
            if method == best:
                figures[0] = f"**{figures[0]}**"
            lines.append(f"| {student}, {epochs:g} | {method} | {' | '.join(figures)} |")
    return "\n".join([*lines, "", costs(results), ""])


def durations(rows):
    """Seconds of an epoch and minutes of the training, at the speed that the stage `speed` has found."""
    if rows[0]["seconds_per_step"] is None:
        return ["-", "-"]
    seconds = rows[0]["seconds_per_step"] * rows[0]["steps"]
    return [f"{seconds / rows[0]['epochs']:.0f}", f"{seconds / 60:.1f}"]


def costs(results):
    """A sentence on what was spent once."""
    seconds = dict(results["seconds"])
    reinforced = sum(item["labels"]["method"] == "reinforced" for item in results["rows"])
    parts = []
    if (once := seconds.pop("reinforce", None)) is not None:
        each = (
            f": {once / 60 / reinforced:.1f} min for each of the {reinforced} reinforced students"
            if reinforced > 1
            else ""
        )
        parts.append(f"The reinforcement took {once / 60:.1f} min, once{each}.")
    if seconds:
        parts.append(f"The teacher, which online training needs as well, took {sum(seconds.values()) / 60:.0f} min.")
    return " ".join(parts)


def section(stage):
    """The table of a stage that is not the headline: a line for each training."""
    name, items = stage
    lines = [f"### {name}", "", f"| {' | '.join([*items[0]['labels'], 'top-1, %', 'NLL', 'ECE'])} |"]
    lines.append("|---" * (len(items[0]["labels"]) + 3) + "|")
    for item in items:
        metrics = item["metrics"]
        figures = f"{100 * metrics['accuracy']:.1f} | {metrics['nll']:.3f} | {metrics['ece']:.3f}"
        lines.append(f"| {' | '.join(item['labels'].values())} | {figures} |")
    return "\n".join([*lines, ""])


def draw_stages(results, path):
    """Accuracy of every setting with its 95 % interval over test images, a panel for each stage."""
    from hf_reinforce.evaluation.pictures import COLOURS, finish_axis, new_figure, save_figure, set_title

    figure = new_figure(12, 3 * -(-len(results["stages"]) // 4))
    axes = figure.subplots(-(-len(results["stages"]) // 4), min(4, len(results["stages"])), squeeze=False).flat
    for axis, (name, items) in zip(axes, results["stages"].items(), strict=False):
        accuracy = [item["metrics"]["accuracy"] for item in items]
        half = [
            196 * math.sqrt(p * (1 - p) / item["metrics"]["num_samples"])
            for p, item in zip(accuracy, items, strict=True)
        ]
        names = ["\n".join(item["labels"].values()) for item in items]
        axis.errorbar(names, [100 * p for p in accuracy], yerr=half, marker="o", capsize=3, color=COLOURS[0])
        axis.grid(axis="y", alpha=0.25)
        axis.set_ylabel("top-1 accuracy (%)")
        set_title(axis, name)
        finish_axis(axis)
    save_figure(figure, path)


def draw(results, path):
    """Accuracy against the time of training, a panel for each student (the paper's Figure 1)."""
    from hf_reinforce.evaluation.pictures import SIZE, finish_axis, line_style, new_figure, save_figure, set_title

    students = list(dict.fromkeys(item["labels"]["student"] for item in results["rows"]))
    methods = list(dict.fromkeys(item["labels"]["method"] for item in results["rows"]))
    figure = new_figure(max(3.6 * len(students), 4.5), 3.4)
    axes = figure.subplots(1, len(students), squeeze=False)[0]
    for axis, student in zip(axes, students, strict=True):
        for item in results["rows"]:
            if item["labels"]["student"] != student or item["seconds_per_step"] is None:
                continue
            steps = item["history"] or [[item["steps"], item["metrics"]["accuracy"]]]
            x = [step * item["seconds_per_step"] / 60 for step, _ in steps]
            method = item["labels"]["method"]
            style = {**line_style(methods.index(method)), "markersize": 4}
            axis.plot(x, [100 * accuracy for _, accuracy in steps], label=method, **style)
        axis.set(xlabel="training, minutes", xlim=(0, None))
        axis.grid(alpha=0.25)
        set_title(axis, student)
        finish_axis(axis)
    axes[0].set_ylabel("top-1 accuracy (%)")
    named = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(
        named.values(), named.keys(), loc="outside upper center", ncols=len(named), frameon=False, fontsize=SIZE
    )
    save_figure(figure, path)


if __name__ == "__main__":
    main()
