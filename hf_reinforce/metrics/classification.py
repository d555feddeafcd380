"""Accuracy and calibration of a classifier, accumulated over batches."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_reinforce.metrics.calibration import (
    NUM_BINS,
    Reliability,
    adaptive_calibration_error,
    bin_confidences,
    expected_calibration_error,
)
from hf_reinforce.metrics.scores import SampleScores, score_samples

if TYPE_CHECKING:
    from accelerate import Accelerator

MEAN_METRICS: dict[str, Callable[[SampleScores], Tensor]] = {
    "accuracy": lambda scores: scores.rank < 1,
    "accuracy_top5": lambda scores: scores.rank < 5,
    "nll": lambda scores: scores.nll,
    "brier": lambda scores: scores.brier,
}
"""Metrics that are means over samples: name -> function of a batch's `SampleScores` that returns [B]."""


class ClassificationMetrics:
    """Accumulates `MEAN_METRICS` and calibration errors over batches, on the CPU.

    Sums are float64. The adaptive calibration error needs every confidence: 4 bytes a sample; logits are not kept.

    Over several processes: `metrics.gather(accelerator)`.

    Args:
        num_bins: confidence bins of the calibration errors, >= 1.

    Raises:
        ValueError: if `num_bins` is below 1.
    """

    def __init__(self, num_bins: int = NUM_BINS) -> None:
        if num_bins < 1:
            raise ValueError(f"num_bins must be >= 1, not {num_bins}; the usual number is {NUM_BINS}.")
        self._means = torch.zeros(len(MEAN_METRICS), dtype=torch.float64)
        self._bins = torch.zeros(3, num_bins, dtype=torch.float64)
        self._confidences: list[Tensor] = []

    def update(self, logits: Tensor, labels: Tensor) -> SampleScores:
        """Adds a batch; the order and the size of batches do not matter.

        Args:
            logits: float [B, C] on any device, before or after a log-softmax. Half precision is computed in float32.
            labels: integers [B], in [0, C).

        Returns:
            The scores of each sample, for whoever needs more than the sums.

        Raises:
            ValueError: for other shapes or types, logits that are not finite, or labels out of range.
                Nothing of the batch is added then.
        """
        scores = score_samples(logits, labels)
        self.add(scores)
        return scores

    def add(self, scores: SampleScores) -> None:
        """Adds samples that are scored already."""
        dtype = scores.confidence.dtype
        values = [metric(scores).to(dtype) for metric in MEAN_METRICS.values()]
        # One transfer from the device.
        *means, confidence, correct = torch.stack([*values, scores.confidence, (scores.rank < 1).to(dtype)]).cpu()
        self._means += torch.stack(means).double().sum(-1)
        self._bins += bin_confidences(confidence, correct, self._bins.shape[1])
        self._confidences.append(torch.where(correct > 0, confidence, -confidence).float())

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
        self._confidences += other._confidences

    def gather(self, accelerator: "Accelerator") -> "ClassificationMetrics":
        """What all processes have seen, on each of them; every process calls this.

        Args:
            accelerator: that of this process. Samples that its data loader repeated to fill the last batch count as
                often as they were added.
        """
        state = accelerator.reduce(self.state.to(accelerator.device), "sum")
        padded = accelerator.pad_across_processes(self.confidences.to(accelerator.device))
        return ClassificationMetrics.from_state(state, accelerator.gather(padded))

    @property
    def state(self) -> Tensor:
        """The sums so far, a copy: float64 [len(MEAN_METRICS) + 3 * num_bins]. States add up."""
        return torch.cat([self._means, self._bins.flatten()])

    @property
    def confidences(self) -> Tensor:
        """Top-1 confidence of each sample, negative where the prediction is wrong: float32 [N]. They concatenate."""
        self._confidences = [torch.cat([torch.zeros(0), *self._confidences])]
        return self._confidences[0].clone()

    @classmethod
    def from_state(cls, state: Tensor, confidences: Tensor | None = None) -> "ClassificationMetrics":
        """The accumulator with this state, or with the sum of several; the tensors may be on any device.

        Args:
            state: see `state`.
            confidences: those of the same samples in any order, see `confidences`; zeros, which pad, are left out.
                Without them there is no adaptive calibration error.

        Raises:
            ValueError: if the tensors cannot be a state and its confidences.
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
        if confidences is not None:
            metrics._confidences = [confidences[confidences != 0].detach().cpu().float()]
            if not metrics._has_confidences:
                raise ValueError(
                    f"The state counts {metrics._bins[0].sum():.0f} samples, but there are confidences of "
                    f"{len(metrics._confidences[0])}; pass both of the same processes."
                )
        return metrics

    def compute(self) -> dict[str, float]:
        """The metrics of everything seen so far.

        Returns:
            `accuracy`, `accuracy_top5` (top min(5, C)), `ece` and `ece_adaptive` in [0, 1], `nll` in nats, `brier` in
            [0, 2], and `num_samples`. `ece_adaptive` is nan if part of the samples came from a state without
            confidences.

        Raises:
            ValueError: if no sample has been seen.
        """
        total = self._total()
        means = dict(zip(MEAN_METRICS, (self._means / total).tolist(), strict=True))
        adaptive = float("nan")
        if self._has_confidences:
            signed = self.confidences
            adaptive = adaptive_calibration_error(signed.abs(), signed > 0, self._bins.shape[1])
        return {
            **means,
            "ece": expected_calibration_error(self._bins),
            "ece_adaptive": adaptive,
            "num_samples": total,
        }

    def reliability(self) -> Reliability:
        """Mean confidence, accuracy and number of samples of each confidence bin.

        Raises:
            ValueError: if no sample has been seen.
        """
        self._total()
        count, confidence, correct = self._bins.clone()
        return Reliability(confidence / count, correct / count, count)

    @property
    def _has_confidences(self) -> bool:
        return sum(len(chunk) for chunk in self._confidences) == float(self._bins[0].sum())

    def _total(self) -> float:
        total = float(self._bins[0].sum())
        if total == 0:
            raise ValueError("Metrics need at least one sample, and none was seen; call update(logits, labels) first.")
        return total
