"""Robustness to corruptions: corruption errors relative to those of a baseline (Hendrycks and Dietterich, ICLR 2019).

Errors are shares of wrong predictions: corruption -> [error at severity 1, at severity 2, ...]. The results are ratios
to the baseline: 1 is as good as the baseline, lower is better. The paper writes them in percent.
"""

import math
from collections.abc import Mapping, Sequence

Errors = Mapping[str, Sequence[float]]

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

    Figures compare only where they are over the same corruptions.

    Args:
        errors: of the model, in [0, 1].
        baseline: of the baseline, with as many severities.

    Raises:
        ValueError: for errors that are none, a corruption that the baseline lacks, or other severities.
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
        errors: of the model, in [0, 1].
        clean_error: of the model on the same images without corruption, in [0, 1].
        baseline: of the baseline, with as many severities.
        baseline_clean: of the baseline on clean images, in [0, 1].

    Raises:
        ValueError: as `mean_corruption_error`, and if a corruption does no harm to the baseline.
    """
    _check(errors, baseline)
    for owner, error in (("the model", clean_error), ("the baseline", baseline_clean)):
        if not 0 <= error <= 1:
            raise ValueError(f"The clean error of {owner} is {error}; pass a share of wrong predictions from 0 to 1.")
    added = {name: sum(baseline[name]) - len(baseline[name]) * baseline_clean for name in errors}
    harmless = [name for name, more in added.items() if more <= 0]
    if harmless:
        raise ValueError(
            f"The baseline is no worse under {harmless} than on clean images, whose error is {baseline_clean}, so "
            "nothing is relative to it; pass the baseline's own clean error, or leave these corruptions out."
        )
    return sum((sum(own) - len(own) * clean_error) / added[name] for name, own in errors.items()) / len(errors)


def _check(errors: Errors, baseline: Errors) -> None:
    if not errors:
        raise ValueError("There are no corruption errors; pass {corruption: [error at severity 1, ...]}.")
    unknown = sorted(set(errors) - set(baseline))
    if unknown:
        raise ValueError(
            f"The baseline has no errors of {unknown}; it has {sorted(baseline)}. Leave these corruptions out, or "
            "pass a baseline that has them."
        )
    for name, own in errors.items():
        if len(own) != len(baseline[name]):
            raise ValueError(
                f"{name!r} has errors at {len(own)} severities, and the baseline at {len(baseline[name])}; measure "
                "every severity of the baseline, in its order."
            )
        wrong = [error for error in (*own, *baseline[name]) if math.isnan(error) or not 0 <= error <= 1]
        if wrong or not sum(baseline[name]):
            raise ValueError(
                f"Errors of {name!r} are shares of wrong predictions from 0 to 1, and the baseline's are not all 0; "
                f"found {list(own)} and {list(baseline[name])}. Divide percentages by 100."
            )
