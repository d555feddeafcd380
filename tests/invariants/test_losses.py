"""The losses of twenty steps of each method, as they were when frozen."""

import json
from pathlib import Path

import pytest
import torch
from golden.make import source
from test_bytes import SIZE, Weighing
from tiny import reinforced_rows
from torch import nn
from transformers import TrainerCallback

from hf_reinforce import (
    AugmentationPolicy,
    AugmentedDataset,
    ImageSource,
    KDTrainer,
    KDTrainingArguments,
    ReinforcedDataset,
    load_teacher,
)
from hf_reinforce.models.preprocessing import Preprocessing

STEPS = 20
POLICY = AugmentationPolicy.from_dict(
    {
        "name": "everything",
        "operations": [
            {"random_crop": {"size": SIZE, "padding": 3}},
            "horizontal_flip",
            "rand_augment",
            "random_erasing",
            "mixup",
            "cutmix",
        ],
    }
)


class Losses(TrainerCallback):
    """Notes the loss of every step."""

    def __init__(self):
        self.found = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.found.append(logs["loss"])


@pytest.mark.parametrize("method", ["plain", "online", "reinforced"])
def test_losses(method, tmp_path):
    preprocessing = Preprocessing(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
    teacher = load_teacher(Weighing(), preprocessing=preprocessing)
    if method == "reinforced":
        rows, config = reinforced_rows(source(), teacher, POLICY, tmp_path, num_samples=3, top_k=3, seed=11)
        dataset = ReinforcedDataset(rows, config, source=source(), seed=5)
    else:
        dataset = AugmentedDataset(ImageSource.of(source()), POLICY, seed=5)
    torch.manual_seed(0)
    student = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(392, 5)
    )
    arguments = KDTrainingArguments(
        str(tmp_path / "out"),
        method=method,
        use_cpu=True,
        max_steps=STEPS,
        per_device_train_batch_size=5,
        learning_rate=0.05,
        temperature=2.0 if method != "plain" else 1.0,
        hard_label_weight=0.25 if method != "plain" else 0.0,
        label_smoothing_factor=0.1,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    losses = Losses()
    trainer = KDTrainer(student, arguments, dataset, None, teacher if method == "online" else None, preprocessing)
    trainer.add_callback(losses)
    trainer.train()
    frozen = json.loads((Path(__file__).parent / "losses.json").read_text())[method]
    assert len(losses.found) == STEPS
    assert losses.found == pytest.approx(frozen, rel=1e-4)
