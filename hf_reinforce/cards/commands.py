"""The commands of a dataset card: how to get what they need, and how to train a student on this data set."""

from collections.abc import Mapping

from hf_reinforce.cards.markdown import shell_word
from hf_reinforce.store.config import ReinforcementConfig

INSTALL = (
    "There is no release on a package index yet. Get a copy of its repository, which also has the recipes, and run "
    "`pip install .` there, or `make install` for an environment of its own in `.venv`."
)
"""How to get this package; a card is read by people who have never heard of it."""

RECIPES: Mapping[tuple[str, int], str] = {
    ("ILSVRC/imagenet-1k", 224): "imagenet_plus",
    ("uoft-cs/cifar100", 32): "cifar100_plus",
    ("ethz/food101", 224): "food101_plus",
    ("dpdl-benchmark/oxford_flowers102", 224): "flowers102_plus",
}
"""Folders of `recipes/` with the settings for a student, by source and side of the views in pixels."""

_SMALL_VIEW = 64  # pixels
_MANY_CLASSES = 1000
_LEAST_STEPS = 8  # of an epoch


def recipe(config: ReinforcementConfig) -> str | None:
    """The recipe that trains a student on such a data set, None where there is none."""
    folder = RECIPES.get((config.source.name or "", config.policy.image_size))
    return folder and f"recipes/{folder}/student.yaml"


def train_command(name: str, config_name: str, config: ReinforcementConfig, num_rows: int | None) -> str:
    """The command that trains a student: with the recipe for its source, else with settings after the paper's.

    Args:
        name: of the repository or folder.
        config_name: of the configuration.
        config: the configuration.
        num_rows: its images; None: not known.
    """
    data = f"--dataset_name {shell_word(name)} --dataset_config_name {shell_word(config_name)}"
    yaml = recipe(config)
    if yaml:
        lines = [f"accelerate launch recipes/train_kd.py {yaml}", data, "--output_dir outputs/student"]
    else:
        lines = ["accelerate launch recipes/train_kd.py --method reinforced", data, *_settings(config, num_rows)]
    return " \\\n    ".join(lines)


def _settings(config: ReinforcementConfig, num_rows: int | None) -> list[str]:
    """Network and optimisation: ImageNet's of the paper for many classes, else its CIFAR, Food and Flowers settings.

    The learning rate belongs to a batch of 256 and follows its size.
    """
    small, many = config.policy.image_size <= _SMALL_VIEW, config.num_classes >= _MANY_CLASSES
    model = "resnet10t" if small else "resnet50d" if many else "mobilenetv3_large_100"
    batch = 128 if small else 256
    while batch > 8 and num_rows is not None and batch * _LEAST_STEPS > num_rows:
        batch //= 2
    rate = (0.1 if many else 0.2) * batch / 256
    return [
        f"--model_name_or_path {model} --num_train_epochs 100 --per_device_train_batch_size {batch}",
        f"--timm_optimizer sgd --learning_rate {rate:g} --weight_decay {'1e-4' if many else '5e-4'}",
        "--lr_scheduler_type cosine --output_dir outputs/student",
    ]
