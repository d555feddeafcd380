"""Dataset Reinforcement (Faghri et al., ICCV 2023) for the Hugging Face ecosystem.

Every public name is imported when it is first used, so `import hf_reinforce` itself loads no library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_reinforce.version import __version__

if TYPE_CHECKING:
    from hf_reinforce.config import ReinforcementConfig
    from hf_reinforce.dataset import ReinforcedDataset
    from hf_reinforce.generation import reinforce
    from hf_reinforce.hub import load_reinforced
    from hf_reinforce.policies import AugmentationPolicy, load_policy
    from hf_reinforce.publish import push_to_hub
    from hf_reinforce.reinforcer import Reinforcer
    from hf_reinforce.sources import ImageSource
    from hf_reinforce.streaming.stream import ReinforcedStream
    from hf_reinforce.teachers import Teacher, load_teacher
    from hf_reinforce.trainer import KDTrainer
    from hf_reinforce.training_arguments import KDTrainingArguments
    from hf_reinforce.views import AugmentedDataset

__all__ = [
    "AugmentationPolicy",
    "AugmentedDataset",
    "ImageSource",
    "KDTrainer",
    "KDTrainingArguments",
    "ReinforcedDataset",
    "ReinforcedStream",
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
    "AugmentationPolicy": "policies",
    "AugmentedDataset": "views",
    "ImageSource": "sources",
    "KDTrainer": "trainer",
    "KDTrainingArguments": "training_arguments",
    "ReinforcedDataset": "dataset",
    "ReinforcedStream": "streaming.stream",
    "ReinforcementConfig": "config",
    "Reinforcer": "reinforcer",
    "Teacher": "teachers",
    "load_policy": "policies",
    "load_reinforced": "hub",
    "load_teacher": "teachers",
    "push_to_hub": "publish",
    "reinforce": "generation",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
