"""Accuracy, calibration and robustness of a classifier.

`score` turns the logits of a batch into `Predictions`, a few numbers for each image, and `measure` turns predictions
into figures. Log-probabilities are logits too, so an ensemble is scored by the logarithm of its mean probabilities.

Robustness to corruptions is that of Hendrycks and Dietterich (ICLR 2019): the share of wrong predictions under each
corruption and severity, relative to that of a baseline. 1 is as good as the baseline, lower is better.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from pyarrow import parquet
from torch import Tensor
from torch.nn import functional as F

NUM_BINS = 15

Array = NDArray[np.float64]
Errors = Mapping[str, Sequence[float]]

_COLUMNS = {
    "row": np.int64,
    "label": np.int64,
    "prediction": np.int64,
    "confidence": np.float32,
    "nll": np.float32,
    "brier": np.float32,
    "correct_top5": np.bool_,
}
_WEIGHTS_AT_ONCE = 5_000_000  # of the bootstrap, 8 bytes each


@dataclass(frozen=True)
class Predictions:
    """The scores of N images of one dataset; logits are not kept."""

    row: NDArray[np.int64]  # of each image in its dataset
    label: NDArray[np.int64]  # the right class; of several, the one that the model finds most probable
    prediction: NDArray[np.int64]  # the class with the largest logit; the lowest of several
    confidence: NDArray[np.floating]  # probability of the prediction, in [1 / C, 1]
    nll: NDArray[np.floating]  # negative log-likelihood of the label in nats
    brier: NDArray[np.floating]  # sum of (probability - one-hot label)^2 over the classes (Brier, 1950), in [0, 2]
    correct_top5: NDArray[np.bool_]  # whether the label is among the five most probable classes

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is right, bool [N]."""
        return np.equal(self.label, self.prediction)

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def concatenate(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """The predictions of one or more batches as one."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS})

    def select(self, places: NDArray[np.int64]) -> "Predictions":
        """The predictions at some places, in their order."""
        return Predictions(**{name: getattr(self, name)[places] for name in _COLUMNS})

    def save(self, path: str | Path) -> None:
        """Writes a Parquet file, and the folders that lead to it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        columns = {name: pa.array(getattr(self, name).astype(dtype)) for name, dtype in _COLUMNS.items()}
        parquet.write_table(pa.table(columns), path, compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> "Predictions":
        """Reads what `save` wrote."""
        try:
            table = parquet.read_table(path)
            return cls(**{name: table[name].to_numpy().astype(dtype) for name, dtype in _COLUMNS.items()})
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise ValueError(
                f"{path} holds no predictions ({error}); write them anew with recipes/evaluate.py --output_dir."
            ) from error


def score(logits: Tensor, labels: Tensor, row: NDArray[np.int64] | None = None) -> Predictions:
    """Scores each image of a batch.

    Of equal logits the lower class counts as the larger, so the answer does not depend on the device.

    Args:
        logits: float [B, C] on any device, before or after a log-softmax. Half precision is computed in float32.
        labels: integers [B], in [0, C), on any device.
        row: rows of the images, default their places in the batch.
    """
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    shapes_fit = logits.ndim == 2 and logits.shape[1] > 0 and labels.shape == logits.shape[:1]
    if not (shapes_fit and integers and logits.is_floating_point()):
        raise ValueError(
            f"Expected floating-point logits [B, C] and integer labels [B], found {logits.dtype} "
            f"{list(logits.shape)} and {labels.dtype} {list(labels.shape)}; pass a row of scores and a class index "
            "for each image."
        )
    logits = logits.detach() if logits.dtype == torch.float64 else logits.detach().float()
    labels = labels.to(logits.device, torch.int64)
    largest, prediction = logits.max(-1)
    # nan and infinity show in the extremes, which are much faster to find than isfinite of everything.
    finite = largest.isfinite() & logits.amin(-1).isfinite()
    inside = (labels >= 0) & (labels < logits.shape[1])
    if not (finite & inside).all():
        row_of = int((~finite | ~inside).int().argmax())
        if not finite[row_of]:
            raise ValueError(
                f"Expected finite logits, found nan or infinity in row {row_of}; check the weights, or evaluate in "
                "float32 or bfloat16 if float16 overflows."
            )
        raise ValueError(
            f"Expected labels from 0 to {logits.shape[1] - 1}, one for each logit, found {int(labels[row_of])} in row "
            f"{row_of}; check that dataset and model name the same classes."
        )
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


def mean(values: ArrayLike, weights: Array) -> Array:
    """Weighted mean of values [N]; float64 [...] for weights [..., N]."""
    found: Array = weights @ np.asarray(values, np.float64) / weights.sum(-1)
    return found


def expected_calibration_error(predictions: Predictions, weights: Array, num_bins: int = NUM_BINS) -> Array:
    """Mean over images of |accuracy - confidence| of their bin (Guo et al., ICML 2017), float64 [...] in [0, 1], for
    weights [..., N]. Of M bins of equal width, bin m holds confidences in (m / M, (m + 1) / M]."""
    by_bin = np.zeros((len(predictions), num_bins))
    by_bin[np.arange(len(predictions)), _bins(predictions, num_bins)] = _excess(predictions)
    found: Array = np.abs(weights @ by_bin).sum(-1) / weights.sum(-1)
    return found


def adaptive_calibration_error(predictions: Predictions, weights: Array, num_bins: int = NUM_BINS) -> Array:
    """The calibration error over bins of equal mass (Nguyen and O'Connor, EMNLP 2015), in [0, 1].

    The images, sorted by confidence, are cut into groups whose sizes differ by at most one, larger ones first, as
    `numpy.array_split` does it. Images of equal confidence that a cut divides are shared out in proportion, so the
    order of the images does not matter.
    """
    order = np.argsort(predictions.confidence, kind="stable")
    excess = _excess(predictions)[order]
    ends = np.append(np.flatnonzero(np.diff(predictions.confidence[order])), len(order) - 1)  # of equal confidences
    size, larger = divmod(len(order), num_bins)
    cuts = np.arange(num_bins + 1) * size + np.minimum(np.arange(num_bins + 1), larger)

    def error(own: Array) -> float:
        mass = np.append(0.0, np.cumsum(own[order])[ends])
        summed = np.append(0.0, np.cumsum(own[order] * excess)[ends])
        gaps = np.diff(np.interp(cuts * (mass[-1] / len(order)), mass, summed))
        return float(np.abs(gaps).sum() / mass[-1])

    return np.apply_along_axis(error, -1, weights)


def _excess(predictions: Predictions) -> Array:
    """Confidence minus correctness of each image, [N]."""
    return predictions.confidence.astype(np.float64) - predictions.correct


def _bins(predictions: Predictions, num_bins: int) -> NDArray[np.int64]:
    # The edges have the precision of the confidences, so that a float32 1/3 lies on the edge 5/15 and not above it.
    precision = predictions.confidence.dtype.type
    return np.searchsorted(np.arange(1, num_bins, dtype=precision) / precision(num_bins), predictions.confidence)


@dataclass(frozen=True)
class Metric:
    """A figure of a classifier: a function of predictions of N images and weights float64 [..., N] that returns
    float64 [...], between 0 and `largest`; and the heading of its column in tables."""

    function: Callable[[Predictions, Array], Array]
    heading: str
    largest: float = 1.0
    higher_is_better: bool = False


METRICS: dict[str, Metric] = {
    "accuracy": Metric(lambda found, weights: mean(found.correct, weights), "top-1 (%)", higher_is_better=True),
    "accuracy_top5": Metric(
        lambda found, weights: mean(found.correct_top5, weights), "top-5 (%)", higher_is_better=True
    ),
    "nll": Metric(lambda found, weights: mean(found.nll, weights), "NLL", np.inf),
    "brier": Metric(lambda found, weights: mean(found.brier, weights), "Brier", 2.0),
    "ece": Metric(expected_calibration_error, "ECE"),
    "ece_adaptive": Metric(adaptive_calibration_error, "adaptive ECE"),
}
"""Metrics by name. A function and a line here add one; the Trainer, the evaluation, its report, the bootstrap and
recipes/compare.py measure whatever stands here."""


def measure(predictions: Predictions, weights: Array | None = None) -> dict[str, float]:
    """The metrics of a dataset: `accuracy`, `accuracy_top5` (top min(5, C)), `ece` and `ece_adaptive` in [0, 1], `nll`
    in nats, `brier` in [0, 2]; and whatever else `METRICS` has.

    `weights`, float64 [N], say how much each image counts; None: all the same.
    """
    if not len(predictions):
        raise ValueError("Metrics need at least one image, and there is none; name a dataset or a split with rows.")
    weights = np.ones(len(predictions)) if weights is None else weights
    return {name: float(metric.function(predictions, weights)) for name, metric in METRICS.items()}


def resample(predictions: Predictions, num_resamples: int, seed: int) -> Array:
    """Bootstrap: the metrics had other images of the same kind been drawn, float64 [num_resamples, len(METRICS)].

    Which images a resample holds depends on the seed and on the rows alone, so the resamples of two models that saw
    the same images are pairs, and so are those of an image's corruptions.
    """
    size, found = len(predictions), []
    rng = np.random.default_rng([seed, checksum(predictions.row)])
    at_once = max(1, _WEIGHTS_AT_ONCE // size)
    for start in range(0, num_resamples, at_once):
        # The weight of an image is how often it was drawn.
        drawn = (rng.integers(0, size, size) for _ in range(min(at_once, num_resamples - start)))
        weights = np.array([np.bincount(places, minlength=size) for places in drawn], np.float64)
        found.append(np.column_stack([metric.function(predictions, weights) for metric in METRICS.values()]))
    return np.concatenate(found)


def checksum(rows: NDArray[np.int64]) -> int:
    """A number of 32 bits that is the same for the same rows in the same order."""
    return zlib.crc32(rows.astype("<i8").tobytes())


@dataclass(frozen=True)
class ReliabilityDiagram:
    """Mean confidence, share of right predictions (both in [0, 1], None for an empty bin) and number of images in each
    of M bins of the top-1 confidence."""

    confidence: list[float | None]
    accuracy: list[float | None]
    count: list[int]


def reliability(predictions: Predictions, num_bins: int = NUM_BINS) -> ReliabilityDiagram:
    """The reliability diagram of predictions, with the bins of `expected_calibration_error`."""
    bins = _bins(predictions, num_bins)
    return ReliabilityDiagram(
        group_means(predictions.confidence, bins, num_bins),
        group_means(predictions.correct, bins, num_bins),
        np.bincount(bins, minlength=num_bins).tolist(),
    )


def group_means(values: ArrayLike, groups: NDArray[np.int64], num_groups: int) -> list[float | None]:
    """The mean of the values [N] of each group, given the group of each value in [0, num_groups); None for a group
    without any."""
    count = np.bincount(groups, minlength=num_groups)
    total = np.bincount(groups, np.asarray(values, np.float64), minlength=num_groups)
    return [float(own / size) if size else None for own, size in zip(total, count, strict=True)]


ALEXNET_CLEAN_ERROR = 0.435
"""Top-1 error of AlexNet on the ImageNet validation set, from the first table of the paper."""

ALEXNET_ERRORS: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
"""Top-1 errors of AlexNet on ImageNet-C by severity.

Their means are the published ones (https://github.com/hendrycks/robustness, `ImageNet-C/test.py`).
"""


def mean_corruption_error(errors: Errors, baseline: Errors = ALEXNET_ERRORS) -> float:
    """Mean over the corruptions of the error over all severities, relative to the baseline's ("mCE").

    Figures compare only where they are over the same corruptions. Arguments and errors as
    `relative_mean_corruption_error`.
    """
    return relative_mean_corruption_error(errors, 0.0, baseline, 0.0)


def relative_mean_corruption_error(
    errors: Errors,
    clean_error: float,
    baseline: Errors = ALEXNET_ERRORS,
    baseline_clean: float = ALEXNET_CLEAN_ERROR,
) -> float:
    """Mean of what each corruption adds to the error on clean images, relative to the baseline's ("relative mCE").

    Args:
        errors: of the model under each corruption at each severity, in [0, 1].
        clean_error: of the model on the same images without corruption.
        baseline: of the baseline, with as many severities.
        baseline_clean: of the baseline on clean images.

    Raises:
        ValueError: for errors that are none, a corruption that the baseline lacks or that does it no harm, or other
            severities.
    """
    if not errors:
        raise ValueError("There are no corruption errors; pass {corruption: [error at severity 1, ...]}.")
    ratios = []
    for name, own in errors.items():
        base = baseline.get(name, ())
        known = all(0 <= error <= 1 for error in (*own, *base, clean_error, baseline_clean))
        if not known or len(own) != len(base):
            raise ValueError(
                f"Expected errors from 0 to 1 of {name!r} at the severities of the baseline, and of clean images; "
                f"found {list(own)} and {clean_error}, of the baseline {list(base)} and {baseline_clean}. Divide "
                "percentages by 100, and leave out corruptions that the baseline lacks."
            )
        added = sum(base) - len(base) * baseline_clean
        if added <= 0:
            raise ValueError(
                f"The baseline is no worse under {name!r} than on clean images, whose error is {baseline_clean}; pass "
                "its own clean error, or leave this corruption out."
            )
        ratios.append((sum(own) - len(own) * clean_error) / added)
    return sum(ratios) / len(ratios)
