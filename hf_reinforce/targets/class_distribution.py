"""Teacher outputs as stored targets: top-k, tail, codebook, and the sparse distillation loss.

A stored target is the log-probability of the K most likely classes and the log of the mass that remains. Probabilities
are rounded to 255 levels `(q / 255) ** 2.2`, so a Parquet dictionary page stores each in one byte; readers see floats.
"""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

CODEBOOK_LEVELS = 255
CODEBOOK_EXPONENT = 2.2
KL_BOUND = 1e-4
"""Most that rounding may cost a record: KL(full-precision top-k and tail || stored)."""

_LOG_ZERO = -1e4  # exp() of it is exactly 0 in float32, and 0 * it is 0 where 0 * -inf is nan

_ROUNDING = 1e-3
"""What a sum of float32 probabilities may exceed 1 by."""


@dataclass(frozen=True)
class Targets:
    """Sparse targets of B samples.

    Attributes:
        label: int64 [B, K], class indices, most likely first.
        value: float32 [B, K], log-probabilities.
        tail: float32 [B], log of the mass outside of the top k; -inf when K is the number of classes.
    """

    label: Tensor
    value: Tensor
    tail: Tensor

    def to(self, device: torch.device | str) -> "Targets":
        return Targets(self.label.to(device), self.value.to(device), self.tail.to(device))


def top_k_targets(log_probs: Tensor, top_k: int) -> Targets:
    """The K largest log-probabilities and the tail, in full precision.

    Args:
        log_probs: float [B, C], normalised over C.
        top_k: K, 1 <= K <= C.

    Raises:
        ValueError: if K is out of range, or the teacher's answer is nan.
    """
    num_classes = log_probs.shape[-1]
    if not 1 <= top_k <= num_classes:
        raise ValueError(f"top_k must lie between 1 and the number of classes, {num_classes}, not {top_k}.")
    log_probs = log_probs.float()
    if log_probs.isnan().any():
        raise ValueError("The teacher answered with nan; run it in float32 or bfloat16, which do not overflow.")
    order = log_probs.argsort(dim=-1, descending=True, stable=True)  # topk leaves the order of ties open
    rest = log_probs.gather(-1, order[:, top_k:])
    tail = rest.logsumexp(-1) if top_k < num_classes else log_probs.new_full(log_probs.shape[:1], -torch.inf)
    label = order[:, :top_k]
    return Targets(label, log_probs.gather(-1, label), tail)


def encode(targets: Targets) -> Targets:
    """Rounds values and tail to the codebook.

    A record that rounding would move by more than `KL_BOUND` keeps its full precision, so the bound holds for every
    record. It does not happen at K = 10; from about K = 20 on it does, and the stored size grows.
    """
    value, tail = _round(targets.value), _round(targets.tail)
    rounded = Targets(targets.label, value, torch.where(targets.tail.isneginf(), targets.tail, tail))
    keep = rounding_kl(targets, rounded) > KL_BOUND
    return Targets(
        targets.label,
        torch.where(keep.unsqueeze(-1), targets.value, rounded.value),
        torch.where(keep, targets.tail, rounded.tail),
    )


def _round(log_p: Tensor) -> Tensor:
    level = (log_p / CODEBOOK_EXPONENT).exp().mul(CODEBOOK_LEVELS).round().clamp(1, CODEBOOK_LEVELS)
    # The levels come from a table so that equal levels are equal floats on every device.
    table = (torch.arange(CODEBOOK_LEVELS + 1, dtype=torch.float64) / CODEBOOK_LEVELS).log() * CODEBOOK_EXPONENT
    return table.float().to(log_p.device)[level.long()]


def rounding_kl(exact: Targets, stored: Targets) -> Tensor:
    """KL(exact || stored) over the K classes and the tail, both renormalised; float [B], in nats."""
    p, q = _log_masses(exact), _log_masses(stored)
    return (p.exp() * (p - q)).sum(-1).float()


