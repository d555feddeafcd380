"""The augmentations, by the name that a policy file uses. A new one is a new file and a line here."""

from hf_reinforce.augmentations.base import Augmentation, Crop, MixAugmentation, Params, ViewAugmentation
from hf_reinforce.augmentations.center_crop import CenterCrop
from hf_reinforce.augmentations.cutmix import CutMix
from hf_reinforce.augmentations.evaluation_view import EvaluationView
from hf_reinforce.augmentations.horizontal_flip import HorizontalFlip
from hf_reinforce.augmentations.mixup import MixUp
from hf_reinforce.augmentations.rand_augment import RandAugment
from hf_reinforce.augmentations.random_crop import RandomCrop
from hf_reinforce.augmentations.random_erasing import RandomErasing
from hf_reinforce.augmentations.random_resized_crop import RandomResizedCrop
from hf_reinforce.augmentations.resize import Resize

AUGMENTATIONS: dict[str, type[ViewAugmentation] | type[MixAugmentation]] = {
    "resize": Resize,
    "random_resized_crop": RandomResizedCrop,
    "random_crop": RandomCrop,
    "center_crop": CenterCrop,
    "horizontal_flip": HorizontalFlip,
    "rand_augment": RandAugment,
    "random_erasing": RandomErasing,
    "mixup": MixUp,
    "cutmix": CutMix,
}

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "CenterCrop",
    "Crop",
    "CutMix",
    "EvaluationView",
    "HorizontalFlip",
    "MixAugmentation",
    "MixUp",
    "Params",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "RandomResizedCrop",
    "Resize",
    "ViewAugmentation",
]
