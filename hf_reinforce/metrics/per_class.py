"""Accuracy of each class, accumulated over batches."""

import torch
from torch import Tensor

from hf_reinforce.metrics.scores import SampleScores, score_samples


class PerClassAccuracy:
    """Accumulates the top-1 accuracy of each class over batches, in float64 sums on the CPU.

    Over several processes: `PerClassAccuracy.from_state(accelerator.reduce(accuracy.state, "sum"))`.

    Args:
        num_classes: C, >= 1.

    Raises:
        ValueError: if `num_classes` is below 1.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be >= 1, not {num_classes}; pass the width of the logits.")
        self._sums = torch.zeros(2, num_classes, dtype=torch.float64)

    def update(self, logits: Tensor, labels: Tensor) -> SampleScores:
        """Adds a batch. Arguments, result and errors as `ClassificationMetrics.update`, C being `num_classes`."""
        if logits.ndim == 2:
            self._check(logits.shape[1])
        scores = score_samples(logits, labels)
        self.add(scores)
        return scores

    def add(self, scores: SampleScores) -> None:
        """Adds samples that are scored already.

        Raises:
            ValueError: if a label is not below `num_classes`. Nothing is added then.
        """
        labels, correct = torch.stack([scores.label, (scores.rank < 1).long()]).cpu()
        if len(labels):
            self._check(max(int(labels.max()) + 1, self._sums.shape[1]))
        classes = self._sums.shape[1]
        self._sums += torch.stack(
            [torch.bincount(labels, w.double(), classes) for w in (torch.ones_like(labels), correct)]
        )

    @property
    def state(self) -> Tensor:
        """Everything accumulated so far, a copy: float64 [2, C], samples and right predictions. States add up."""
        return self._sums.clone()

    @classmethod
    def from_state(cls, state: Tensor) -> "PerClassAccuracy":
        """The accumulator with this `state`, or with the sum of several; the tensor may be on any device.

        Raises:
            ValueError: if the tensor cannot be a state.
        """
        if state.ndim != 2 or state.shape[0] != 2 or state.dtype != torch.float64:
            raise ValueError(
                f"A state is a float64 tensor [2, num_classes]; found {state.dtype} {list(state.shape)}. "
                "Pass the sum of `PerClassAccuracy.state` over processes, unchanged."
            )
        accuracy = cls(state.shape[1])
        accuracy._sums += state.detach().cpu()
        return accuracy

    def compute(self) -> Tensor:
        """Share of right predictions of each class, in [0, 1], nan for a class without samples: float64 [C]."""
        return self._sums[1] / self._sums[0]

    def _check(self, found: int) -> None:
        if found != self._sums.shape[1]:
            raise ValueError(
                f"Expected samples of {self._sums.shape[1]} classes; found {found}. Make PerClassAccuracy with the "
                "width of the logits."
            )
