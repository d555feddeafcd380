"""Accuracy and calibration of a classifier: pure functions of logits, and an accumulator that never holds the logits.

A metric that is a mean over samples is one function and one line in `MEAN_METRICS`. Log-probabilities are logits too,
so an ensemble of teachers is scored by the logarithm of its mean probabilities.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_BINS = 15


def top_k_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label is among the k largest logits; float [B], 0 or 1.

    Of equal logits the lower class counts as the larger, so the answer does not depend on the device.

    Args:
        logits: float [B, C].
        labels: int64 [B], in [0, C).
        k: classes that count, >= 1; with k >= C every sample is correct.
    """
    own = logits.gather(-1, labels.unsqueeze(-1))
    earlier = torch.arange(logits.shape[-1], device=logits.device) < labels.unsqueeze(-1)
    rank = ((logits > own) | ((logits == own) & earlier)).sum(-1)
    return (rank < k).to(logits.dtype)


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of the label in nats; float [B], >= 0. Arguments as `top_k_correct`."""
    return F.cross_entropy(logits, labels, reduction="none")


def brier_score(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the classes of (probability - one-hot label)^2 (Brier, 1950); float [B], in [0, 2].

    scikit-learn's `brier_score_loss` with `scale_by_half=False`. Arguments as `top_k_correct`.
    """
    index = labels.unsqueeze(-1)
    error = logits.softmax(-1).scatter_add(-1, index, -torch.ones_like(index, dtype=logits.dtype))
    return error.square().sum(-1)


def calibration_bins(logits: Tensor, labels: Tensor, num_bins: int = NUM_BINS) -> Tensor:
    """Sums over equal-width bins of the top-1 confidence.

    Bin m of M holds confidences in (m / M, (m + 1) / M], as in Guo et al. (ICML 2017), so 1.0 belongs to the last bin.

    Args:
        logits: float [B, C].
        labels: int64 [B], in [0, C).
        num_bins: M, >= 1.

    Returns:
        float64 [3, M] on the CPU: number of samples, sum of confidences, number of correct predictions.
    """
    confidence = logits.softmax(-1).amax(-1)
    # The edges have the precision of the confidences, so that a float32 1/3 lies on the edge 5/15 and not above it.
    edges = torch.arange(1, num_bins, device=confidence.device).to(confidence.dtype) / num_bins
    bins = torch.bucketize(confidence, edges).cpu()
    rows = torch.stack([torch.ones_like(confidence), confidence, top_k_correct(logits, labels, 1)]).cpu().double()
    return torch.stack([torch.bincount(bins, row, num_bins) for row in rows])


def expected_calibration_error(bins: Tensor) -> float:
    """Mean over samples of |accuracy - confidence| of their bin (Guo et al., ICML 2017), in [0, 1].

    Args:
        bins: float64 [3, M] of at least one sample, see `calibration_bins`.
    """
    count, confidence, correct = bins
    return float((correct - confidence).abs().sum() / count.sum())


MEAN_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "accuracy": lambda logits, labels: top_k_correct(logits, labels, 1),
    "accuracy_top5": lambda logits, labels: top_k_correct(logits, labels, 5),
    "nll": negative_log_likelihood,
    "brier": brier_score,
}
"""Metrics that are means over samples: name -> function of logits [B, C] and labels [B] that returns float [B]."""


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram.

    Attributes:
        confidence: float64 [num_bins], mean top-1 confidence in [0, 1]; nan in an empty bin.
        accuracy: float64 [num_bins], share of correct predictions in [0, 1]; nan in an empty bin.
        count: float64 [num_bins], number of samples.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor


