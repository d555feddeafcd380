"""The report of an evaluation, `report.md`: tables, and reliability diagrams."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_reinforce.cards import markdown
from hf_reinforce.evaluation import pictures
from hf_reinforce.evaluation.results import DatasetResult, Evaluation
from hf_reinforce.metrics import METRICS
from hf_reinforce.store.atomic import write_whole

REPORT_FILE, RELIABILITY = "report.md", "reliability.png"
_PANELS = 8  # of reliability diagrams

_EXPLANATION = (
    "Top-1 with the half-width of its 95 % interval (normal approximation). NLL in nats; ECE over 15 bins of equal "
    "width, adaptive ECE over 15 bins of equal mass."
)


def write_report(folder: str | Path) -> Path:
    """Writes `report.md` and its picture into the folder of an evaluation; returns the path of `report.md`."""
    folder = Path(folder)
    evaluation = Evaluation.load(folder)
    if not evaluation.datasets and not evaluation.skipped:
        raise ValueError(f"{folder} has results for no dataset; run recipes/evaluate.py with one.")
    clean = [found for found in evaluation.datasets.values() if found.corruption is None]
    corrupted = [found for found in evaluation.datasets.values() if found.corruption]
    lines = [f"# Evaluation of {markdown.code(evaluation.model)}", "", _table(clean, corrupted), ""]
    lines += [_EXPLANATION, ""]
    notes = [f"{summary_name(name)}: {100 * value:.1f} %" for name, value in evaluation.summary.items()]
    notes += dict.fromkeys(
        f"{'corrupted sets' if found.corruption else found.title}: {found.notes}"
        for found in evaluation.datasets.values()
        if found.notes
    )
    notes += [f"not evaluated, {name}: {why}" for name, why in evaluation.skipped.items()]
    lines += [*(f"- {markdown.text(note)}" for note in notes), ""]
    (folder / RELIABILITY).unlink(missing_ok=True)  # of an earlier evaluation
    if clean:
        errors = {found.title: found.metrics.get("ece") for found in clean[:_PANELS]}
        diagrams = {found.title: found.reliability for found in clean[:_PANELS]}
        pictures.draw_reliability(diagrams, errors, folder / RELIABILITY)
        told = ", ".join(f"{title} {metric_text('ece', error)}" for title, error in errors.items())
        lines += [f"![Accuracy against confidence; ECE: {markdown.text(told)}]({RELIABILITY})", ""]
    if corrupted:
        lines += ["Top-1 (%) by corruption and severity:", "", _corruptions(evaluation.datasets), ""]
    versions = ", ".join(f"{name} {version}" for name, version in evaluation.versions.items())
    machine = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in evaluation.machine.items())
    lines += [markdown.text(f"Evaluated with {versions}; {machine}.")] if versions or machine else []
    write_whole(folder / REPORT_FILE, "\n".join(lines).rstrip() + "\n")
    return folder / REPORT_FILE


def metric_text(metric: str, value: float | None, signed: bool = False) -> str:
    """A metric as the tables show it: accuracies in per cent with one digit, others with three, a dash for none;
    `signed` with a sign, also in front of what is positive."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    text = f"{100 * value:+.1f}" if metric.startswith("accuracy") else f"{value:+.3f}"
    return text.replace("-", "\N{MINUS SIGN}") if signed else text.removeprefix("+")


def summary_name(name: str) -> str:
    """A figure over several datasets in words; with several suites of corruptions, their name comes first."""
    return re.sub(r"(^|_)mce$", r"\1mean_corruption_error (baseline: 100 %)", name).replace("_", " ")


def _table(clean: Sequence[DatasetResult], corrupted: Sequence[DatasetResult]) -> str:
    """The metrics of each dataset, the corrupted ones as one mean."""
    rows = []
    for found in clean:
        cells = {metric: metric_text(metric, found.metrics.get(metric)) for metric in METRICS}
        accuracy = found.metrics.get("accuracy")
        if accuracy is not None and found.num_samples:
            cells["accuracy"] += f" ± {100 * 1.96 * math.sqrt(accuracy * (1 - accuracy) / found.num_samples):.1f}"
        rows.append([markdown.text(found.title), f"{found.num_samples:,}", *cells.values()])
    if corrupted:
        measured = {metric: [found.metrics.get(metric) for found in corrupted] for metric in METRICS}
        means = [metric_text(metric, _mean(values)) for metric, values in measured.items()]
        images = sum(found.num_samples for found in corrupted)
        rows.append([f"mean over {len(corrupted)} corrupted sets", f"{images:,}", *means])
    return markdown.table(["dataset", "images", *(metric.heading for metric in METRICS.values())], rows)


def _corruptions(datasets: dict[str, DatasetResult]) -> str:
    """Accuracy by corruption and severity; with the dataset's name in front if there are several."""
    found: dict[tuple[str, str], dict[int, float | None]] = {}
    for name, result in datasets.items():
        if how := result.corruption:
            by_severity = found.setdefault((name.removesuffix(how.suffix), how.name), {})
            by_severity[how.severity] = result.metrics.get("accuracy")
    several = len({entry for entry, _ in found}) > 1
    severities = sorted({severity for by_severity in found.values() for severity in by_severity})
    rows = []
    for (entry, name), by_severity in found.items():
        values = [*map(by_severity.get, severities), _mean(list(by_severity.values()))]
        title = markdown.text(f"{entry}: {name}" if several else name)
        rows.append([title, *(metric_text("accuracy", value) for value in values)])
    return markdown.table(["corruption", *map(str, severities), "mean"], rows)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
