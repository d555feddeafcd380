"""Training steps: a student taught by stored targets, by labels, or by a teacher at every step."""

import statistics
import time
from itertools import pairwise
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from benchmarks.generation import random_teacher
from benchmarks.measure import Measure, Row, Settings, faster, interleave
from benchmarks.records import both_formats
from hf_reinforce import AugmentedDataset, ImageSource, KDTrainer, KDTrainingArguments, load_reinforced
from hf_reinforce.models.students import create_student

STUDENT, BATCH_SIZE, WARM_UP = "mobilenetv3_small_100", 64, 2


class StepClock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def median(self) -> float:
        """Median step after the first ones, in ms."""
        ends = self.ends[WARM_UP:]
        return statistics.median(b - a for a, b in pairwise(ends)) * 1e3


class ReadyBatches(KDTrainer):
    """A trainer whose batches are there: what remains is the step."""

    def get_train_dataloader(self) -> Any:
        dataset: Any = self.train_dataset
        size = min(BATCH_SIZE, len(dataset))
        batch = dataset.collate(dataset.__getitems__(list(range(size))))
        device = self.args.device
        ready = {name: value.to(device) for name, value in batch.items()}
        return torch.utils.data.DataLoader([ready] * self.args.max_steps, batch_size=None)


def step(settings: Settings, dataset: Any, method: str, steps: int, ready: bool, teacher: Any = None) -> Measure:
    """Measures a step of `KDTrainer`, in ms: of a new training of the same student with the same settings."""

    def measure() -> float:
        torch.manual_seed(0)
        student = create_student(settings.pick(STUDENT, "test_resnet"), 1000, settings.image_size)
        args = KDTrainingArguments(
            output_dir=str(settings.cache / "training"),
            method=method,
            max_steps=steps,
            per_device_train_batch_size=min(BATCH_SIZE, len(dataset)),
            dataloader_num_workers=0 if ready else settings.workers,
            dataloader_persistent_workers=not ready,
            timm_optimizer="sgd",
            learning_rate=0.05,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=settings.device == "cpu",
        )
        clock = StepClock()
        kind = ReadyBatches if ready else KDTrainer
        trainer = kind(student, args, train_dataset=dataset, teacher=teacher, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return clock.median()

    return measure


def _datasets(settings: Settings) -> tuple[Any, Any]:
    """The photos with stored targets, and with labels under the same policy."""
    ours, _ = both_formats(settings, "randaug", settings.pick(400, 3))
    reinforced = load_reinforced(str(ours), "randaug", source=settings.photos)
    return reinforced, AugmentedDataset(ImageSource.of(settings.photos), reinforced.policy)


def training_step(settings: Settings) -> list[Row]:
    """A `KDTrainer` step with stored targets, against the same trainer with labels. Medians in ms a step.

    Both draw from the same policy, `randaug`, with the same loader settings; the step on ready batches leaves the
    loader out.
    """
    reinforced, plain = _datasets(settings)
    rows = []
    for ready, name in ((False, "training step"), (True, "training step, ready batches")):
        steps = settings.pick(8, WARM_UP + 2)
        variants = {
            "reinforced": step(settings, reinforced, "reinforced", steps, ready),
            "plain": step(settings, plain, "plain", steps, ready),
        }
        medians = interleave(variants, settings.pick(5, 1))
        ratio = medians["reinforced"] / medians["plain"]
        rows.append(Row(f"{name}, {STUDENT}", "cross-entropy with labels", ratio, 1.02, medians, at_most=True))
    return rows


def online_step(settings: Settings) -> list[Row]:
    """A step of online distillation, the teacher in it, against one with stored targets, on ready batches, in ms."""
    reinforced, plain = _datasets(settings)
    steps, targets = settings.pick(6, WARM_UP + 2), {"efficientnet_b0": 3.5, "resnet50": 7.0}
    variants = {"reinforced": step(settings, reinforced, "reinforced", steps, True)}
    for name in targets:
        teacher = random_teacher(settings.pick(name, "test_resnet"), settings)
        variants[f"online, {name}"] = step(settings, plain, "online", steps, True, teacher)
    medians, against = interleave(variants, settings.pick(3, 1)), "a reinforced step"
    return [
        faster(f"online distillation with {name}", against, medians, "reinforced", target, other=f"online, {name}")
        for name, target in targets.items()
    ]
