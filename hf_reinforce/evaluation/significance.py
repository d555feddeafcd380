"""Intervals of metrics and of differences, over images or over seeds, and which differences are more than noise."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hf_reinforce.evaluation.bootstrap import HIGHER_IS_BETTER, LARGEST, LEVEL, METRICS, Array, spread

BETTER, WORSE, NOISE = "better", "worse", "within noise"
_NO_BIAS = np.zeros(len(METRICS))


@dataclass(frozen=True)
class Estimate:
    """A metric with the ends of its 95 % interval; of a group of seeds it is their mean."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Estimate):
    """A metric of one group minus that of the first.

    Attributes:
        p: probability of so large a difference by chance alone, two-sided.
        p_adjusted: the same after Holm's correction for all data sets and groups that were compared.
        verdict: `"better"`, `"worse"` or `"within noise"` (`p_adjusted` of 0.05 or more).
    """

    p: float
    p_adjusted: float
    verdict: str


class Sample:
    """What a group of runs scored on a data set, or on the mean over several.

    Args:
        runs: float64 [S, 6], the metrics of each run, in the order of `METRICS`.
        resamples: float64 [R, 6], the metrics of resampled images, mean over the runs.
        rows: data set -> checksums of the rows that the runs saw.
    """

    def __init__(self, runs: Array, resamples: Array, rows: dict[str, set[int]]) -> None:
        self.runs, self.resamples, self.rows = runs, resamples, rows
        self.mean: Array = runs.mean(0)

    @property
    def over(self) -> str:
        """What the intervals of `estimates` are over."""
        return f"{len(self.runs)} seeds" if len(self.runs) > 1 else "images"

    def estimates(self) -> dict[str, Estimate]:
        """Mean and interval of every metric: Student's t over several seeds, else the bootstrap over images."""
        if len(self.runs) > 1:
            freedom: float = len(self.runs) - 1
            error, above, below = np.sqrt(self._variance()), _NO_BIAS, _NO_BIAS
        else:
            freedom, (error, above, below) = np.inf, spread(self.mean, self.resamples)
        margin = stats.t.ppf((1 + LEVEL) / 2, freedom) * error
        low, high = np.maximum(self.mean - above - margin, 0), np.minimum(self.mean + below + margin, LARGEST)
        columns = zip(self.mean.tolist(), low.tolist(), high.tolist(), strict=True)
        return {metric: Estimate(*column) for metric, column in zip(METRICS, columns, strict=True)}

    def paired_with(self, other: "Sample") -> bool:
        """Whether all runs of both saw the same images."""
        return all(len(rows | other.rows[name]) == 1 for name, rows in self.rows.items())

    def difference(self, first: "Sample") -> tuple[dict[str, Difference], str]:
        """What this one has more than the first.

        Returns:
            The difference of every metric, with p not yet adjusted, and what the intervals are over.
        """
        value = self.mean - first.mean
        if len(first.runs) > 1 and len(self.runs) > 1:
            over, (error, freedom), above, below = "seeds", self._welch(first), _NO_BIAS, _NO_BIAS
        else:
            over = "paired images" if self.paired_with(first) else "images"
            error, above, below = spread(value, self.resamples - first.resamples)
            freedom = np.full(len(METRICS), np.inf)
        # Interval and p are of one distribution, so that what is significant has no interval that holds 0.
        margin = stats.t.ppf((1 + LEVEL) / 2, freedom) * error
        low, high = np.maximum(value - above - margin, -LARGEST), np.minimum(value + below + margin, LARGEST)
        from_zero = np.maximum(np.maximum(value - above, -value - below), 0)
        p = 2 * stats.t.sf(from_zero / np.where(error > 0, error, 1), freedom)
        p = np.where(error > 0, p, value == 0)  # without any spread, every difference is one
        columns = zip(value.tolist(), low.tolist(), high.tolist(), p.tolist(), strict=True)
        differences = (Difference(*column, p_adjusted=column[-1], verdict=NOISE) for column in columns)
        return dict(zip(METRICS, differences, strict=True)), over

    def _variance(self) -> Array:
        """Of the mean over the seeds."""
        return np.asarray(self.runs.var(0, ddof=1) / len(self.runs))

    def _welch(self, first: "Sample") -> tuple[Array, Array]:
        """Standard error and degrees of freedom of the difference of two means over seeds."""
        ours, theirs = self._variance(), first._variance()
        parts = ours**2 / (len(self.runs) - 1) + theirs**2 / (len(first.runs) - 1)
        freedom = np.where(parts > 0, (ours + theirs) ** 2 / np.where(parts > 0, parts, 1), 1)
        return np.sqrt(ours + theirs), freedom


def judge(differences: Sequence[dict[str, Difference]]) -> None:
    """Fills in `p_adjusted` and `verdict`, in place, with Holm's correction (1979) for each metric by itself.

    Args:
        differences: of every data set and group that were looked at together.
    """
    for metric in METRICS:
        largest = 0.0
        for rank, by_metric in enumerate(sorted(differences, key=lambda by_metric: by_metric[metric].p)):
            found = by_metric[metric]
            largest = max(largest, min(1.0, found.p * (len(differences) - rank)))
            up = (found.value > 0) == (metric in HIGHER_IS_BETTER)
            verdict = NOISE if largest >= 1 - LEVEL else BETTER if up else WORSE
            by_metric[metric] = dataclasses.replace(found, p_adjusted=largest, verdict=verdict)
