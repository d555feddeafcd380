"""What an evaluation writes and others read: `evaluation.json` with the figures, and what they were measured on."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hf_reinforce.metrics import Predictions, ReliabilityDiagram
from hf_reinforce.store.atomic import write_whole

FORMAT = 1
RESULTS_FILE = "evaluation.json"

_LIBRARIES = ("torch", "transformers", "timm", "datasets", "numpy", "pillow", "simplejpeg", "imagecorruptions-imaug")


@dataclass(frozen=True)
class Corruption:
    """How the images of a dataset are corrupted: the name of the corruption and its severity, 1 to 5."""

    name: str
    severity: int

    @property
    def suffix(self) -> str:
        """What follows the name of an entry in the name of a corrupted dataset."""
        return f"-{self.name}-{self.severity}"


@dataclass(frozen=True)
class DatasetResult:
    """The figures of one dataset."""

    title: str
    dataset_name: str
    split: str
    num_samples: int
    class_map: str  # in words, how the model's classes were taken for the dataset's
    class_names: list[str]  # of the scored classes, which labels and predictions index
    metrics: dict[str, float | None]  # see `METRICS`; None where undefined
    reliability: ReliabilityDiagram
    per_class_accuracy: dict[str, float | None]  # None for a class without images
    predictions: str  # path of the predictions inside the folder
    dataset_config_name: str | None = None
    revision: str | None = None  # commit of the Hub, or what was asked for where it was not reached; None for folders
    corruption: Corruption | None = None
    notes: str | None = None  # such as what differs from the published dataset
    # What the figures depend on beside the images, see docs/evaluation.md; empty in files of before it was recorded.
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "DatasetResult":
        """The inverse of `dataclasses.asdict`."""
        corruption = content.get("corruption")
        reliability = ReliabilityDiagram(**content["reliability"])
        return cls(**{**content, "reliability": reliability, "corruption": corruption and Corruption(**corruption)})


@dataclass
class Evaluation:
    """Everything an evaluation found."""

    model: str  # Hub id or folder; the members of an ensemble joined by " + "
    suite: str | None = None
    datasets: dict[str, DatasetResult] = field(default_factory=dict)  # a corrupted one is NAME-CORRUPTION-SEVERITY
    summary: dict[str, float] = field(default_factory=dict)  # figures over several datasets, such as `mce`
    skipped: dict[str, str] = field(default_factory=dict)  # why a dataset of the suite could not be evaluated
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def save(self, folder: str | Path) -> None:
        """Writes `evaluation.json` into a folder, which is made if needed; the file is replaced whole."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_whole(Path(folder) / RESULTS_FILE, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Evaluation":
        """Reads the `evaluation.json` of a folder."""
        path = Path(folder) / RESULTS_FILE
        if not path.exists():
            raise ValueError(
                f"{folder} has no {RESULTS_FILE}; write one with recipes/evaluate.py --output_dir {folder}."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            datasets = {name: DatasetResult.from_json(entry) for name, entry in content["datasets"].items()}
            found = cls(**{**content, "datasets": datasets})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged or of another version ({error}); evaluate again.") from error
        if found.format != FORMAT:
            raise ValueError(f"{path} has format {found.format}, this version reads {FORMAT}; evaluate again.")
        return found

    def predictions(self, folder: str | Path, name: str) -> Predictions:
        """The predictions of one dataset, from the folder that this evaluation was loaded from."""
        found = Predictions.load(Path(folder) / self.datasets[name].predictions)
        if len(found) != self.datasets[name].num_samples:
            raise ValueError(
                f"{folder} has {len(found)} predictions for {name}, but its {RESULTS_FILE} says "
                f"{self.datasets[name].num_samples}; evaluate again with recipes/evaluate.py, to a new folder."
            )
        return found


def predictions_file(name: str) -> str:
    """Where the predictions of a dataset lie inside the folder of an evaluation."""
    return f"predictions/{name}.parquet"


def machine(device: str) -> dict[str, Any]:
    """What something was measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}
    return {"device": device, "cores": os.cpu_count(), "cpu": cpu, "system": platform.system(), **gpu}


def versions() -> dict[str, str]:
    """Versions of the libraries that the figures depend on, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
