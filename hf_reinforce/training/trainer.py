"""`KDTrainer`: transformers' Trainer with distillation from stored targets, from an online teacher, or none.

The three methods draw from the same augmentation policy and differ in one flag, so they can be compared.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import EvalPrediction, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_reinforce.metrics import Predictions, measure, score
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.models.students import (
    check_fit,
    image_processor,
    record_preprocessing,
    saved_weights,
    student_logits,
    student_preprocessing,
)
from hf_reinforce.models.teachers import Teacher
from hf_reinforce.replay.views import AugmentedDataset, mixed_views
from hf_reinforce.training.arguments import KDTrainingArguments
from hf_reinforce.training.checkpoints import TrainingTime
from hf_reinforce.training.resumable import ResumableTrainer

EMA_FILE = "ema.safetensors"


class KDTrainer(ResumableTrainer):
    """transformers' Trainer for a student that learns from stored targets, from an online teacher, or from labels.

    Args:
        model: the student: a transformers classifier, or a module that maps images [B, 3, S, S] to logits [B, C].
        args: see `KDTrainingArguments`.
        train_dataset: a `ReinforcedDataset`, or an `AugmentedDataset` for `plain` and `online`.
        eval_dataset: an `AugmentedDataset` with `evaluation_policy`.
        teacher: for `method="online"`; its classes are brought into the order of the dataset's, by name.
        preprocessing: the student's normalisation and input size, default its own at the size of the views.
        kwargs: as `transformers.Trainer`.

    Raises:
        TypeError: for a dataset of another kind.
        ValueError: if the method lacks its teacher, its targets or its labels, or a label that it needs is no class;
            if the student, the teacher and the datasets do not fit each other, see `students.check_fit`; or if the
            teacher has other weights in another process.

    Example:
        from hf_reinforce import KDTrainer, KDTrainingArguments, create_student, load_reinforced

        dataset = load_reinforced("outputs/cifar100-plus", "small_randaug")
        names = dataset.config.class_names
        student = create_student("cifar_resnet20", num_labels=len(names), image_size=32, class_names=names)
        args = KDTrainingArguments(output_dir="outputs/student", max_steps=2, timm_optimizer="sgd", learning_rate=0.1)
        trainer = KDTrainer(student, args, train_dataset=dataset)
        trainer.train()
        trainer.save_model()
    """

    loss_is_scaled_for_ga = False
    processing_class: Any
    compute_metrics: Any

    def __init__(
        self,
        model: nn.Module,
        args: KDTrainingArguments,
        train_dataset: AugmentedDataset | None = None,
        eval_dataset: AugmentedDataset | None = None,
        teacher: Teacher | None = None,
        preprocessing: Preprocessing | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, KDTrainingArguments):
            raise TypeError(f"args must be KDTrainingArguments, not a {type(args).__name__}.")
        if args.method == "online" and teacher is None:
            raise ValueError('method="online" needs a teacher; pass teacher= (--teacher_name_or_path).')
        _check_dataset("train_dataset", train_dataset, args.method == "plain" or args.hard_label_weight > 0)
        _check_dataset("eval_dataset", eval_dataset, True)
        if teacher is not None:
            names = getattr(getattr(train_dataset, "source", None), "class_names", None)
            teacher = teacher if teacher.fitted else teacher.with_classes(names)
            teacher.check_processes()
        repeats, batch = args.repeated_augmentation, args.per_device_train_batch_size
        if repeats > 1 and batch % repeats:
            raise ValueError(
                f"repeated_augmentation={repeats} needs a batch size that it divides, not {batch}; choose another "
                "(--per_device_train_batch_size)."
            )
        check_fit(model, train_dataset, eval_dataset, teacher, preprocessing)
        if args.cache_images and train_dataset is not None:
            train_dataset.cache_images()
        # Trainer looks for `model.config` when labels are smoothed, which a plain module need not have.
        smoothing, args.label_smoothing_factor = args.label_smoothing_factor, 0.0
        kwargs["compute_metrics"] = kwargs.get("compute_metrics") or _RunningMetrics()
        kwargs |= {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        super().__init__(model.to(memory_format=torch.channels_last), args, **kwargs)
        args.label_smoothing_factor = smoothing
        self.model_accepts_loss_kwargs = False
        self._preprocessing = preprocessing
        if preprocessing is not None:  # what cannot be saved is noticed before it is trained
            record_preprocessing(model, preprocessing)
            image_processor(model)
        self.add_callback(TrainingTime())
        self.teacher = None if teacher is None else teacher.to(args.device)
        self._online_target = None if teacher is None else teacher.target()
        self.ema = WeightAverage(model, args.ema_decay) if args.ema_decay else None
        if self.ema is not None:
            self.add_callback(self.ema)

    def _logits(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Any]:
        logits, outputs = student_logits(model, self.accelerator.unwrap_model(model), images, self._preprocessing)
        return logits, outputs

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The method's loss on one batch, a mean over its samples."""
        images = mixed_views(self.train_dataset.policy, inputs)
        logits, outputs = self._logits(model, images)
        if self.args.method == "plain":
            loss = self._label_loss(logits, inputs)
        else:
            loss, weight = self._distillation_loss(logits, images, inputs), self.args.hard_label_weight
            if weight:
                loss = (1 - weight) * loss + weight * self._label_loss(logits, inputs)
        return (loss.mean(), outputs) if return_outputs else loss.mean()

    def _label_loss(self, logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        if "labels" not in inputs:
            raise ValueError(f"method={self.args.method!r} needs labels with these settings, but there are none.")
        logits, smoothing = logits.float(), self.args.label_smoothing_factor
        own = F.cross_entropy(logits, inputs["labels"], reduction="none", label_smoothing=smoothing)
        if "partner" not in inputs:
            return own
        other = F.cross_entropy(logits, inputs["partner_labels"], reduction="none", label_smoothing=smoothing)
        share: Tensor = self.train_dataset.policy.own_share(inputs)
        return share * own + (1 - share) * other

    def _distillation_loss(self, logits: Tensor, images: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        target, temperature = self._online_target, self.args.temperature
        if self.args.method == "online" and self.teacher is not None and target is not None:
            return target.loss(logits, target.exact(self.teacher(images)), temperature)
        losses: list[Tensor] = [t.loss(logits, inputs, temperature) for t in self.train_dataset.targets]
        if not losses:
            raise ValueError('method="reinforced" needs a reinforced dataset; this one has no stored targets.')
        return sum(losses[1:], losses[0])

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss (cross-entropy), logits and labels of an evaluation batch."""
        labels, policy = inputs.get("labels"), getattr(self.train_dataset, "policy", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits, _ = self._logits(model, mixed_views(policy, inputs))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels).detach()
        return (loss, None, None) if prediction_loss_only else (loss, logits.detach(), labels)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates the student with its averaged weights, where there are any."""
        if isinstance(self.compute_metrics, _RunningMetrics):
            self.compute_metrics = _RunningMetrics()
        with nullcontext() if self.ema is None else self.ema.applied(self.model):
            return super().evaluation_loop(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Trains, from a checkpoint on where one is named, or where True asks for the last one."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True
        if self.ema is not None and isinstance(resume_from_checkpoint, str):
            self.ema.load(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, **kwargs)

    def load_weights(self, checkpoint: str) -> None:
        """Loads the student of a checkpoint, and its average."""
        super().load_weights(checkpoint)
        if self.ema is not None:
            self.ema.load(checkpoint)

    def save_to(self, folder: str, state_dict: Any) -> None:
        """Writes the student, with its averaged weights but in a checkpoint, which keeps both, and how it is fed."""
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        weights = student.state_dict() if state_dict is None else state_dict
        if self.ema is not None and not self.is_checkpoint(folder):
            weights = self.ema.module.state_dict()
        data = self.train_dataset
        size = None if data is None else data.image_size or data.policy.image_size
        record_preprocessing(student, self._preprocessing or student_preprocessing(student, size))
        self.processing_class = self.processing_class or image_processor(student)  # saved and published by Trainer
        super().save_to(folder, saved_weights(student, weights))
        if self.ema is not None and self.is_checkpoint(folder) and self.args.should_save:
            self.ema.save(folder)


class WeightAverage(TrainerCallback):  # type: ignore[misc]
    """timm's `ModelEmaV3`, an exponential moving average of a student's weights: `module` is a student that has them.

    It is updated after every step, and starts from the weights after the first.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        from timm.utils import ModelEmaV3

        self._ema = ModelEmaV3(model, decay=decay)
        self.module: nn.Module = self._ema.module

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Gives a model the averaged weights for a while."""
        model = extract_model_from_parallel(model, keep_torch_compile=False)
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.module.state_dict())
        try:
            yield
        finally:
            model.load_state_dict(trained)

    def save(self, checkpoint: str) -> None:
        """Writes the average beside the weights of a checkpoint."""
        weights = {name: value.clone().contiguous() for name, value in self.module.state_dict().items()}
        save_file(weights, Path(checkpoint) / EMA_FILE)

    def load(self, checkpoint: str) -> None:
        """Continues the average of a checkpoint."""
        self.module.load_state_dict(load_file(Path(checkpoint) / EMA_FILE))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._ema.update(extract_model_from_parallel(model, keep_torch_compile=False), step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.load_best_model_at_end and state.best_model_checkpoint:
            self.load(state.best_model_checkpoint)


def _check_dataset(name: str, dataset: Any, labels_needed: bool) -> None:
    """Refuses other kinds of datasets, and before anything is spent labels that are needed and are no class."""
    if type(dataset).__module__.partition(".")[0] == "datasets":
        raise TypeError(
            f"{name} is a {type(dataset).__name__}; pass what load_reinforced returns, or "
            "AugmentedDataset(ImageSource.of(SPLIT), POLICY) of one split."
        )
    source = dataset.image_source() if labels_needed and dataset is not None else None
    if source is not None and source.has_labels:
        source.check_labels(name="The training set" if name == "train_dataset" else "The evaluation set")


class _RunningMetrics:
    """`compute_metrics` for `batch_eval_metrics=True`: keeps a few numbers for each image and no logits."""

    def __init__(self) -> None:
        self._scored: list[Predictions] = []

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        self._scored.append(score(torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)))
        if not compute_result:
            return {}
        scored = Predictions.concatenate(self._scored)
        return {**measure(scored), "num_samples": float(len(scored))}