def _log_masses(targets: Targets) -> Tensor:
    masses = torch.cat([targets.value, targets.tail.unsqueeze(-1)], -1).double().clamp_min(_LOG_ZERO)
    return masses.log_softmax(-1)


def densify(targets: Targets, num_classes: int) -> Tensor:
    """The full distribution that a stored target stands for: the tail spread evenly over the other classes.

    Returns:
        float32 [B, C], log-probabilities that sum to one.
    """
    rest = num_classes - targets.label.shape[-1]
    masses = _log_masses(targets).float()
    fill = masses[:, -1:] - float(torch.tensor(max(rest, 1)).log())
    return fill.repeat(1, num_classes).scatter(-1, targets.label, masses[:, :-1])


def sparse_kl(logits: Tensor, targets: Targets, temperature: float = 1.0) -> Tensor:
    """Distillation loss KL(teacher || student) per sample, without ever building the teacher's dense distribution.

    The teacher's tail is spread evenly over the classes outside of the top k (`densify`). At a temperature T both
    sides are softened, the teacher from its stored log-probabilities, and the loss is multiplied by T^2 (Hinton et
    al., 2015).

    Args:
        logits: student logits, float [B, C].
        targets: stored targets on the same device.
        temperature: T > 0; the paper uses 1.

    Returns:
        float32 [B], in nats, >= 0.
    """
    num_classes, top_k = logits.shape[-1], targets.label.shape[-1]
    rest = num_classes - top_k
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = targets.value.clamp_min(_LOG_ZERO) / temperature
    student_top = student.gather(-1, targets.label)
    if rest == 0:
        teacher = teacher.log_softmax(-1)
        return (teacher.exp() * (teacher - student_top)).sum(-1) * temperature**2
    spread = float(torch.tensor(rest).log())
    tail = (targets.tail.clamp_min(_LOG_ZERO) - spread) / temperature + spread
    masses = torch.cat([teacher, tail.unsqueeze(-1)], -1).log_softmax(-1)
    teacher, tail = masses[:, :-1], masses[:, -1]
    student_rest = (student.sum(-1) - student_top.sum(-1)) / rest
    loss = (teacher.exp() * (teacher - student_top)).sum(-1) + tail.exp() * (tail - spread - student_rest)
    return loss * temperature**2


def one_hot(labels: Tensor, top_k: int, num_classes: int) -> Targets:
    """Hard labels [B] as sparse targets: all mass on the label, the other K - 1 entries on other classes with none."""
    others = (labels.unsqueeze(-1) + torch.arange(top_k, device=labels.device)) % num_classes
    value = torch.full((labels.shape[0], top_k), _LOG_ZERO, device=labels.device)
    value[:, 0] = 0.0
    return Targets(others, value, torch.full(labels.shape, _LOG_ZERO, device=labels.device))


def check_stored(label: NDArray[Any], value: NDArray[Any], tail: NDArray[Any], num_classes: int) -> None:
    """Refuses stored targets that no teacher answered, before they reach a device, where an index ends the process.

    Args:
        label: classes [B, K].
        value: their log-probabilities [B, K].
        tail: log of the mass of all others [B].
        num_classes: C.

    Raises:
        ValueError: if a class is not in [0, C), or a log-probability is nan or more than 0.
    """
    remedy = "Find the damaged shard with recipes/inspect_dataset.py DATASET --verify True."
    if label.min() < 0 or label.max() >= num_classes:
        raise ValueError(
            f"The classes of stored targets must lie in 0 to {num_classes - 1}, not {label.min()} to {label.max()}. "
            f"{remedy}"
        )
    if not (value.max() <= _ROUNDING and tail.max() <= _ROUNDING):  # nan is not
        raise ValueError(
            f"The log-probabilities of stored targets must be at most 0, not {value.max()} with tails of up to "
            f"{tail.max()}. {remedy}"
        )
