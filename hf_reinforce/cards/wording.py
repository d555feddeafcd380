"""Policies in words, for cards."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from fractions import Fraction
from typing import Any

from hf_reinforce.policies import AugmentationPolicy


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _ratio(value: float) -> str:
    fraction = Fraction(value).limit_denominator(10)
    return str(fraction) if abs(float(fraction) - value) < 1e-6 else f"{value:g}"


def _chance(p: float) -> str:
    return "" if p == 1 else f", with probability {p:g}"


_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "resize": lambda o: f"resize the shorter side to {o['size']} pixels ({o['interpolation']})",
    "random_resized_crop": lambda o: (
        f"random crop of {_share(o['scale'][0])} to {_share(o['scale'][1])} of the area, aspect ratio "
        f"{_ratio(o['ratio'][0])} to {_ratio(o['ratio'][1])}, resized to {o['size']} x {o['size']} pixels "
        f"({o['interpolation']})"
    ),
    "random_crop": lambda o: (
        f"random crop of {o['size']} x {o['size']} pixels, padded with {o['padding']} black pixels"
    ),
    "center_crop": lambda o: f"central crop of {o['size']} x {o['size']} pixels",
    "horizontal_flip": lambda o: f"mirrored left to right{_chance(o['p'])}",
    "rand_augment": lambda o: f"RandAugment: {o['num_ops']} operations at magnitude {o['magnitude']}{_chance(o['p'])}",
    "random_erasing": lambda o: (
        f"RandomErasing: a box of {_share(o['scale'][0])} to {_share(o['scale'][1])} of the view becomes black"
        f"{_chance(o['p'])}"
    ),
    "mixup": lambda o: f"MixUp with another image, weight from Beta({o['alpha']:g}, {o['alpha']:g}){_chance(o['p'])}",
    "cutmix": lambda o: (
        f"CutMix: a box of another image, area from Beta({o['alpha']:g}, {o['alpha']:g}){_chance(o['p'])}"
    ),
}


def policy_steps(policy: AugmentationPolicy) -> list[str]:
    """The operations of a policy with their parameters, one phrase each, in the order of their application."""
    return [_WORDS.get(operation.name, _options)(asdict(operation)) for operation in policy.operations]


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())
