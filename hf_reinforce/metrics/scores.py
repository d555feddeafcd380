"""What a classifier's logits say about each sample: one pass over a batch that every metric shares."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def label_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes the model prefers to the label; int64 [B], 0 where the prediction is right.

    Of equal logits the lower class counts as the larger, so the answer does not depend on the device.

    Args:
        logits: float [B, C].
        labels: int64 [B], in [0, C).
    """
    own = logits.gather(-1, labels.unsqueeze(-1))
    earlier = torch.arange(logits.shape[-1], device=logits.device) < labels.unsqueeze(-1)
    return ((logits > own) | ((logits == own) & earlier)).sum(-1)


def top_k_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label is among the k largest logits, ties as in `label_rank`; float [B], 0 or 1.

    Args:
        logits: float [B, C].
        labels: int64 [B], in [0, C).
        k: classes that count, >= 1; with k >= C every sample is correct.
    """
    return (label_rank(logits, labels) < k).to(logits.dtype)


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of the label in nats; float [B], >= 0. Arguments as `label_rank`."""
    return F.cross_entropy(logits, labels, reduction="none")


def brier_score(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the classes of (probability - one-hot label)^2 (Brier, 1950); float [B], in [0, 2].

    scikit-learn's `brier_score_loss` with `scale_by_half=False`. Arguments as `label_rank`.
    """
    return _squared_error(logits.softmax(-1), labels)


def _squared_error(probabilities: Tensor, labels: Tensor) -> Tensor:
    index = labels.unsqueeze(-1)
    one_hot = torch.ones_like(index, dtype=probabilities.dtype)
    return probabilities.scatter_add(-1, index, -one_hot).square().sum(-1)


@dataclass(frozen=True)
class SampleScores:
    """The samples of a batch, each tensor [B] and on the device of the logits.

    Attributes:
        label: int64, the right class.
        prediction: int64, the class with the largest logit; the lowest of several.
        rank: int64, classes that the model prefers to the label, see `label_rank`.
        confidence: float, probability of the prediction, in [1 / C, 1].
        nll: float, negative log-likelihood of the label in nats, >= 0.
        brier: float, Brier score, in [0, 2].
    """

    label: Tensor
    prediction: Tensor
    rank: Tensor
    confidence: Tensor
    nll: Tensor
    brier: Tensor

    @property
    def label_probability(self) -> Tensor:
        """Probability of the label; float [B], in [0, 1]."""
        return (-self.nll).exp()


def score_samples(logits: Tensor, labels: Tensor) -> SampleScores:
    """Scores each sample of a batch.

    Args:
        logits: float [B, C] on any device, before or after a log-softmax. Half precision is computed in float32.
        labels: integers [B], in [0, C), on any device.

    Raises:
        ValueError: for other shapes or types, logits that are not finite, or labels out of range.
    """
    logits, labels = _typed(logits.detach(), labels)
    largest, prediction = logits.max(-1)  # of several, the first
    _check_values(logits, labels, largest)
    probabilities = logits.softmax(-1)
    return SampleScores(
        label=labels,
        prediction=prediction,
        rank=label_rank(logits, labels),
        confidence=probabilities.amax(-1),
        nll=negative_log_likelihood(logits, labels),
        brier=_squared_error(probabilities, labels),
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
    if bool((finite & inside).all()):  # the only wait for the device
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
