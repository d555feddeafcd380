"""Writes what a study found: the raw figures as JSON, tables and a picture made from them.

    python recipes/study_report.py --study recipes/cifar100_plus/study.yaml --size cpu --output_dir docs/studies
    python recipes/study_report.py --results docs/studies/cifar100_plus-study-cpu.json   # tables and picture again

A stage `students` with the axes `student` and `method` becomes the table of the headline; its pictures are accuracy
against time, and reliability. Every other stage of trainings, but for teachers and timings, has a table of its own; of
a study that names its `baseline` they are compared with that training and with the same one of other `seeds`.
"""

import json
import math
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
    output_dir: str = option("Folder for NAME-SIZE.json, .md and pictures, default that of --results.", "")


@one_line_errors
def main() -> None:
    from study_pictures import draw, draw_calibration, draw_stages

    from hf_reinforce.augmentations.documents import read_document

    (args,) = parse(__doc__, [ReportArguments])
    if bool(args.study) == bool(args.results):
        raise ValueError(
            "Expected either --study FILE or --results FILE; recipes/cifar100_plus/study.yaml is a study."
        )
    if args.results:
        path = Path(args.results)
        results = read_document(path)
        if not isinstance(results, dict) or not {"rows", "stages"} <= set(results):
            raise ValueError(f"{path} holds no results of a study; recipes/study_report.py --study FILE writes them.")
    else:
        results = collect(Path(args.study), args.size)
        file = Path(args.study)
        path = Path(args.output_dir or "outputs") / f"{file.parent.name}-{file.stem}-{args.size}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, results)
    folder = Path(args.output_dir) if args.output_dir else path.parent
    text = markdown(results)
    (folder / path.with_suffix(".md").name).write_text(text, encoding="utf-8")
    picture = folder / path.with_suffix(".png").name
    if results["rows"]:
        draw(results, picture)
        draw_calibration(results, picture.with_name(f"{picture.stem}-reliability.png"))
    else:
        draw_stages(results["stages"], baseline(results), picture)
    print(text)


def markdown(results):
    """All tables."""
    headline = [table(results)] if results["rows"] else []
    return "\n".join(headline + [section(name, items, baseline(results)) for name, items in results["stages"].items()])


def collect(file, size):
    """The figures of a study's students that are trained and evaluated.

    Returns:
        {"study", "size", "machine", "versions", "seconds": {teachers and reinforcement}, "rows": one for each student:
        {"labels", "epochs", "steps", "metrics", "corrupted_accuracy", "seconds_per_step", "history", "reliability"},
        "stages": {other stage: [{"labels", "metrics"}]}, "baseline": {"stage", "label"} or None}.

    Raises:
        ValueError: if none is.
    """
    import torch
    from study import read_study, records_of, runs_of

    from hf_reinforce.evaluation.results import machine, versions

    study = read_study(file)
    runs, folder, records = runs_of(study, size, []), Path(study["output_dir"]) / size, records_of(study, size)
    found = [run for run in runs if run.stage == "students" and (folder / run.name / EVALUATED).exists()]
    rows = [row(folder / run.name, run.labels, speed_folder(folder, run, runs)) for run in found]
    stages = {}
    for run in runs:
        metrics = figures(records / f"{run.name}.json", folder / run.name / "eval_results.json")
        if run.stage not in ("teacher", "students", "speed") and all(key in metrics for key in METRICS):
            metrics = {key.removeprefix("eval_"): metrics[key] for key in METRICS}
            stages.setdefault(run.stage, []).append({"labels": run.labels, "metrics": metrics})
    if not rows and not stages:
        raise ValueError(f"{folder} has no evaluated students; run recipes/study.py --study {file} --size {size}.")
    teachers = {run.name: folder / run.name for run in runs if run.stage == "teacher"}
    seconds = {
        name: training_seconds(path) for name, path in teachers.items() if (path / "train_results.json").exists()
    }
    if (record := records / "reinforce.json").exists():
        seconds["reinforce"] = json.loads(record.read_text(encoding="utf-8"))["seconds"]
    about = {"study": str(file), "size": size, "machine": machine("cuda" if torch.cuda.is_available() else "cpu")}
    found = {"seconds": seconds, "rows": rows, "stages": stages, "baseline": study.get("baseline")}
    return {**about, "versions": versions(), **found}


def figures(record, results):
    """The figures of a training: of its record, else of its folder; {} where it is not finished."""
    found = json.loads(record.read_text(encoding="utf-8")).get("results") if record.exists() else None
    return found or (json.loads(results.read_text(encoding="utf-8")) if results.exists() else {})


