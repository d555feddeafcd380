"""Dataset Reinforcement (Faghri et al., ICCV 2023) for the Hugging Face ecosystem.

Every public name is imported when it is first used, so `import hf_reinforce` itself loads no library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_reinforce.version import __version__

if TYPE_CHECKING:
    from hf_reinforce.augmentations.policies import AugmentationPolicy, load_policy
    from hf_reinforce.generation.reinforce import reinforce
    from hf_reinforce.generation.reinforcer import Reinforcer
    from hf_reinforce.hub.load import load_reinforced
    from hf_reinforce.hub.publish import push_to_hub
    from hf_reinforce.models.teachers import Teacher, load_teacher
    from hf_reinforce.replay.dataset import ReinforcedDataset
    from hf_reinforce.replay.sampler import EpochSampler, Readers
    from hf_reinforce.replay.views import AugmentedDataset
    from hf_reinforce.sources.image_source import ImageSource
    from hf_reinforce.store.config import ReinforcementConfig
    from hf_reinforce.training.arguments import KDTrainingArguments
    from hf_reinforce.training.trainer import KDTrainer

__all__ = [
    "AugmentationPolicy",
    "AugmentedDataset",
    "EpochSampler",
    "ImageSource",
    "KDTrainer",
    "KDTrainingArguments",
    "Readers",
    "ReinforcedDataset",
    "ReinforcementConfig",
    "Reinforcer",
    "Teacher",
    "__version__",
    "load_policy",
    "load_reinforced",
    "load_teacher",
    "push_to_hub",
    "reinforce",
]

_MODULES = {
    "AugmentationPolicy": "augmentations.policies",
    "AugmentedDataset": "replay.views",
    "EpochSampler": "replay.sampler",
    "ImageSource": "sources.image_source",
    "KDTrainer": "training.trainer",
    "KDTrainingArguments": "training.arguments",
    "Readers": "replay.sampler",
    "ReinforcedDataset": "replay.dataset",
    "ReinforcementConfig": "store.config",
    "Reinforcer": "generation.reinforcer",
    "Teacher": "models.teachers",
    "load_policy": "augmentations.policies",
    "load_reinforced": "hub.load",
    "load_teacher": "models.teachers",
    "push_to_hub": "hub.publish",
    "reinforce": "generation.reinforce",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
