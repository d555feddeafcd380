"""The report of an evaluation, `report.md`: one table, and pictures."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hf_reinforce.cards import markdown
from hf_reinforce.evaluation import pictures
from hf_reinforce.evaluation.results import DatasetResult, Evaluation
from hf_reinforce.metrics import METRICS
from hf_reinforce.models.classes import class_words
from hf_reinforce.store.parquet import write_whole

REPORT_FILE = "report.md"
RELIABILITY, CORRUPTIONS, CONFUSIONS = "reliability.png", "corruptions.png", "confusions.png"
_PANELS = 8  # of reliability diagrams
_PAIRS = 10  # of confused classes
_LEAST = 2  # images of such a pair: one is chance


def write_report(folder: str | Path) -> Path:
    """Writes `report.md` and its pictures into the folder of an evaluation.

    Args:
        folder: with `evaluation.json` and the predictions.

    Returns:
        The path of `report.md`.

    Raises:
        ValueError: if the folder holds no evaluation, one without datasets, or predictions are missing.
    """
    folder = Path(folder)
    evaluation = Evaluation.load(folder)
    if not evaluation.datasets and not evaluation.skipped:
        raise ValueError(f"{folder} has results for no dataset; run recipes/evaluate.py with one.")
    clean = {name: found for name, found in evaluation.datasets.items() if found.corruption is None}
    corrupted = [found for found in evaluation.datasets.values() if found.corruption]
    lines = [f"# Evaluation of {markdown.code(evaluation.model)}", "", _table(clean.values(), corrupted), ""]
    lines += [_EXPLANATION, "", *_notes(evaluation)]
    for picture in (RELIABILITY, CORRUPTIONS, CONFUSIONS):
        (folder / picture).unlink(missing_ok=True)  # of an earlier evaluation
    drawn = [*_reliability(clean, folder), *_corruptions(evaluation, folder), *_confusions(evaluation, clean, folder)]
    lines += [line for picture in drawn for line in (picture, "")]
    versions = ", ".join(f"{name} {version}" for name, version in evaluation.versions.items())
    machine = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in evaluation.machine.items())
    lines += [markdown.text(f"Evaluated with {versions}; {machine}.")] if versions or machine else []
    write_whole(folder / REPORT_FILE, "\n".join(lines).rstrip() + "\n")
    return folder / REPORT_FILE


_EXPLANATION = (
    "Top-1 with the half-width of its 95 % interval (normal approximation). NLL in nats; ECE over 15 bins of equal "
    "width, adaptive ECE over 15 bins of equal mass."
)


def metric_text(metric: str, value: float | None, signed: bool = False) -> str:
    """A metric as the tables show it: accuracies in per cent with one digit, others with three.

    Args:
        metric: its name.
        value: as it is stored; None, or not a number, where it is undefined.
        signed: with a sign, also in front of what is positive.
    """
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    text = f"{100 * value:+.1f}" if metric.startswith("accuracy") else f"{value:+.3f}"
    return text.replace("-", "\N{MINUS SIGN}") if signed else text.removeprefix("+")


def summary_name(name: str) -> str:
    """A figure over several datasets in words; with several suites of corruptions, their name comes first."""
    return re.sub(r"(^|_)mce$", r"\1mean_corruption_error (baseline: 100 %)", name).replace("_", " ")


def corruption_accuracies(results: dict[str, DatasetResult]) -> dict[str, dict[int, float]]:
    """Accuracy in [0, 1] by corruption and severity; with the dataset's name in front if there are several."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for name, result in results.items():
        if result.corruption is not None and result.metrics.get("accuracy") is not None:
            entry = name.removesuffix(result.corruption.suffix)
            by_severity = found.setdefault((entry, result.corruption.name), {})
            by_severity[result.corruption.severity] = float(result.metrics["accuracy"] or 0.0)
    several = len({entry for entry, _ in found}) > 1
    return {f"{entry}: {name}" if several else name: by_severity for (entry, name), by_severity in found.items()}


def clean_of(results: dict[str, DatasetResult]) -> str | None:
    """Name of the dataset that the corrupted ones were made from, None if it isn't among them or they are several."""
    sources = {_source(found) for found in results.values() if found.corruption}
    clean = (name for name, found in results.items() if found.corruption is None and {_source(found)} == sources)
    return next(clean, None)


def _source(found: DatasetResult) -> tuple[str | None, ...]:
    return found.dataset_name, found.dataset_config_name, found.revision, found.split


