"""Suites: YAML files that name datasets, how their classes and a model's correspond, and how they are scored."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hf_reinforce.augmentations.documents import read_document
from hf_reinforce.evaluation.corruptions import CORRUPTIONS, SEVERITIES, check_corruption
from hf_reinforce.evaluation.results import Corruption, Evaluation
from hf_reinforce.metrics import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    METRICS,
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
        metric: headline figure, one of `METRICS`.
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
    metric: str = "accuracy"
    note: str | None = None

    def __post_init__(self) -> None:
        _check_choice("scoring", self.scoring, (None, *SCORINGS), " (--scoring)")
        _check_choice("metric", self.metric, tuple(METRICS))
        _check_choice("labels", self.labels, (None, REAL_LABELS))
        if len(self.corruption_columns) not in (0, 2):
            raise ValueError("corruption_columns must be two columns: the corruption's name and its severity.")
        for corruption in self.on_the_fly:
            check_corruption(corruption)
        if self.baseline is not None:
            known = baseline_errors(self.baseline, len(self.severities))[0]
            missing = sorted(({how.name for how in self.on_the_fly} or set(CORRUPTIONS)) - set(known))
            if missing:
                raise ValueError(f"The baseline {self.baseline} lacks the errors of {', '.join(missing)}; add them.")

    @property
    def on_the_fly(self) -> list[Corruption]:
        """Corruptions that are to be made while reading."""
        names = CORRUPTIONS if self.corruptions == ("all",) else self.corruptions
        return [Corruption(name, severity) for name in names for severity in self.severities]


@dataclass(frozen=True)
class Suite:
    """Datasets that are evaluated together.

    Attributes:
        name: the name it was asked for by.
        entries: by name, in the order of the file.
        title: name for people.
    """

    name: str
    entries: Mapping[str, SuiteEntry]
    title: str | None = None


def baseline_errors(baseline: str, num_severities: int) -> tuple[dict[str, tuple[float, ...]], float | None]:
    """Errors that those of a model are normalised by, of each corruption at each severity, and on clean images.

    Args:
        baseline: `"alexnet"`, or a YAML or JSON file `{corruption: [error at each severity] or their mean}`, perhaps
            with `clean: error`; such as `corruption_errors/NAME.json` in the `--output_dir` of recipes/evaluate.py.
        num_severities: severities that are evaluated.

    Returns:
        Corruption -> errors in [0, 1], and the clean error, None where the file has none.

    Raises:
        ValueError: if there is no such file, or it holds something else.
    """
    if baseline == ALEXNET:
        return dict(ALEXNET_ERRORS), ALEXNET_CLEAN_ERROR
    if not Path(baseline).is_file():
        raise ValueError(f"baseline must be {ALEXNET} or a YAML or JSON file of corruption errors, not {baseline!r}.")
    try:
        content = read_document(Path(baseline))
        errors = {name: _errors(own, num_severities) for name, own in content.items()}
        clean = errors.pop(CLEAN, (None,))[0]
        mean_corruption_error(dict.fromkeys(errors, (0.0,) * num_severities), errors)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{baseline} must hold {{corruption: [error at each of {num_severities} severities] or their mean}}, "
            f"errors from 0 to 1, and perhaps clean: error ({error})."
        ) from error
    return errors, clean


def _errors(value: Any, num_severities: int) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list) else (float(value),) * num_severities


def corruption_summary(name: str, entry: SuiteEntry, evaluation: Evaluation) -> dict[str, float]:
    """The figures over all corruptions and severities of an entry; empty unless each of them was evaluated.

    Returns:
        `mean_corruption_accuracy`, in [0, 1]; for an entry with a baseline that has these corruptions also `mce`, and
        with a clean entry `relative_mce`, 1 being as good as the baseline.
    """
    errors = measured_errors(name, entry, evaluation)
    clean = errors.pop(CLEAN, None)
    if not errors:
        return {}
    found = {"mean_corruption_accuracy": 1 - float(np.mean(list(errors.values())))}
    published = set(errors) == set(CORRUPTIONS) and len(entry.severities) == 5
    if not entry.baseline or (entry.baseline == ALEXNET and not published):
        return found
    baseline, baseline_clean = baseline_errors(entry.baseline, len(entry.severities))
    found["mce"] = mean_corruption_error(errors, baseline)
    if clean is not None and baseline_clean is not None:
        try:
            found["relative_mce"] = relative_mean_corruption_error(errors, clean[0], baseline, baseline_clean)
        except ValueError as error:
            logger.warning("%s has no relative_mce: %s", name, error)
    return found


def measured_errors(name: str, entry: SuiteEntry, evaluation: Evaluation) -> dict[str, list[float]]:
    """Errors of an entry with corruptions, as a file for `baseline` holds them.

    Returns:
        Corruption -> error at each severity, in [0, 1], and `clean` -> [error] where the entry names clean images that
        were evaluated; empty unless every corruption was evaluated at every severity.
    """
    errors: dict[str, list[float]] = {}
    for key, result in evaluation.datasets.items():
        how = result.corruption
        if how is not None and how.name in CORRUPTIONS and key == name + how.suffix:
            errors.setdefault(how.name, []).append(1 - float(result.metrics["accuracy"] or 0))
    wanted = {how.name for how in entry.on_the_fly} or set(CORRUPTIONS)
    if set(errors) < wanted or any(len(own) != len(entry.severities) for own in errors.values()):
        return {}
    if entry.clean in evaluation.datasets:
        errors[CLEAN] = [1 - float(evaluation.datasets[entry.clean].metrics["accuracy"] or 0)]
    return errors


def suite_names() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


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
        raise ValueError(
            f"There is no suite {name_or_path!r}; name one of {', '.join(suite_names())}, or a YAML file such as "
            "suite.yaml."
        )
    content = read_document(path)
    if not isinstance(content, Mapping) or not set(content) <= {"title", "datasets"}:
        raise ValueError(f"{path} must have the keys 'datasets' and perhaps 'title', as in docs/evaluation.md.")
    datasets = content.get("datasets")
    if not isinstance(datasets, Mapping) or not datasets:
        raise ValueError(f"{path} must name at least one dataset under 'datasets'.")
    entries = {str(name): _entry(path, str(name), values) for name, values in datasets.items()}
    for name, entry in entries.items():
        if entry.clean is not None and entry.clean not in entries:
            raise ValueError(f"{path}, {name}: clean names {entry.clean!r}, which is not one of {', '.join(entries)}.")
    return Suite(path.stem, entries, content.get("title"))


def _entry(path: Path, name: str, values: Any) -> SuiteEntry:
    known = {field.name for field in fields(SuiteEntry)}
    if not isinstance(values, Mapping) or "dataset_name" not in values or not set(values) <= known:
        found = sorted(map(str, set(values) - known)) if isinstance(values, Mapping) else values
        raise ValueError(
            f"{path}, {name}: a dataset needs dataset_name and may have {', '.join(sorted(known))}; found {found}."
        )
    if not all(part.isalnum() or part in "_-." for part in name):
        raise ValueError(f"{path}: the name {name!r} becomes that of a file; use letters, digits, '-', '_' and '.'.")
    try:
        return SuiteEntry(**{key: _frozen(key, value, path.parent) for key, value in values.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}, {name}: {error}") from error


def _frozen(key: str, value: Any, folder: Path) -> Any:
    if key in ("classes", "baseline") and isinstance(value, str) and (folder / value).is_file():
        return str(folder / value)
    if key in ("corruptions", "severities", "corruption_columns"):
        return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    return value


def _check_choice(key: str, value: str | None, known: tuple[str | None, ...], flag: str = "") -> None:
    if value not in known:
        raise ValueError(f"{key} must be one of {', '.join(filter(None, known))}, not {value!r}{flag}.")