def speed_folder(folder, run, runs):
    """Where the stage `speed` has timed the same student and method."""
    for other in runs:
        if other.stage == "speed" and other.labels.items() <= run.labels.items():
            return folder / other.name
    return folder / run.name


def row(folder, labels, timed):
    """The figures of one student."""
    from study import seconds_per_step

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


def training_seconds(folder):
    """Seconds of a finished training, with those before an interruption, which its log alone has."""
    results, state = folder / "train_results.json", folder / "trainer_state.json"
    log = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.exists() else []
    logged = (entry.get("train_seconds", 0) for entry in log)
    return max([json.loads(results.read_text(encoding="utf-8"))["train_runtime"], *logged])


def groups(results):
    """Rows that differ only in the seed: {(student, epochs): {method: rows}}."""
    found = {}
    for item in results["rows"]:
        place = found.setdefault((item["labels"]["student"], item["epochs"]), {})
        place.setdefault(item["labels"]["method"], []).append(item)
    return found


def mean_and_spread(values, digits, factor=1):
    """`mean`, with the standard deviation where there are several; a dash where there is none."""
    values = [factor * value for value in values if value is not None]
    if not values:
        return "-"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def table(results):
    """The table of all students, and what they cost."""
    lines = [
        "| student, epochs | training | top-1, % | NLL | ECE | top-1 under corruptions, % | s/epoch | training, min | "
        "with reinforcement, min |",
        "|---|---|---|---|---|---|---|---|---|",
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
                *durations(rows, minutes_each(results)),
            ]
            if method == best:
                figures[0] = f"**{figures[0]}**"
            lines.append(f"| {student}, {epochs:g} | {method} | {' | '.join(figures)} |")
    return "\n".join([*lines, "", costs(results), ""])


def minutes_each(results):
    """Minutes of the reinforcement for each student that was trained on it; None where it was not timed."""
    students = sum(item["labels"]["method"] == "reinforced" for item in results["rows"])
    return results["seconds"]["reinforce"] / 60 / students if students and "reinforce" in results["seconds"] else None


def durations(rows, share):
    """Seconds of an epoch, minutes of the training, and minutes with its share of the reinforcement, at the speed that
    the stage `speed` has found."""
    if rows[0]["seconds_per_step"] is None:
        return ["-", "-", "-"]
    seconds = rows[0]["seconds_per_step"] * rows[0]["steps"]
    further = share if rows[0]["labels"]["method"] == "reinforced" else 0
    whole = "-" if further is None else f"{seconds / 60 + further:.1f}"
    return [f"{seconds / rows[0]['epochs']:.0f}", f"{seconds / 60:.1f}", whole]


def costs(results):
    """A sentence on what was spent once."""
    seconds = dict(results["seconds"])
    each = minutes_each(results)
    parts = []
    if (once := seconds.pop("reinforce", None)) is not None:
        share = "" if each is None else f": {each:.1f} min for each student that was trained on it"
        parts.append(f"The reinforcement took {once / 60:.1f} min, once{share}.")
    if seconds:
        parts.append(f"The teacher, which online training needs as well, took {sum(seconds.values()) / 60:.0f} min.")
    return " ".join(parts)


def baseline(results):
    """Figures of the training that all others are compared with, and of its other seeds; none without one."""
    named = results.get("baseline") or {"stage": None, "label": None}
    same = [item for item in results["stages"].get(named["stage"], []) if named["label"] in item["labels"].values()]
    return [item["metrics"] for item in same + (results["stages"].get("seeds", []) if same else [])]


def section(name, items, compared):
    """The table of a stage that is not the headline: a line for each training, after that of the baseline."""
    axes = list(items[0]["labels"])
    lines = [f"### {name}", "", f"| {' | '.join([*axes, 'top-1, %', 'NLL', 'ECE'])} |", "|---" * (len(axes) + 3) + "|"]
    found = [(list(item["labels"].values()), [item["metrics"]]) for item in items]
    if compared:
        found.insert(0, (["baseline"] + [""] * (len(axes) - 1), compared))
    for labels, metrics in found:
        figures = [
            mean_and_spread([item["accuracy"] for item in metrics], 1, 100),
            mean_and_spread([item["nll"] for item in metrics], 3),
            mean_and_spread([item["ece"] for item in metrics], 3),
        ]
        lines.append(f"| {' | '.join([*labels, *figures])} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