def _table(clean: Iterable[DatasetResult], corrupted: Sequence[DatasetResult]) -> str:
    rows = []
    for found in clean:
        cells = {metric: metric_text(metric, found.metrics.get(metric)) for metric in METRICS}
        accuracy = found.metrics.get("accuracy")
        if accuracy is not None and found.num_samples:
            cells["accuracy"] += f" ± {100 * 1.96 * math.sqrt(accuracy * (1 - accuracy) / found.num_samples):.1f}"
        rows.append([markdown.text(found.title), f"{found.num_samples:,}", *cells.values()])
    if corrupted:
        means = []
        for metric in METRICS:
            values = [value for found in corrupted if (value := found.metrics.get(metric)) is not None]
            means.append(metric_text(metric, float(np.mean(values)) if values else None))
        images = sum(found.num_samples for found in corrupted)
        rows.append([f"mean over {len(corrupted)} corrupted sets", f"{images:,}", *means])
    return markdown.table(["dataset", "images", *(metric.heading for metric in METRICS.values())], rows)


def _notes(evaluation: Evaluation) -> list[str]:
    lines = [
        f"- {markdown.text(summary_name(name))}: {100 * value:.1f} %" for name, value in evaluation.summary.items()
    ]
    for found in evaluation.datasets.values():
        if found.notes and found.corruption is None:
            lines.append(f"- {markdown.text(found.title)}: {markdown.text(found.notes)}")
    corrupted = dict.fromkeys(
        found.notes for found in evaluation.datasets.values() if found.corruption and found.notes
    )
    lines += [f"- corrupted sets: {markdown.text(note)}" for note in corrupted]
    lines += [
        f"- not evaluated, {markdown.text(name)}: {markdown.text(why)}" for name, why in evaluation.skipped.items()
    ]
    return [*lines, ""] if lines else []


def _reliability(clean: dict[str, DatasetResult], folder: Path) -> list[str]:
    shown = {found.title: found for found in list(clean.values())[:_PANELS]}
    if not shown:
        return []
    errors = {title: found.metrics.get("ece") for title, found in shown.items()}
    pictures.draw_reliability(
        {title: found.reliability for title, found in shown.items()}, errors, folder / RELIABILITY
    )
    told = ", ".join(f"{title} {metric_text('ece', error)}" for title, error in errors.items())
    return [f"![Reliability diagrams, accuracy against confidence; ECE: {markdown.text(told)}]({RELIABILITY})"]


def _corruptions(evaluation: Evaluation, folder: Path) -> list[str]:
    accuracies = corruption_accuracies(evaluation.datasets)
    if not accuracies:
        return []
    name = clean_of(evaluation.datasets)
    clean = None if name is None else evaluation.datasets[name].metrics.get("accuracy")
    pictures.draw_corruption_map(accuracies, clean, folder / CORRUPTIONS)
    means = {corruption: float(np.mean(list(found.values()))) for corruption, found in accuracies.items()}
    hardest, easiest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    told = f"means from {100 * means[hardest]:.1f} % under {hardest} to {100 * means[easiest]:.1f} % under {easiest}"
    if means[hardest] == means[easiest]:
        told = f"the mean is {100 * means[hardest]:.1f} %"
    return [f"![Accuracy by corruption and severity; {markdown.text(told)}]({CORRUPTIONS})"]


def _confusions(evaluation: Evaluation, clean: dict[str, DatasetResult], folder: Path) -> list[str]:
    """Of the first dataset."""
    for name, found in list(clean.items())[:1]:
        names = class_words(found.class_names)
        answers = evaluation.predictions(folder, name)
        wrong = (answers.label * len(names) + answers.prediction)[~answers.correct]
        places, counts = np.unique(wrong, return_counts=True)
        most = [place for place in np.argsort(-counts, kind="stable")[:_PAIRS] if counts[place] >= _LEAST]
        pairs = [(*(names[end] for end in divmod(places[place], len(names))), float(counts[place])) for place in most]
        if pairs:
            pictures.draw_confusions(pairs, found.title, folder / CONFUSIONS)
            label, taken, count = pairs[0]
            often = f"most often {pictures.pair_name(label, taken)}, {count:.0f} times"
            told = f"{found.title}, {_LEAST} times or more; {often}"
            return [f"![Pairs of classes that are confused most on {markdown.text(told)}]({CONFUSIONS})"]
    return []
