"""Writes what a study found: the raw figures as JSON, tables and pictures made from them.

    python recipes/study_report.py --study recipes/cifar100_plus/study.yaml --size cpu --output_dir docs/studies
    python recipes/study_report.py --results docs/studies/cifar100_plus-study-cpu.json   # tables and pictures again

A stage `students` with the axes `student` and `method` becomes the table of the headline; its pictures are accuracy
against time, and reliability. Every other stage of trainings, but for teachers and timings, has a table of its own; of
a study that names its `baseline` they are compared with that training and with the same one of other `seeds`.
"""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from arguments import one_line_errors, option, parse, write_json

METRICS = ("accuracy", "nll", "ece", "num_samples")
HEADLINE = (
    *("student, epochs", "training", "top-1, %", "NLL", "ECE", "top-1 under corruptions, %"),
    *("s/epoch", "training, min", "with reinforcement, min"),
)


@dataclass
class ReportArguments:
    study: str | None = option("YAML file of the study, whose runs are read.")
    size: str = option("Which of the file's sizes.", "cpu")
    results: str | None = option("JSON that was written before, instead of a study.")
    output_dir: str = option("Folder for NAME-SIZE.json, .md and pictures, default that of --results.", "")


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [ReportArguments])
    from study_pictures import draw_pictures

    from hf_reinforce.augmentations.documents import read_document

    if bool(args.study) == bool(args.results):
        raise ValueError("Expected either --study FILE or --results FILE, such as recipes/cifar100_plus/study.yaml.")
    if args.results:
        path = Path(args.results)
        results = read_document(path)
        if not isinstance(results, dict) or not {"rows", "stages"} <= set(results):
            raise ValueError(f"{path} holds no results of a study; recipes/study_report.py --study FILE writes them.")
    else:
        file = Path(args.study)
        results = collect(file, args.size)
        path = Path(args.output_dir or "outputs") / f"{file.parent.name}-{file.stem}-{args.size}.json"
        write_json(path, results)
    folder = Path(args.output_dir) if args.output_dir else path.parent
    text = markdown(results)
    (folder / path.with_suffix(".md").name).write_text(text, encoding="utf-8")
    if results["rows"]:
        draw_pictures(results, folder / path.with_suffix(".png").name)
    print(text)


def read_json(path):
    """The content of a JSON file, {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def collect(file, size):
    """The figures of a study's students that are trained and evaluated, as docs/studies/*.json keeps them."""
    import torch
    from study import read_study, records_of, runs_of

    from hf_reinforce.evaluation.results import machine, versions

    study = read_study(file)
    runs, folder, records = runs_of(study, size, []), Path(study["output_dir"]) / size, records_of(study, size)
    timed = [run for run in runs if run.stage == "speed"]
    rows, stages, seconds = [], {}, {}
    for run in runs:
        place = folder / run.name
        if run.stage == "students" and (place / "evaluation/evaluation.json").exists():
            same = (other.name for other in timed if other.labels.items() <= run.labels.items())
            rows.append(row(place, run.labels, folder / next(same, run.name)))
        elif run.stage == "teacher" and (place / "train_results.json").exists():
            seconds[run.name] = training_seconds(place)
        elif run.stage not in ("teacher", "students", "speed"):
            found = read_json(records / f"{run.name}.json").get("results") or read_json(place / "eval_results.json")
            if all(f"eval_{name}" in found for name in METRICS):
                metrics = {name: found[f"eval_{name}"] for name in METRICS}
                stages.setdefault(run.stage, []).append({"labels": run.labels, "metrics": metrics})
    if not rows and not stages:
        raise ValueError(f"{folder} has no evaluated students; run recipes/study.py --study {file} --size {size}.")
    if record := read_json(records / "reinforce.json"):
        seconds["reinforce"] = record["seconds"]
    about = {"study": str(file), "size": size, "machine": machine("cuda" if torch.cuda.is_available() else "cpu")}
    found = {"seconds": seconds, "rows": rows, "stages": stages, "baseline": study.get("baseline")}
    return {**about, "versions": versions(), **found}


def row(folder, labels, timed):
    """The figures of one student, whose step was timed in the folder `timed`."""
    from study import seconds_per_step

    from hf_reinforce.evaluation.results import Evaluation

    clean = next(iter(Evaluation.load(folder / "evaluation").datasets.values()))
    state, log = read_json(folder / "trainer_state.json"), []
    corrupted = read_json(folder / "robustness" / "evaluation.json").get("summary", {})
    for entry in state["log_history"]:
        if "eval_accuracy" in entry:
            log.append([entry["step"], entry["eval_accuracy"]])
    return {
        "labels": labels,
        "epochs": state["num_train_epochs"],
        "steps": state["max_steps"],
        "metrics": clean.metrics,
        "corrupted_accuracy": corrupted.get("mean_corruption_accuracy"),
        "seconds_per_step": seconds_per_step(timed),
        "history": log,
        "reliability": asdict(clean.reliability),
    }


