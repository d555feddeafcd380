"""What an evaluation writes and others read: `evaluation.json` with the figures, and the prediction of every image."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from hf_reinforce.store.parquet import write_whole

FORMAT = 1
RESULTS_FILE = "evaluation.json"
PREDICTIONS_FOLDER = "predictions"
ERRORS_FOLDER = "corruption_errors"

_TYPES = {
    "row": np.int64,
    "label": np.int64,
    "prediction": np.int64,
    "confidence": np.float32,
    "label_probability": np.float32,
    "nll": np.float32,
    "brier": np.float32,
    "correct_top5": np.bool_,
}


@dataclass(frozen=True)
class Predictions:
    """The answers for the images of one data set, in its order; one value per image.

    Attributes:
        row: int64 [N], row of the data set.
        label: int64 [N], index into `class_names`; of several right classes, the one the model finds most probable.
        prediction: int64 [N], index of the most probable class among the scored ones.
        confidence: float32 [N], its probability, in [0, 1].
        label_probability: float32 [N], probability of the label, in [0, 1].
        nll: float32 [N], negative log-likelihood of the label in nats.
        brier: float32 [N], in [0, 2].
        correct_top5: bool [N], whether the label is among the five most probable classes.
        texture: int64 [N], the second label of cue-conflict images, whose `label` is the shape; None elsewhere.
    """

    row: NDArray[np.int64]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    confidence: NDArray[np.float32]
    label_probability: NDArray[np.float32]
    nll: NDArray[np.float32]
    brier: NDArray[np.float32]
    correct_top5: NDArray[np.bool_]
    texture: NDArray[np.int64] | None = None

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is right, bool [N]."""
        return np.equal(self.label, self.prediction)

    def __len__(self) -> int:
        return len(self.row)

    def save(self, path: str | Path) -> None:
        """Writes a Parquet file, and the folders that lead to it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        columns: dict[str, NDArray[Any]] = {
            name: np.asarray(getattr(self, name), dtype) for name, dtype in _TYPES.items()
        }
        if self.texture is not None:
            columns["texture"] = np.asarray(self.texture, np.int64)
        parquet.write_table(pa.table(columns), path, compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> "Predictions":
        """Reads what `save` wrote.

        Raises:
            ValueError: if there is no such file, or it lacks a column.
        """
        if not Path(path).exists():
            raise ValueError(
                f"There are no predictions {path}; run recipes/evaluate.py with --output_dir to write them."
            )
        table = parquet.read_table(path)
        missing = sorted(set(_TYPES) - set(table.column_names))
        if missing:
            raise ValueError(
                f"{path} lacks the columns {missing} of predictions; it has {table.column_names}. "
                "Run recipes/evaluate.py with --output_dir again to write it anew."
            )
        columns = {name: table[name].to_numpy().astype(dtype) for name, dtype in _TYPES.items()}
        texture = table["texture"].to_numpy() if "texture" in table.column_names else None
        return cls(**columns, texture=texture)


@dataclass(frozen=True)
class Corruption:
    """How the images of a data set are corrupted: the name of the corruption and its severity, 1 to 5."""

    name: str
    severity: int


@dataclass(frozen=True)
class ReliabilityDiagram:
    """A reliability diagram of M bins of the top-1 confidence; see `hf_reinforce.metrics.Reliability`.

    Attributes:
        confidence: mean confidence of each bin in [0, 1], None where the bin is empty.
        accuracy: share of right predictions of each bin in [0, 1], None where the bin is empty.
        count: images of each bin.
    """

    confidence: list[float | None]
    accuracy: list[float | None]
    count: list[int]


@dataclass(frozen=True)
class DatasetResult:
    """The figures of one data set.

    Attributes:
        title: name for people, such as `"ImageNet-R"`.
        dataset_name: Hub id or folder.
        split: its split.
        num_samples: images that were scored.
        class_map: in words, how the model's classes were taken for the data set's.
        class_names: names of the scored classes, which labels and predictions index.
        metrics: `accuracy`, `accuracy_top5`, `nll`, `brier`, `ece`, `ece_adaptive`, and for cue-conflict images
            `shape_bias`; None where undefined.
        reliability: the reliability diagram.
        per_class_accuracy: class name -> accuracy in [0, 1], None for a class without images.
        predictions: path of the predictions inside the folder.
        dataset_config_name: Hub configuration.
        revision: commit of the Hub; the revision that was asked for where the Hub was not reached, None for folders.
        corruption: how the images are corrupted, None for images as they are.
        notes: what a reader should know, such as what differs from the published data set.
        settings: what the figures depend on beside the images: `seed`, `image_size`, `crop_pct`, `interpolation`,
            `dtype`, `max_samples`, `scoring`, `merge`, and of `crop_mode`, `crop_rounding` and `fill` (see
            `EvaluationView`) those that are not the default; empty in files of before they were recorded.
    """

    title: str
    dataset_name: str
    split: str
    num_samples: int
    class_map: str
    class_names: list[str]
    metrics: dict[str, float | None]
    reliability: ReliabilityDiagram
    per_class_accuracy: dict[str, float | None]
    predictions: str
    dataset_config_name: str | None = None
    revision: str | None = None
    corruption: Corruption | None = None
    notes: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "DatasetResult":
        """The inverse of `dataclasses.asdict`."""
        corruption = content.get("corruption")
        return cls(
            **{
                **content,
                "reliability": ReliabilityDiagram(**content["reliability"]),
                "corruption": None if corruption is None else Corruption(**corruption),
            }
        )


@dataclass
class Evaluation:
    """Everything an evaluation found.

    Attributes:
        model: Hub id or folder of the model; the members of an ensemble joined by `" + "`.
        suite: name of the suite, None for a single data set.
        datasets: by name, in the order of the suite; a corruption's name is `ENTRY-CORRUPTION-SEVERITY`.
        summary: figures over several data sets, such as `mce`; only those that apply.
        skipped: data sets of the suite that could not be evaluated -> the sentence that says why.
        machine: what it ran on.
        versions: library -> version.
        format: version of the file format.
    """

    model: str
    suite: str | None = None
    datasets: dict[str, DatasetResult] = field(default_factory=dict)
    summary: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def save(self, folder: str | Path) -> None:
        """Writes `evaluation.json` into a folder, which is made if needed; the file is replaced whole."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        content = json.dumps(_without_nan(dataclasses.asdict(self)), indent=1, allow_nan=False)
        write_whole(Path(folder) / RESULTS_FILE, content + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Evaluation":
        """Reads the `evaluation.json` of a folder.

        Raises:
            ValueError: if there is none, or it is damaged or of another format.
        """
        path = Path(folder) / RESULTS_FILE
        if not path.exists():
            raise ValueError(
                f"{folder} has no {RESULTS_FILE}; write one with recipes/evaluate.py --output_dir {folder}."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content.get("format")
            if found != FORMAT:
                raise ValueError(
                    f"{path} has format {found}, but this version reads format {FORMAT}; evaluate again, or use the "
                    "version of hf-reinforce that wrote it."
                )
            datasets = {name: DatasetResult.from_json(entry) for name, entry in content["datasets"].items()}
            return cls(**{**content, "datasets": datasets})
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged ({error}); evaluate again to write it anew.") from error

    def predictions(self, folder: str | Path, name: str) -> Predictions:
        """The predictions of one data set, from the folder that this evaluation was loaded from.

        Raises:
            ValueError: if there is no such data set, or its file is missing, damaged or of another number of images.
        """
        if name not in self.datasets:
            raise ValueError(f"{folder} has no data set {name!r}; it has {', '.join(self.datasets) or 'none'}.")
        found, expected = (
            Predictions.load(Path(folder) / self.datasets[name].predictions),
            self.datasets[name].num_samples,
        )
        if len(found) != expected:
            raise ValueError(
                f"{folder} has {len(found)} predictions for {name}, but its {RESULTS_FILE} says {expected}; "
                "evaluate again with recipes/evaluate.py, to a new folder."
            )
        return found


def predictions_file(name: str) -> str:
    """Where the predictions of a data set lie inside the folder of an evaluation."""
    return f"{PREDICTIONS_FOLDER}/{name}.parquet"


def _without_nan(value: Any) -> Any:
    """The same content with None for numbers that JSON doesn't have."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
