"""Dataset Reinforcement (Faghri et al., ICCV 2023) for the Hugging Face ecosystem."""

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
from hf_reinforce.version import __version__
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
