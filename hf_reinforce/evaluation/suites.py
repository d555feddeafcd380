"""Suites: YAML files that name datasets, how their classes and a model's correspond, and how they are scored."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hf_reinforce.augmentations.documents import read_document
from hf_reinforce.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from hf_reinforce.evaluation.results import Corruption, Evaluation
from hf_reinforce.metrics import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from hf_reinforce.models.classes import SCORINGS, ClassSpec

SUITES = Path(__file__).parent / "suites"
REAL_LABELS = "imagenet_real"
ALEXNET = "alexnet"
CLEAN = "clean"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SuiteEntry:
    """One dataset of a suite.

    Attributes:
        dataset_name: Hub id, folder of Parquet files or ImageFolder.
        title: name for people, default the name of the entry.
        dataset_config_name: Hub configuration.
        revision: branch, tag or commit of the Hub; a commit pins the images.
        split: split to evaluate on.
        image_column: default the only image column.
        label_column: class indices, names or WordNet ids, or lists of class indices of which each is right; default
            the only ClassLabel column, else `label`.
        file_column: names of ImageNet's validation files, default those of the image column; for `labels`.
        labels: `"imagenet_real"`: the labels of Beyer et al. (2020), found by the names of the files.
        classes: see `make_class_map`.
        scoring: `"restricted"` to the dataset's classes, or `"full"`; default see `make_class_map`.
        corruptions: corruptions that are made on the fly at each of `severities`; `("all",)` for the 15 of the paper.
        severities: 1 to 5.
        corruption_columns: columns with the name of the corruption and its severity, where images are corrupted.
        clean: entry with the same images as they are, for the relative mean corruption error.
        baseline: what corruption errors are normalised by: `"alexnet"`, its errors on ImageNet-C, or a YAML or JSON
            file, see `baseline_errors`.
        num_classes: the entry is for models with so many classes; others leave it out.
        note: what a reader should know.

    Example:
        from hf_reinforce import SuiteEntry

        entry = SuiteEntry("uoft-cs/cifar100", label_column="fine_label", corruptions=("fog", "jpeg_compression"))
    """

    dataset_name: str
    title: str | None = None
    dataset_config_name: str | None = None
    revision: str | None = None
    split: str = "test"
    image_column: str | None = None
    label_column: str | None = None
    file_column: str | None = None
    labels: str | None = None
    classes: ClassSpec = None
    scoring: str | None = None
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = SEVERITIES
    corruption_columns: tuple[str, ...] = ()
    clean: str | None = None
    baseline: str | None = None
    num_classes: int | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        for key, value, known in (("scoring", self.scoring, SCORINGS), ("labels", self.labels, (REAL_LABELS,))):
            if value is not None and value not in known:
                raise ValueError(f"{key} must be one of {', '.join(known)}, not {value!r}.")
        if len(self.corruption_columns) not in (0, 2):
            raise ValueError("corruption_columns must be two columns: the corruption's name and its severity.")
        for how in self.on_the_fly:
            if how.name not in CORRUPTIONS or how.severity not in SEVERITIES:
                raise ValueError(
                    f"There is no corruption {how.name!r} of severity {how.severity}; the corruptions are "
                    f"{', '.join(CORRUPTIONS)}, with severities 1 to 5."
                )
        if self.baseline is not None:
            missing = sorted(self._corrupted - set(baseline_errors(self.baseline, len(self.severities))))
            if missing:
                raise ValueError(f"The baseline {self.baseline} lacks the errors of {', '.join(missing)}; add them.")

    @property
    def on_the_fly(self) -> list[Corruption]:
        """Corruptions that are to be made while reading."""
        names = CORRUPTIONS if self.corruptions == ("all",) else self.corruptions
        return [Corruption(name, severity) for name in names for severity in self.severities]

    @property
    def _corrupted(self) -> set[str]:
        """The corruptions without which there is no summary."""
        return {how.name for how in self.on_the_fly} or set(CORRUPTIONS)

    def measured_errors(self, name: str, evaluation: Evaluation) -> dict[str, list[float]]:
        """The errors of this entry, of that name in its suite, as a file for `baseline` holds them.

        Empty unless every corruption was evaluated at every severity; with `clean` where that was evaluated.
        """
        errors: dict[str, list[float]] = {}
        for key, result in evaluation.datasets.items():
            how = result.corruption
            if how is not None and how.name in CORRUPTIONS and key == name + how.suffix:
                errors.setdefault(how.name, []).append(1 - float(result.metrics["accuracy"] or 0))
        if set(errors) < self._corrupted or any(len(own) != len(self.severities) for own in errors.values()):
            return {}
        if self.clean in evaluation.datasets:
            errors[CLEAN] = [1 - float(evaluation.datasets[self.clean].metrics["accuracy"] or 0)]
        return errors

    def corruption_summary(self, errors: Mapping[str, list[float]]) -> dict[str, float]:
        """The figures over all corruptions and severities, of what `measured_errors` has found.

        `mean_corruption_accuracy`, in [0, 1]; with a baseline that has these corruptions also `mce`, and with a clean
        entry `relative_mce`, 1 being as good as the baseline.
        """
        corrupted = {name: own for name, own in errors.items() if name != CLEAN}
        found = {"mean_corruption_accuracy": 1 - float(np.mean(list(corrupted.values())))}
        published = set(corrupted) == set(CORRUPTIONS) and len(self.severities) == 5
        if not self.baseline or (self.baseline == ALEXNET and not published):
            return found
        baseline = baseline_errors(self.baseline, len(self.severities))
        found["mce"] = mean_corruption_error(corrupted, baseline)
        if CLEAN in errors and CLEAN in baseline:
            clean, base = errors[CLEAN][0], baseline[CLEAN][0]
            try:
                found["relative_mce"] = relative_mean_corruption_error(corrupted, clean, baseline, base)
            except ValueError as error:
                logger.warning("There is no relative_mce of %s: %s", self.dataset_name, error)
        return found


@dataclass(frozen=True)
class Suite:
    """Datasets that are evaluated together, by name."""

    name: str
    entries: Mapping[str, SuiteEntry]


def baseline_errors(baseline: str, num_severities: int) -> dict[str, Sequence[float]]:
    """Errors in [0, 1] that those of a model are normalised by: of each corruption at each severity, and where it is
    known `clean` -> [error on clean images].

    `baseline` is `"alexnet"`, or a YAML or JSON file `{corruption: [error at each severity] or their mean}`, perhaps
    with `clean: error`; such as `corruption_errors/NAME.json` in the `--output_dir` of recipes/evaluate.py.
    """
    if baseline == ALEXNET:
        return {**ALEXNET_ERRORS, CLEAN: [ALEXNET_CLEAN_ERROR]}
    try:
        errors: dict[str, Sequence[float]] = {
            name: [float(error) for error in own] if isinstance(own, list) else [float(own)] * num_severities
            for name, own in read_document(Path(baseline)).items()
        }
        mean_corruption_error({name: [0.0] * num_severities for name in errors if name != CLEAN}, errors)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"baseline must be {ALEXNET}, or a file {{corruption: [error at each of {num_severities} severities] or "
            f"their mean}}, errors from 0 to 1, and perhaps clean: error; {baseline!r} is not ({error})."
        ) from error
    return errors


def load_suite(name_or_path: str) -> Suite:
    """Loads a suite of datasets to evaluate on.

    Args:
        name_or_path: a name such as `"imagenet_robustness"`, or a YAML file of your own,
            `{title: ..., datasets: {NAME: {key of SuiteEntry: value}}}`.

    Raises:
        ValueError: if there is no such suite, or the file is none; the message names the suites, or the place.

    Example:
        from hf_reinforce import load_suite

        suite = load_suite("cifar_robustness")
        print(list(suite.entries))
    """
    path = Path(name_or_path) if str(name_or_path).endswith((".yaml", ".yml")) else SUITES / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in SUITES.glob("*.yaml")))
        raise ValueError(
            f"There is no suite {name_or_path!r}; name one of {known}, or a YAML file such as suite.yaml."
        )
    content = read_document(path)
    datasets = content.get("datasets") if isinstance(content, Mapping) else None
    if not isinstance(datasets, Mapping) or not datasets or not set(content) <= {"title", "datasets"}:
        raise ValueError(f"{path} must name datasets under 'datasets', and perhaps a 'title'; see docs/evaluation.md.")
    entries = {}
    for name, values in datasets.items():
        try:
            entries[str(name)] = _entry(str(name), values, path.parent)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, {name}: {error}") from error
    for name, entry in entries.items():
        if entry.clean is not None and entry.clean not in entries:
            raise ValueError(f"{path}, {name}: clean names {entry.clean!r}, which is not one of {', '.join(entries)}.")
    return Suite(path.stem, entries)


def _entry(name: str, values: Any, folder: Path) -> SuiteEntry:
    """An entry of a file in `folder`, to which paths are relative."""
    known = {field.name for field in fields(SuiteEntry)}
    if not all(part.isalnum() or part in "_-." for part in name):
        raise ValueError("this name becomes that of a file; use letters, digits, '-', '_' and '.'.")
    if not isinstance(values, Mapping) or "dataset_name" not in values or not set(values) <= known:
        found = sorted(map(str, values)) if isinstance(values, Mapping) else values
        raise ValueError(f"a dataset needs dataset_name and may have {', '.join(sorted(known))}; found {found}.")
    given = dict(values)
    for key in ("classes", "baseline"):
        if isinstance(given.get(key), str) and (folder / given[key]).is_file():
            given[key] = str(folder / given[key])
    for key in ("corruptions", "severities", "corruption_columns"):
        if key in given:
            given[key] = tuple(given[key]) if isinstance(given[key], list) else (given[key],)
    return SuiteEntry(**given)
