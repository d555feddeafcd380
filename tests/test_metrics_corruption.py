"""Corruption errors against the published figures and against NumPy, and their bad input."""

import math

import numpy as np
import pytest

from hf_reinforce.metrics import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    mean_corruption_error,
    relative_mean_corruption_error,
)

# Mean errors of AlexNet that every implementation of ImageNet-C divides by.
PUBLISHED = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
# ResNet-50 in the paper: corruption errors in percent, in the order above; clean error 23.9, mCE 76.7, relative 105.0.
RESNET50 = (80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77)


def make_errors(seed=0):
    generator = np.random.default_rng(seed)
    return {name: np.sort(generator.uniform(0.3, 1.0, 5)).tolist() for name in ALEXNET_ERRORS}


def test_the_table_has_the_published_means():
    means = {name: sum(errors) / 5 for name, errors in ALEXNET_ERRORS.items()}
    assert means == pytest.approx(PUBLISHED, abs=1e-9)


def test_the_baseline_itself_is_one():
    assert mean_corruption_error(ALEXNET_ERRORS) == pytest.approx(1.0)
    assert relative_mean_corruption_error(ALEXNET_ERRORS, ALEXNET_CLEAN_ERROR) == pytest.approx(1.0)


def test_agrees_with_the_paper():
    # The paper rounds each corruption error to a percent, so its means are met within half a percent.
    errors = {name: [share / 100 * PUBLISHED[name]] * 5 for name, share in zip(PUBLISHED, RESNET50, strict=True)}
    assert mean_corruption_error(errors) == pytest.approx(0.767, abs=0.005)
    assert relative_mean_corruption_error(errors, 0.239) == pytest.approx(1.050, abs=0.005)


def test_agrees_with_numpy():
    errors, baseline = make_errors(0), make_errors(1)
    own, base = (np.array([table[name] for name in errors]) for table in (errors, baseline))
    ratios = own.sum(1) / base.sum(1)
    assert mean_corruption_error(errors, baseline) == pytest.approx(ratios.mean())
    relative = (own - 0.2).sum(1) / (base - 0.25).sum(1)
    assert relative_mean_corruption_error(errors, 0.2, baseline, 0.25) == pytest.approx(relative.mean())


def test_some_corruptions_are_enough():
    errors = {name: own for name, own in make_errors().items() if name in ("fog", "snow")}
    ratios = [sum(own) / sum(ALEXNET_ERRORS[name]) for name, own in errors.items()]
    assert mean_corruption_error(errors) == pytest.approx(sum(ratios) / 2)


def test_one_severity_with_a_baseline_of_one():
    assert mean_corruption_error({"fog": [0.25]}, {"fog": [0.5], "snow": [0.1]}) == 0.5


def test_a_corruption_may_do_no_harm_to_the_model():
    assert relative_mean_corruption_error({"fog": [0.2] * 5}, 0.2) == 0.0


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ({}, r"no corruption errors; pass \{corruption"),
        ({"fog": [0.5] * 5, "rain": [0.5] * 5}, r"no errors of \['rain'\]; it has .*Leave these corruptions out"),
        ({"fog": [0.5] * 4}, r"'fog' has errors at 4 severities, and the baseline at 5; measure every severity"),
        ({"fog": [50.0] * 5}, r"shares of wrong predictions from 0 to 1, .*Divide percentages by 100"),
        ({"fog": [0.5] * 4 + [math.nan]}, r"'fog' are shares .*nan"),
        ({"fog": [-0.1] * 5}, r"'fog' are shares"),
    ],
)
def test_refuses_what_is_no_table_of_errors(errors, message):
    for metric in (mean_corruption_error, lambda errors: relative_mean_corruption_error(errors, 0.2)):
        with pytest.raises(ValueError, match=message):
            metric(errors)


def test_refuses_a_baseline_that_nothing_is_relative_to():
    with pytest.raises(ValueError, match=r"no worse under \['fog'\] than on clean images, whose error is 0.6"):
        relative_mean_corruption_error({"fog": [0.5]}, 0.2, {"fog": [0.6]}, 0.6)
    with pytest.raises(ValueError, match=r"the baseline's are not all 0"):
        mean_corruption_error({"fog": [0.5]}, {"fog": [0.0]})
    with pytest.raises(ValueError, match=r"clean error of the model is 20; pass a share"):
        relative_mean_corruption_error({"fog": [0.5] * 5}, 20)
    with pytest.raises(ValueError, match=r"clean error of the baseline is -1; pass a share"):
        relative_mean_corruption_error({"fog": [0.5]}, 0.2, {"fog": [0.6]}, -1)
