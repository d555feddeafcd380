"""`KDTrainer`: transformers' Trainer with distillation from stored targets, from an online teacher, or none.

The three methods draw from the same augmentation policy and differ in one flag, so they can be compared.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import EvalPrediction

from hf_reinforce.augmentations.policies import AugmentationPolicy
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
from hf_reinforce.replay.dataset import ReinforcedDataset
from hf_reinforce.replay.views import AugmentedDataset
from hf_reinforce.training.arguments import KDTrainingArguments
from hf_reinforce.training.checkpoints import TrainingTime
from hf_reinforce.training.ema import WeightAverage
from hf_reinforce.training.resumable import ResumableTrainer


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
        if args.method == "online" and teacher is None:
            raise ValueError('method="online" needs a teacher; pass teacher= (--teacher_name_or_path).')
        _check_datasets(train_dataset, eval_dataset, args)
        if teacher is not None:
            names = getattr(getattr(train_dataset, "source", None), "class_names", None)
            teacher = teacher if teacher.fitted else teacher.with_classes(names)
            teacher.check_processes()
        repeats, batch = args.repeated_augmentation, args.per_device_train_batch_size
        streaming = getattr(train_dataset, "blocks", None) is not None
        if repeats > 1 and streaming:
            raise ValueError(
                "Rows that are streamed have an order of their own; leave out repeated_augmentation "
                "(--repeated_augmentation 1), or streaming (--streaming False)."
            )
        if repeats > 1 and batch % repeats:
            raise ValueError(
                f"repeated_augmentation={repeats} needs a batch size that it divides, not {batch}; choose another "
                "(--per_device_train_batch_size)."
            )
        if args.cache_images and streaming:
            raise ValueError(
                "Images that are streamed are not kept; leave out cache_images (--cache_images False), or streaming."
            )
        check_fit(model, train_dataset, eval_dataset, teacher, preprocessing)
        if args.cache_images and train_dataset is not None:
            train_dataset.cache_images()
        if (dataset := train_dataset or eval_dataset) is not None:
            kwargs.setdefault("data_collator", dataset.collate)
        if kwargs.get("compute_metrics") is None:
            kwargs["compute_metrics"] = _RunningMetrics()
        # Trainer looks for `model.config` when labels are smoothed, which a plain module need not have.
        smoothing, args.label_smoothing_factor = args.label_smoothing_factor, 0.0
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

    def _images(self, inputs: dict[str, Tensor]) -> Tensor:
        """The B mixed views of a batch, float, values 0 to 255."""
        images: Tensor = inputs["pixel_values"].float()
        if "partner" in inputs:
            own = images[: len(inputs["partner"])]
            policy: AugmentationPolicy = self.train_dataset.policy
            return policy.mix(own, images[inputs["partner"]], inputs)
        return images

    def _logits(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Any]:
        logits, outputs = student_logits(model, self.accelerator.unwrap_model(model), images, self._preprocessing)
        return logits, outputs

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The method's loss on one batch, a mean over its samples."""
        images = self._images(inputs)
        logits, outputs = self._logits(model, images)
        args = self.args
        if args.method == "plain":
            loss = self._label_loss(logits, inputs)
        else:
            loss = self._distillation_loss(logits, images, inputs)
            if args.hard_label_weight:
                loss = (1 - args.hard_label_weight) * loss + args.hard_label_weight * self._label_loss(logits, inputs)
        return (loss.mean(), outputs) if return_outputs else loss.mean()

    def _label_loss(self, logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        if "labels" not in inputs:
            raise ValueError(f"method={self.args.method!r} needs labels with these settings, but there are none.")
        logits, smoothing = logits.float(), self.args.label_smoothing_factor
        own = F.cross_entropy(logits, inputs["labels"], reduction="none", label_smoothing=smoothing)
        if "partner" not in inputs:
            return own
        other = F.cross_entropy(logits, inputs["partner_labels"], reduction="none", label_smoothing=smoothing)
        policy: AugmentationPolicy = self.train_dataset.policy
        share = policy.own_share(inputs)
        return share * own + (1 - share) * other

    def _distillation_loss(self, logits: Tensor, images: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        target = self._online_target
        if self.args.method == "online" and self.teacher is not None and target is not None:
            return target.loss(logits, target.exact(self.teacher(images)), self.args.temperature)
        targets = getattr(self.train_dataset, "targets", ())
        if not targets:
            raise ValueError('method="reinforced" needs a reinforced dataset; this one has no stored targets.')
        losses: list[Tensor] = [target.loss(logits, inputs, self.args.temperature) for target in targets]
        return sum(losses[1:], losses[0])

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss (cross-entropy), logits and labels of an evaluation batch."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            logits, _ = self._logits(model, self._images(inputs))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels).detach()
        return (loss, None, None) if prediction_loss_only else (loss, logits.detach(), labels)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates the student with its averaged weights, where there are any."""
        if isinstance(self.compute_metrics, _RunningMetrics):
            self.compute_metrics.reset()
        with nullcontext() if self.ema is None else self.ema.applied(self.model):
            return super().evaluation_loop(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        weights = student.state_dict() if state_dict is None else state_dict
        if self.ema is not None and not self.is_checkpoint(output_dir):  # a checkpoint keeps both weights
            weights = self.ema.module.state_dict()
        policy = getattr(self.train_dataset, "policy", None)
        size = getattr(self.train_dataset, "image_size", None) or getattr(policy, "image_size", None)
        record_preprocessing(student, self._preprocessing or student_preprocessing(student, size))
        self.processing_class = self.processing_class or image_processor(student)  # saved and published by Trainer
        super()._save(output_dir, saved_weights(student, weights))
        if self.ema is not None and self.is_checkpoint(output_dir) and self.args.should_save:
            self.ema.save(str(output_dir))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.ema is not None:
            self.ema.load(self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.ema is not None:
            self.ema.load(resume_from_checkpoint)


def _check_datasets(train_dataset: Any, eval_dataset: Any, args: KDTrainingArguments) -> None:
    """Refuses other kinds of datasets, and before anything is spent labels that are needed and are no class."""
    for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
        if type(dataset).__module__.partition(".")[0] == "datasets":
            raise TypeError(
                f"{name} is a {type(dataset).__name__}; pass what load_reinforced returns, or "
                "AugmentedDataset(ImageSource.of(SPLIT), POLICY) of one split."
            )
    if isinstance(train_dataset, AugmentedDataset) and (args.method == "plain" or args.hard_label_weight):
        source = train_dataset.source
        if isinstance(train_dataset, ReinforcedDataset):
            source = train_dataset.image_source()
        if source.has_labels:
            source.check_labels(name="The training set")
    if isinstance(eval_dataset, AugmentedDataset) and eval_dataset.source.has_labels:
        eval_dataset.source.check_labels(name="The evaluation set")


class _RunningMetrics:
    """`compute_metrics` for `batch_eval_metrics=True`: keeps a few numbers for each image and no logits."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._scored: list[Predictions] = []

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        self._scored.append(score(torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)))
        if not compute_result:
            return {}
        scored = Predictions.concatenate(self._scored)
        return {**measure(scored), "num_samples": float(len(scored))}
