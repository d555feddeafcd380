"""How far a classifier's confidence is from its accuracy, over bins of equal width or of equal mass."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_reinforce.metrics.scores import top_k_correct

NUM_BINS = 15


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
    return bin_confidences(logits.softmax(-1).amax(-1), top_k_correct(logits, labels, 1), num_bins)


def bin_confidences(confidence: Tensor, correct: Tensor, num_bins: int = NUM_BINS) -> Tensor:
    """`calibration_bins` of confidences that are known.

    Args:
        confidence: float [B], in (0, 1], in the precision that it was computed in.
        correct: float or bool [B], whether the prediction is right.
        num_bins: M, >= 1.
    """
    # The edges have the precision of the confidences, so that a float32 1/3 lies on the edge 5/15 and not above it.
    edges = torch.arange(1, num_bins, device=confidence.device).to(confidence.dtype) / num_bins
    bins = torch.bucketize(confidence, edges).cpu()
    rows = torch.stack([torch.ones_like(confidence), confidence, correct.to(confidence.dtype)]).cpu().double()
    return torch.stack([torch.bincount(bins, row, num_bins) for row in rows])


def expected_calibration_error(bins: Tensor) -> float:
    """Mean over samples of |accuracy - confidence| of their bin (Guo et al., ICML 2017), in [0, 1].

    Args:
        bins: float64 [3, M] of at least one sample, see `calibration_bins`.
    """
    count, confidence, correct = bins
    return float((correct - confidence).abs().sum() / count.sum())


def adaptive_calibration_error(confidence: Tensor, correct: Tensor, num_bins: int = NUM_BINS) -> float:
    """The calibration error over bins of equal mass (Nguyen and O'Connor, EMNLP 2015), in [0, 1].

    The samples, sorted by confidence, are cut into M groups whose sizes differ by at most one, larger ones first, as
    `numpy.array_split` does it. Samples of equal confidence that a cut divides are shared out in proportion, so the
    order of the samples does not matter.

    Args:
        confidence: float [N], in (0, 1], N >= 1.
        correct: float or bool [N], whether the prediction is right.
        num_bins: M, >= 1.
    """
    values, inverse, counts = np.unique(confidence.cpu().numpy(), return_inverse=True, return_counts=True)
    hits = np.bincount(inverse, correct.cpu().double().numpy())
    # Right predictions minus confidence, summed over the first so many samples: linear between distinct confidences.
    excess = np.concatenate([[0.0], np.cumsum(hits - counts * values.astype(np.float64))])
    samples = np.concatenate([[0], np.cumsum(counts)])
    size, larger = divmod(len(confidence), num_bins)
    cuts = np.arange(num_bins + 1)
    gaps = np.diff(np.interp(cuts * size + np.minimum(cuts, larger), samples, excess))
    return float(np.abs(gaps).sum() / len(confidence))