class ClassificationMetrics:
    """Accumulates `MEAN_METRICS` and the expected calibration error over batches, in float64 sums on the CPU.

    Over several processes: `ClassificationMetrics.from_state(accelerator.reduce(metrics.state, "sum"))`.

    Args:
        num_bins: equal-width confidence bins of the calibration error, >= 1.

    Raises:
        ValueError: if `num_bins` is below 1.
    """

    def __init__(self, num_bins: int = NUM_BINS) -> None:
        if num_bins < 1:
            raise ValueError(f"num_bins must be >= 1, not {num_bins}; the usual number is {NUM_BINS}.")
        self._means = torch.zeros(len(MEAN_METRICS), dtype=torch.float64)
        self._bins = torch.zeros(3, num_bins, dtype=torch.float64)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch; the order and the size of batches do not matter.

        Args:
            logits: float [B, C] on any device, before or after a log-softmax. Half precision is computed in float32.
            labels: integers [B], in [0, C).

        Raises:
            ValueError: for other shapes or types, logits that are not finite, or labels out of range.
                Nothing of the batch is added then.
        """
        logits, labels = _checked(logits.detach(), labels)
        values = torch.stack([metric(logits, labels) for metric in MEAN_METRICS.values()])
        bins = calibration_bins(logits, labels, self._bins.shape[1])
        self._means += values.cpu().double().sum(-1)
        self._bins += bins

    def merge(self, other: "ClassificationMetrics") -> None:
        """Adds what another accumulator has seen.

        Raises:
            ValueError: if the other one has another number of bins.
        """
        if other._bins.shape != self._bins.shape:
            raise ValueError(
                f"Metrics with {self._bins.shape[1]} bins cannot take in metrics with {other._bins.shape[1]}; "
                "make both with the same num_bins."
            )
        self._means += other._means
        self._bins += other._bins

    @property
    def state(self) -> Tensor:
        """Everything accumulated so far, a copy: float64 [len(MEAN_METRICS) + 3 * num_bins]. States add up."""
        return torch.cat([self._means, self._bins.flatten()])

    @classmethod
    def from_state(cls, state: Tensor) -> "ClassificationMetrics":
        """The accumulator with this `state`, or with the sum of several; the tensor may be on any device.

        Raises:
            ValueError: if the tensor cannot be a state.
        """
        num_bins, rest = divmod(state.numel() - len(MEAN_METRICS), 3)
        if state.ndim != 1 or state.dtype != torch.float64 or num_bins < 1 or rest:
            raise ValueError(
                f"A state is a float64 tensor of {len(MEAN_METRICS)} + 3 * num_bins values; found {state.dtype} "
                f"{list(state.shape)}. Pass the sum of `ClassificationMetrics.state` over processes, unchanged."
            )
        metrics = cls(num_bins)
        state = state.detach().cpu()
        metrics._means += state[: len(MEAN_METRICS)]
        metrics._bins += state[len(MEAN_METRICS) :].view(3, num_bins)
        return metrics

    def compute(self) -> dict[str, float]:
        """The metrics of everything seen so far.

        Returns:
            `accuracy`, `accuracy_top5` (top min(5, C)) and `ece` in [0, 1], `nll` in nats, `brier` in [0, 2], and
            `num_samples`.

        Raises:
            ValueError: if no sample has been seen.
        """
        total = self._total()
        means = dict(zip(MEAN_METRICS, (self._means / total).tolist(), strict=True))
        return {**means, "ece": expected_calibration_error(self._bins), "num_samples": total}

    def reliability(self) -> Reliability:
        """Mean confidence, accuracy and number of samples of each confidence bin.

        Raises:
            ValueError: if no sample has been seen.
        """
        self._total()
        count, confidence, correct = self._bins.clone()
        return Reliability(confidence / count, correct / count, count)

    def _total(self) -> float:
        total = float(self._bins[0].sum())
        if total == 0:
            raise ValueError("Metrics need at least one sample, and none was seen; call update(logits, labels) first.")
        return total


def _checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in float32 or float64 and int64 labels beside them, or a ValueError."""
    if logits.ndim != 2 or logits.shape[1] < 1 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"Expected logits [B, C] and labels [B]; found {list(logits.shape)} and {list(labels.shape)}. "
            "Pass one row of logits and one class index per sample."
        )
    if (
        not logits.is_floating_point()
        or labels.dtype == torch.bool
        or labels.is_floating_point()
        or labels.is_complex()
    ):
        raise ValueError(
            f"Expected floating-point logits and integer labels; found {logits.dtype} and {labels.dtype}. "
            "Pass the model's scores, and class indices such as labels.long()."
        )
    finite = logits.isfinite().all(-1)
    if not finite.all():
        row = int((~finite).int().argmax())
        raise ValueError(
            f"Expected finite logits; found nan or infinity in {int((~finite).sum())} of {len(logits)} rows, first in "
            f"row {row}. Check the weights, or evaluate in float32 or bfloat16 if float16 overflows."
        )
    labels = labels.to(logits.device, torch.int64)
    outside = (labels < 0) | (labels >= logits.shape[1])
    if outside.any():
        raise ValueError(
            f"Expected labels from 0 to {logits.shape[1] - 1}, the logits having {logits.shape[1]} classes; found "
            f"{int(labels[outside][0])}. Check that data set and model name the same classes."
        )
    return (logits if logits.dtype == torch.float64 else logits.float()), labels