def training_seconds(folder):
    """Seconds of a finished training, with those before an interruption, which its log alone has."""
    log = read_json(folder / "trainer_state.json").get("log_history", [])
    return max([read_json(folder / "train_results.json")["train_runtime"], *(e.get("train_seconds", 0) for e in log)])


def baseline(results):
    """Figures of the training that all others are compared with, and of its other seeds; none without one."""
    named = results.get("baseline") or {"stage": None, "label": None}
    same = [item for item in results["stages"].get(named["stage"], []) if named["label"] in item["labels"].values()]
    return [item["metrics"] for item in same + (results["stages"].get("seeds", []) if same else [])]


def markdown(results):
    """All tables."""
    parts = [headline(results)] if results["rows"] else []
    compared = baseline(results)
    for name, items in results["stages"].items():  # a line for each training, after that of the baseline
        axes = list(items[0]["labels"])
        lines = [["baseline", *[""] * (len(axes) - 1), *scores(compared)]] if compared else []
        lines += [[*item["labels"].values(), *scores([item["metrics"]])] for item in items]
        parts.append(f"### {name}\n\n{table([*axes, 'top-1, %', 'NLL', 'ECE'], lines)}\n")
    return "\n".join(parts)


def headline(results):
    """The table of all students, and what they cost."""
    students, lines = {}, []
    for item in results["rows"]:
        of_student = students.setdefault((item["labels"]["student"], item["epochs"]), {})
        of_student.setdefault(item["labels"]["method"], []).append(item)
    share = minutes_each(results)
    for (student, epochs), methods in students.items():
        best = max(methods, key=lambda name: statistics.fmean(item["metrics"]["accuracy"] for item in methods[name]))
        for method, rows in methods.items():
            accuracy, *others = scores([item["metrics"] for item in rows])
            corrupted = mean_and_spread([item["corrupted_accuracy"] for item in rows], 1, 100)
            accuracy = f"**{accuracy}**" if method == best else accuracy
            lines.append([f"{student}, {epochs:g}", method, accuracy, *others, corrupted, *durations(rows[0], share)])
    return "\n".join([table(HEADLINE, lines), "", costs(results), ""])


def table(header, rows):
    """A table in Markdown."""
    return "\n".join(
        [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    )


def scores(metrics):
    """Accuracy in %, NLL and calibration error of trainings that differ only in the seed."""
    shown = (("accuracy", 1, 100), ("nll", 3, 1), ("ece", 3, 1))
    return [mean_and_spread([found[name] for found in metrics], digits, factor) for name, digits, factor in shown]


def mean_and_spread(values, digits, factor):
    """`mean`, with the standard deviation where there are several; a dash where there is none."""
    values = [factor * value for value in values if value is not None]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}" if values else "-"


def minutes_each(results):
    """Minutes of the reinforcement for each student that was trained on it; None where it was not timed."""
    students = sum(item["labels"]["method"] == "reinforced" for item in results["rows"])
    return results["seconds"]["reinforce"] / 60 / students if students and "reinforce" in results["seconds"] else None


def durations(item, share):
    """Seconds of an epoch, minutes of the training, and minutes with its share of the reinforcement, as timed."""
    if item["seconds_per_step"] is None:
        return ["-", "-", "-"]
    seconds = item["seconds_per_step"] * item["steps"]
    further = share if item["labels"]["method"] == "reinforced" else 0
    whole = "-" if further is None else f"{seconds / 60 + further:.1f}"
    return [f"{seconds / item['epochs']:.0f}", f"{seconds / 60:.1f}", whole]


def costs(results):
    """A sentence on what was spent once."""
    seconds, each, parts = dict(results["seconds"]), minutes_each(results), []
    if (once := seconds.pop("reinforce", None)) is not None:
        share = "" if each is None else f": {each:.1f} min for each student that was trained on it"
        parts.append(f"The reinforcement took {once / 60:.1f} min, once{share}.")
    if seconds:
        parts.append(f"The teacher, which online training needs as well, took {sum(seconds.values()) / 60:.0f} min.")
    return " ".join(parts)


if __name__ == "__main__":
    main()
