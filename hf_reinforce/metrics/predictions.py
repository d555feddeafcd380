"""What a classifier's answer says about each image: the few numbers that every metric is computed from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyarrow import parquet
from torch import Tensor
from torch.nn import functional as F

_COLUMNS = {
    "row": np.int64,
    "label": np.int64,
    "prediction": np.int64,
    "confidence": np.float32,
    "nll": np.float32,
    "brier": np.float32,
    "correct_top5": np.bool_,
}


@dataclass(frozen=True)
class Predictions:
    """The scores of the images of one dataset; logits are not kept.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
        >>> measure(score(logits, labels))["accuracy"]
        0.5

    Attributes:
        row: int64 [N], row of each image in its dataset.
        label: int64 [N], the right class; of several right classes, the one that the model finds most probable.
        prediction: int64 [N], the class with the largest logit; the lowest of several.
        confidence: float [N], probability of the prediction, in [1 / C, 1].
        nll: float [N], negative log-likelihood of the label in nats, >= 0.
        brier: float [N], sum over the classes of (probability - one-hot label)^2 (Brier, 1950), in [0, 2].
        correct_top5: bool [N], whether the label is among the five most probable classes.
    """

    row: NDArray[np.int64]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    confidence: NDArray[np.floating]
    nll: NDArray[np.floating]
    brier: NDArray[np.floating]
    correct_top5: NDArray[np.bool_]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is right, bool [N]."""
        return np.equal(self.label, self.prediction)

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def concatenate(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """The predictions of several batches, of which there is at least one, as one."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS})

    def select(self, places: NDArray[np.int64]) -> "Predictions":
        """The predictions at some places, in their order."""
        return Predictions(**{name: getattr(self, name)[places] for name in _COLUMNS})

    def save(self, path: str | Path) -> None:
        """Writes a Parquet file, and the folders that lead to it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        columns: dict[str, Any] = {name: getattr(self, name).astype(dtype) for name, dtype in _COLUMNS.items()}
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
        missing = sorted(set(_COLUMNS) - set(table.column_names))
        if missing:
            raise ValueError(
                f"{path} lacks the columns {missing} of predictions; it has {table.column_names}. "
                "Run recipes/evaluate.py with --output_dir again to write it anew."
            )
        return cls(**{name: table[name].to_numpy().astype(dtype) for name, dtype in _COLUMNS.items()})


def score(logits: Tensor, labels: Tensor, row: NDArray[np.int64] | None = None) -> Predictions:
    """Scores each image of a batch.

    Of equal logits the lower class counts as the larger, so the answer does not depend on the device.

    Args:
        logits: float [B, C] on any device, before or after a log-softmax. Half precision is computed in float32.
        labels: integers [B], in [0, C), on any device.
        row: rows of the images, default their places in the batch.

    Raises:
        ValueError: for other shapes or types, logits that are not finite, or labels out of range.
    """
    logits, labels = _typed(logits.detach(), labels)
    largest, prediction = logits.max(-1)
    _check_values(logits, labels, largest)
    index, probabilities = labels.unsqueeze(-1), logits.softmax(-1)
    own = logits.gather(-1, index)
    earlier = torch.arange(logits.shape[1], device=logits.device) < index
    rank = ((logits > own) | ((logits == own) & earlier)).sum(-1)  # classes that the model prefers to the label
    errors = probabilities.scatter_add(-1, index, -torch.ones_like(own))
    return Predictions(
        row=np.arange(len(labels)) if row is None else row,
        label=labels.cpu().numpy(),
        prediction=prediction.cpu().numpy(),
        confidence=probabilities.amax(-1).cpu().numpy(),
        nll=F.cross_entropy(logits, labels, reduction="none").cpu().numpy(),
        brier=errors.square().sum(-1).cpu().numpy(),
        correct_top5=(rank < 5).cpu().numpy(),
    )


def _typed(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in float32 or float64 and int64 labels beside them."""
    if logits.ndim != 2 or logits.shape[1] < 1 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"Expected logits [B, C] and labels [B]; found {list(logits.shape)} and {list(labels.shape)}. "
            "Pass one row of logits and one class index per sample."
        )
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not (logits.is_floating_point() and integers):
        raise ValueError(
            f"Expected floating-point logits and integer labels; found {logits.dtype} and {labels.dtype}. "
            "Pass the model's scores, and class indices such as labels.long()."
        )
    return (logits if logits.dtype == torch.float64 else logits.float()), labels.to(logits.device, torch.int64)


def _check_values(logits: Tensor, labels: Tensor, largest: Tensor) -> None:
    # nan and infinity show in the extremes, which are much faster to find than isfinite of everything.
    finite = largest.isfinite() & logits.amin(-1).isfinite()
    inside = (labels >= 0) & (labels < logits.shape[1])
    if bool((finite & inside).all()):
        return
    if not finite.all():
        row = int((~finite).int().argmax())
        raise ValueError(
            f"Expected finite logits; found nan or infinity in {int((~finite).sum())} of {len(logits)} rows, first in "
            f"row {row}. Check the weights, or evaluate in float32 or bfloat16 if float16 overflows."
        )
    row = int((~inside).int().argmax())
    raise ValueError(
        f"Expected labels from 0 to {logits.shape[1] - 1}, the logits having {logits.shape[1]} classes; found "
        f"{int(labels[row])} in row {row}. Check that data set and model name the same classes."
    )
