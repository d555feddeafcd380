"""Dataset Reinforcement (Faghri et al., ICCV 2023) for the Hugging Face ecosystem.

Every public name is imported when it is first used, so `import hf_reinforce` itself loads no library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_reinforce.version import __version__

if TYPE_CHECKING:
    from hf_reinforce.augmentations.policies import AugmentationPolicy, evaluation_policy, load_policy
    from hf_reinforce.cards.dataset_card import write_dataset_card
    from hf_reinforce.cards.inspection import inspect_dataset, verify_shards
    from hf_reinforce.cards.preview import write_preview
    from hf_reinforce.evaluation.evaluator import EvaluationSettings, evaluate_suite
    from hf_reinforce.evaluation.suites import SuiteEntry, load_suite
    from hf_reinforce.generation.reinforce import reinforce
    from hf_reinforce.generation.reinforcer import Reinforcer
    from hf_reinforce.hub.load import load_reinforced
    from hf_reinforce.hub.publish import push_to_hub
    from hf_reinforce.models.students import create_student
    from hf_reinforce.models.teachers import Teacher, load_teacher
    from hf_reinforce.replay.dataset import ReinforcedDataset
    from hf_reinforce.replay.sampler import EpochSampler, Readers
    from hf_reinforce.replay.views import AugmentedDataset
    from hf_reinforce.sources.image_source import ImageSource
    from hf_reinforce.sources.loading import load_source
    from hf_reinforce.store.config import ReinforcementConfig
    from hf_reinforce.training.arguments import KDTrainingArguments
    from hf_reinforce.training.trainer import KDTrainer
    from hf_reinforce.transfer.backbones import load_backbone
    from hf_reinforce.transfer.detector import Detector
    from hf_reinforce.transfer.segmenter import Segmenter

__all__ = [
    "AugmentationPolicy",
    "AugmentedDataset",
    "Detector",
    "EpochSampler",
    "EvaluationSettings",
    "ImageSource",
    "KDTrainer",
    "KDTrainingArguments",
    "Readers",
    "ReinforcedDataset",
    "ReinforcementConfig",
    "Reinforcer",
    "Segmenter",
    "SuiteEntry",
    "Teacher",
    "__version__",
    "create_student",
    "evaluate_suite",
    "evaluation_policy",
    "inspect_dataset",
    "load_backbone",
    "load_policy",
    "load_reinforced",
    "load_source",
    "load_suite",
    "load_teacher",
    "push_to_hub",
    "reinforce",
    "verify_shards",
    "write_dataset_card",
    "write_preview",
]

_MODULES = {
    "AugmentationPolicy": "augmentations.policies",
    "AugmentedDataset": "replay.views",
    "Detector": "transfer.detector",
    "EpochSampler": "replay.sampler",
    "EvaluationSettings": "evaluation.evaluator",
    "ImageSource": "sources.image_source",
    "KDTrainer": "training.trainer",
    "KDTrainingArguments": "training.arguments",
    "Readers": "replay.sampler",
    "ReinforcedDataset": "replay.dataset",
    "ReinforcementConfig": "store.config",
    "Reinforcer": "generation.reinforcer",
    "Segmenter": "transfer.segmenter",
    "SuiteEntry": "evaluation.suites",
    "Teacher": "models.teachers",
    "create_student": "models.students",
    "evaluate_suite": "evaluation.evaluator",
    "evaluation_policy": "augmentations.policies",
    "inspect_dataset": "cards.inspection",
    "load_backbone": "transfer.backbones",
    "load_policy": "augmentations.policies",
    "load_reinforced": "hub.load",
    "load_source": "sources.loading",
    "load_suite": "evaluation.suites",
    "load_teacher": "models.teachers",
    "push_to_hub": "hub.publish",
    "reinforce": "generation.reinforce",
    "verify_shards": "cards.inspection",
    "write_dataset_card": "cards.dataset_card",
    "write_preview": "cards.preview",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
