"""The report of a comparison, `comparison.md`: one table, what it says in words, and pictures."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from hf_reinforce.cards import markdown
from hf_reinforce.evaluation import comparison_pictures, pictures
from hf_reinforce.evaluation.comparison import CORRUPTED, Compared, Comparison, common_datasets
from hf_reinforce.evaluation.confusions import LEAST
from hf_reinforce.evaluation.report import (
    COLUMNS,
    CONFUSIONS,
    CORRUPTIONS,
    RELIABILITY,
    clean_of,
    corruption_accuracies,
    metric_text,
    summary_name,
)
from hf_reinforce.evaluation.results import ReliabilityDiagram
from hf_reinforce.evaluation.runs import Group
from hf_reinforce.evaluation.significance import BETTER, NOISE, WORSE, Difference, Estimate

REPORT_FILE = "comparison.md"
METRICS, WALL_CLOCK = "metrics.png", "wall_clock.png"
_ROUNDING = 1e-9
_POINTS = {"accuracy", "accuracy_top5"}
_WORDS = {BETTER: "better in", WORSE: "worse in", NOISE: "within noise in"}


def write_comparison(comparison: Comparison, groups: Sequence[Group], folder: str | Path) -> str:
    """Writes `comparison.json`, `comparison.md` and the pictures; pictures of an earlier comparison go.

    Args:
        comparison: of the groups.
        groups: the runs, in the same order.
        folder: made if needed.

    Returns:
        The text of `comparison.md` without the pictures.
    """
    folder = Path(folder)
    comparison.save(folder)
    for name in (METRICS, RELIABILITY, CORRUPTIONS, WALL_CLOCK, CONFUSIONS):
        (folder / name).unlink(missing_ok=True)
    text = "\n".join(
        [
            f"# {markdown.text(', '.join(comparison.groups))}",
            "",
            _table(comparison),
            "",
            *(f"- {sentence}" for sentence in sentences(comparison)),
        ]
    )
    drawn = _pictures(comparison, groups, folder)
    (folder / REPORT_FILE).write_text("\n\n".join([text, *drawn]) + "\n", encoding="utf-8")
    return text


def sentences(comparison: Comparison) -> list[str]:
    """What the comparison says, in words, as Markdown."""
    lines, baseline = [], markdown.text(comparison.baseline)
    for found in comparison.datasets.values():
        for group, differences in found.differences.items():
            verdicts = []
            for verdict in (BETTER, WORSE, NOISE):
                named = [
                    _named(metric, difference)
                    for metric, difference in differences.items()
                    if difference.verdict == verdict
                ]
                verdicts += [f"{_WORDS[verdict]} {', '.join(named)}"] if named else []
            over = found.differences_over[group]
            who = f"**{markdown.text(found.title)}**, {markdown.text(group)} against {baseline} (over {over})"
            lines.append(f"{who}: {'; '.join(verdicts)}.")
    lines.append(_correction(comparison))
    if any(over != "seeds" for found in comparison.datasets.values() for over in found.differences_over.values()):
        lines.append(
            "Intervals over images are about these very students; students of other seeds would differ more. Several "
            "seeds are joined as NAME=RUN,RUN."
        )
    for name, values in comparison.summary.items():
        told = ", ".join(f"{markdown.text(group)} {100 * value:.1f} %" for group, value in values.items())
        lines.append(f"{markdown.text(summary_name(name))}: {told}.")
    return [*lines, *(markdown.text(note) for note in comparison.notes)]


def _correction(comparison: Comparison) -> str:
    found = [
        difference
        for compared in comparison.datasets.values()
        for differences in compared.differences.values()
        for difference in differences.values()
    ]
    apart = sum(item.verdict == NOISE and (item.low > _ROUNDING or item.high < -_ROUNDING) for item in found)
    number = comparison.num_comparisons
    text = "Better or worse is what has a p below 0.05"
    text += f" after Holm's correction for the {number} differences of each metric." if number > 1 else "."
    if apart and number > 1:
        text += f" Intervals of {apart} within noise exclude zero by themselves: among so many, chance makes some do."
    return text


def _named(metric: str, difference: Difference) -> str:
    unit = " points" if metric in _POINTS else ""
    return f"{COLUMNS[metric].removesuffix(' (%)')} ({metric_text(metric, difference.value, signed=True)}{unit})"


def _table(comparison: Comparison) -> str:
    rows = []
    for found in comparison.datasets.values():
        title = f"{markdown.text(found.title)}, {found.num_samples:,} images"
        for group, estimates in found.estimates.items():
            cells = [_cell(metric, estimates[metric]) for metric in COLUMNS]
            rows.append([title, f"{markdown.text(group)}, over {found.over[group]}", *cells])
            title = ""
        for group, differences in found.differences.items():
            name = f"{markdown.text(group)} \N{MINUS SIGN} {markdown.text(comparison.baseline)}"
            cells = [_cell(metric, differences[metric], differences[metric].verdict) for metric in COLUMNS]
            rows.append(["", f"{name}, over {found.differences_over[group]}", *cells])
    return markdown.table(["data set", "student, 95 % interval", *COLUMNS.values()], rows)


def _cell(metric: str, estimate: Estimate, verdict: str = "") -> str:
    value, low, high = (
        metric_text(metric, end, bool(verdict)) for end in (estimate.value, estimate.low, estimate.high)
    )
    value = f"**{value}**" if verdict in (BETTER, WORSE) else value
    return f"{value} [{low}, {high}] {verdict.removeprefix('within ')}".rstrip()


def _pictures(comparison: Comparison, groups: Sequence[Group], folder: Path) -> list[str]:
    """Draws what there is to draw; the Markdown that shows it."""
    names = markdown.text(", ".join(comparison.groups))
    comparison_pictures.draw_estimates(comparison, folder / METRICS)
    lines = [f"![Metrics of {names} with 95 % intervals, the figures of the table]({METRICS})"]
    main = next(iter(comparison.datasets))  # the mean over the corrupted ones comes last
    if main != CORRUPTED:
        lines.append(_reliability(comparison, groups, main, folder))
    if CORRUPTED in comparison.datasets:
        lines.append(_corruptions(comparison, groups, folder))
    if comparison_pictures.draw_wall_clock(comparison, groups, main, folder / WALL_CLOCK):
        told = _accuracies(comparison.datasets[main])
        lines.append(f"![Top-1 accuracy against training time; {told}]({WALL_CLOCK})")
    changes = comparison.datasets[main].confusions
    if any(any(change.values()) for change in changes.values()):
        comparison_pictures.draw_changed_pairs(changes, comparison.baseline, folder / CONFUSIONS)
        lines.append(f"![Pairs of classes whose confusion changed most, by {LEAST} or more, {names}]({CONFUSIONS})")
    return lines


def _reliability(comparison: Comparison, groups: Sequence[Group], name: str, folder: Path) -> str:
    found = comparison.datasets[name]
    errors = {group: estimates["ece"].value for group, estimates in found.estimates.items()}
    diagrams = {
        group.name: _pooled([run.evaluation.datasets[name].reliability for run in group.runs]) for group in groups
    }
    pictures.draw_reliability(diagrams, errors, folder / RELIABILITY)
    told = ", ".join(f"{group} {metric_text('ece', error)}" for group, error in errors.items())
    return f"![Reliability diagrams on {markdown.text(found.title)}; ECE: {markdown.text(told)}]({RELIABILITY})"


def _corruptions(comparison: Comparison, groups: Sequence[Group], folder: Path) -> str:
    _, corrupted, _ = common_datasets(groups)
    accuracies = {}
    for group in groups:
        runs = [run.evaluation.datasets for run in group.runs]
        by_run = [corruption_accuracies({name: datasets[name] for name in corrupted}) for datasets in runs]
        accuracies[group.name] = {
            corruption: {severity: fmean(run[corruption][severity] for run in by_run) for severity in by_severity}
            for corruption, by_severity in by_run[0].items()
        }
    clean = clean_of(groups[0].runs[0].evaluation.datasets)
    estimates = comparison.datasets[clean].estimates if clean in comparison.datasets else {}
    untouched = {group: by_metric["accuracy"].value for group, by_metric in estimates.items()}
    comparison_pictures.draw_corruptions(accuracies, untouched, folder / CORRUPTIONS)
    told = _accuracies(comparison.datasets[CORRUPTED])
    return f"![Accuracy against severity for each corruption; means: {told}]({CORRUPTIONS})"


def _accuracies(found: Compared) -> str:
    values = (f"{group} {100 * by_metric['accuracy'].value:.1f} %" for group, by_metric in found.estimates.items())
    return markdown.text(", ".join(values))


def _pooled(diagrams: Sequence[ReliabilityDiagram]) -> ReliabilityDiagram:
    """One diagram of the images of several."""
    counts = np.array([diagram.count for diagram in diagrams], float)
    total = counts.sum(0)

    def mean(values: Sequence[Sequence[float | None]]) -> list[float | None]:
        sums = (counts * [[0.0 if value is None else value for value in row] for row in values]).sum(0)
        return [float(part / count) if count else None for part, count in zip(sums, total, strict=True)]

    confidence, accuracy = (
        mean([getattr(diagram, name) for diagram in diagrams]) for name in ("confidence", "accuracy")
    )
    return ReliabilityDiagram(confidence, accuracy, [int(count) for count in total])
