"""Students side by side: what each scores, how sure that is, and which differences are more than noise."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hf_reinforce.class_words import class_words
from hf_reinforce.evaluation.bootstrap import METRICS, Array, checksum, measure, resample
from hf_reinforce.evaluation.confusions import ChangedPair, confusions, largest_changes
from hf_reinforce.evaluation.results import Predictions
from hf_reinforce.evaluation.runs import Group, Run, other_settings, shortened
from hf_reinforce.evaluation.significance import Difference, Estimate, Sample, judge

COMPARISON_FILE = "comparison.json"
CORRUPTED = "corrupted"
_FEW = 100  # images


@dataclass(frozen=True)
class Compared:
    """One data set, or the mean over all corrupted ones.

    Attributes:
        title: name for people.
        num_samples: images, of the first group.
        over: group -> what its intervals are over, `"images"` or `"3 seeds"`.
        estimates: group -> metric -> estimate.
        differences: group other than the first -> metric -> difference to the first.
        differences_over: group other than the first -> `"seeds"`, `"paired images"` or `"images"`.
        confusions: group other than the first -> `"fewer"` and `"more"` -> pairs, the largest change first.
    """

    title: str
    num_samples: int
    over: dict[str, str]
    estimates: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Difference]]
    differences_over: dict[str, str]
    confusions: dict[str, dict[str, list[ChangedPair]]]


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison found.

    Attributes:
        baseline: name of the first group.
        groups: name -> `models`, `method`, `epochs` and `seconds` of its runs, None where unknown.
        datasets: data sets that all runs have; `"corrupted"` is the mean over those with a corruption.
        summary: figure -> group -> mean over its runs, for figures over several data sets such as `mce`.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.
        num_comparisons: differences of each metric, which Holm's correction is for.
        notes: what a reader should know.
    """

    baseline: str
    groups: dict[str, dict[str, Any]]
    datasets: dict[str, Compared]
    summary: dict[str, dict[str, float]]
    num_resamples: int
    seed: int
    num_comparisons: int
    notes: list[str]

    def save(self, folder: str | Path) -> None:
        """Writes `comparison.json`, numbers with six digits; the same input gives the same bytes."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        temporary = Path(folder) / f"{COMPARISON_FILE}.tmp"
        temporary.write_text(json.dumps(_rounded(dataclasses.asdict(self)), indent=1) + "\n", encoding="utf-8")
        temporary.replace(Path(folder) / COMPARISON_FILE)


def compare(groups: Sequence[Group], num_resamples: int = 1000, seed: int = 0) -> Comparison:
    """Compares groups of runs with the first of them.

    Where two groups have several seeds each, intervals and differences are over the seeds (Student's and Welch's t: a
    bootstrap of a few seeds is too narrow). Else they are over images, by bootstrap, and pairs where the rows agree.

    Args:
        groups: two or more, see `load_groups`.
        num_resamples: of the bootstrap, >= 100.
        seed: of the bootstrap.

    Raises:
        ValueError: if the runs have no data set in common, or one of other classes or labels under the same name, or
            predictions are missing.
    """
    if num_resamples < 100:
        raise ValueError(f"num_resamples must be >= 100, not {num_resamples}; 1000 is usual.")
    clean, corrupted, notes = common_datasets(groups)
    units = {name: [name] for name in clean} | ({CORRUPTED: corrupted} if corrupted else {})
    reads = sum(len(names) for names in units.values()) * sum(len(group.runs) for group in groups)
    first, datasets = groups[0].runs[0].evaluation.datasets, {}
    with tqdm(total=reads, desc="Comparing", unit="data set", disable=None) as progress:
        reader = _Reader(progress.update)
        for unit, names in units.items():
            title = first[unit].title if unit in first else f"mean over {len(names)} corrupted sets"
            size = sum(first[name].num_samples for name in names)
            samples = {group.name: reader.sample(group, names, num_resamples, seed) for group in groups}
            pairs = _changed_pairs(groups, unit, samples, reader) if unit in first else {}
            datasets[unit] = _compared(title, size, samples, pairs)
    runs = [run for group in groups for run in group.runs]
    together = [differences for found in datasets.values() for differences in found.differences.values()]
    judge(together)
    return Comparison(
        baseline=groups[0].name,
        groups={group.name: _described(group) for group in groups},
        datasets=datasets,
        summary=_summary(groups),
        num_resamples=num_resamples,
        seed=seed,
        num_comparisons=len(together),
        notes=notes + other_settings(runs, [*clean, *corrupted]) + _notes(datasets.values()),
    )


class _Reader:
    """Reads predictions, and refuses other labels for the same rows."""

    def __init__(self, progress: Callable[[], Any]) -> None:
        self._progress = progress
        self._seen: dict[tuple[str, int], tuple[int, tuple[str | None, ...], Path]] = {}

    def sample(self, group: Group, names: Sequence[str], num_resamples: int, seed: int) -> Sample:
        """What the group scored on a data set, or on the mean over several."""
        runs = np.zeros((len(group.runs), len(METRICS)))
        resamples = np.zeros((num_resamples, len(METRICS)))
        rows: dict[str, set[int]] = {name: set() for name in names}
        for index, run in enumerate(group.runs):
            for name in names:
                predictions = self.read(run, name)
                runs[index] += measure(predictions) / len(names)
                resamples += resample(predictions, num_resamples, seed) / (len(names) * len(group.runs))
                rows[name].add(checksum(predictions.row))
                self._progress()
        return Sample(runs, resamples, rows)

    def read(self, run: Run, name: str) -> Predictions:
        """The predictions of a run; the label of an image with several right ones may differ between models."""
        found, result = run.predictions(name), run.evaluation.datasets[name]
        source = (result.dataset_name, result.dataset_config_name, result.revision, result.split)
        labels = checksum(found.label)
        there = self._seen.setdefault((name, checksum(found.row)), (labels, source, run.folder))
        if there[0] != labels and there[1] != source:
            raise ValueError(
                f"{there[2]} and {run.folder} have other labels for the same rows of {name}: {_source(there[1])}, "
                f"{_source(source)}. Evaluate both on the same data set and revision."
            )
        return found


def _compared(
    title: str, size: int, samples: dict[str, Sample], confusions: dict[str, dict[str, list[ChangedPair]]]
) -> Compared:
    baseline, *others = samples
    found = {name: samples[name].difference(samples[baseline]) for name in others}
    return Compared(
        title=title,
        num_samples=size,
        over={name: sample.over for name, sample in samples.items()},
        estimates={name: sample.estimates() for name, sample in samples.items()},
        differences={name: differences for name, (differences, _) in found.items()},
        differences_over={name: over for name, (_, over) in found.items()},
        confusions=confusions,
    )


def common_datasets(groups: Sequence[Group]) -> tuple[list[str], list[str], list[str]]:
    """Names of the data sets that all runs have, as they are and corrupted, and notes about the others.

    Raises:
        ValueError: if they have none in common, or one of different classes under the same name.
    """
    runs = [run for group in groups for run in group.runs]
    first = runs[0].evaluation.datasets
    common = [name for name in first if all(name in run.evaluation.datasets for run in runs)]
    if not common:
        lists = "; ".join(f"{run.folder}: {shortened(run.evaluation.datasets)}" for run in runs)
        raise ValueError(
            f"The runs have no data set in common ({lists}). Evaluate them with the same --suite, or the same "
            "--dataset_name, of recipes/evaluate.py."
        )
    for run in runs:
        for name in common:
            ours, theirs = first[name].class_names, run.evaluation.datasets[name].class_names
            if ours != theirs:
                raise ValueError(
                    f"{runs[0].folder} and {run.folder} score {name} in different classes: {len(ours)} "
                    f"({_ends(ours)}) and {len(theirs)} ({_ends(theirs)}). Evaluate both on the same data set."
                )
    left_out = sorted({name for run in runs for name in run.evaluation.datasets} - set(common))
    notes = [f"Left out, for not all runs have them: {shortened(left_out)}."] if left_out else []
    clean = [name for name in common if first[name].corruption is None]
    return clean, [name for name in common if name not in clean], notes


def _changed_pairs(
    groups: Sequence[Group], name: str, samples: dict[str, Sample], reader: _Reader
) -> dict[str, dict[str, list[ChangedPair]]]:
    """Of every group that saw the same images as the first."""
    names = class_words(groups[0].runs[0].evaluation.datasets[name].class_names)
    counts: dict[str, Array] = {}
    for group in groups:
        if samples[group.name].paired_with(samples[groups[0].name]):
            predictions = (reader.read(run, name) for run in group.runs)
            counts[group.name] = np.mean([confusions(found, len(names)) for found in predictions], axis=0)
    before = counts.get(groups[0].name)
    return (
        {}
        if before is None
        else {
            name: {
                "fewer": largest_changes(before, after, names, -1),
                "more": largest_changes(before, after, names, 1),
            }
            for name, after in counts.items()
            if name != groups[0].name
        }
    )


def _described(group: Group) -> dict[str, Any]:
    trainings = [run.training for run in group.runs if run.training]
    seconds = [training.seconds for training in trainings]
    return {
        "models": [run.evaluation.model for run in group.runs],
        "folders": [str(run.folder) for run in group.runs],
        "method": group.method,
        "epochs": trainings[0].epochs if trainings else None,
        "seconds": sum(seconds) / len(seconds) if seconds else None,
    }


def _summary(groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    """Figures over several data sets that all runs have."""
    runs = [run.evaluation.summary for group in groups for run in group.runs]
    names = [name for name in runs[0] if all(name in summary for summary in runs)]
    return {
        name: {
            group.name: sum(run.evaluation.summary[name] for run in group.runs) / len(group.runs) for group in groups
        }
        for name in names
    }


def _notes(datasets: Iterable[Compared]) -> list[str]:
    notes = []
    for found in datasets:
        if "images" in found.differences_over.values():
            notes.append(
                f"{found.title}: the students did not see the same rows, so their images are taken as independent "
                "samples, which makes the intervals wider."
            )
        if found.num_samples < _FEW:
            notes.append(
                f"{found.title}: no interval over {found.num_samples} images is to be trusted; that of a student who "
                "is right on all of them is a point."
            )
    return notes


def _ends(names: Sequence[str]) -> str:
    return f"{names[0]} ... {names[-1]}" if names else "none"


def _source(source: tuple[str | None, ...]) -> str:
    name, config, revision, split = source
    return " ".join(str(part) for part in (name, config, split, revision and f"at {revision[:10]}") if part)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
