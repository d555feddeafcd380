"""`KDTrainingArguments`: transformers' TrainingArguments and what distillation adds to them."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments


@dataclass
class ResumableTrainingArguments(TrainingArguments):  # type: ignore[misc]
    """Arguments of `ResumableTrainer`.

    Changed defaults: `remove_unused_columns=False` (targets are no argument of the model) and
    `logging_nan_inf_filter=False` (the filter costs a synchronisation at every step). `bf16` without an accelerator
    trains on the CPU (`use_cpu`).

    Args:
        timm_optimizer: name of a timm optimizer instead of `optim`; `sgd` has Nesterov momentum 0.9, `momentum` plain
            momentum 0.9.
    """

    timm_optimizer: str | None = field(default=None, metadata={"help": "A timm optimizer, e.g. sgd, lamb, adamw."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave this: targets are no model inputs."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave nan losses out of the logs."})

    def __post_init__(self) -> None:
        # transformers takes bf16 for an accelerator's, unless it is told that there shall be none
        self.use_cpu: bool = self.use_cpu or (self.bf16 and not torch.accelerator.is_available())
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # torch warns at every epoch otherwise


@dataclass
class KDTrainingArguments(ResumableTrainingArguments):
    """Arguments of `KDTrainer`.

    Changed defaults, beside those of `ResumableTrainingArguments`: `batch_eval_metrics=True` (logits of a whole
    evaluation are never held) and `max_grad_norm=0` (the recipes of the paper and of timm do not clip).

    Args:
        method: `"reinforced"` (stored targets), `"online"` (a teacher at every step) or `"plain"` (labels).
        temperature: temperature of the distillation loss; the paper uses 1.
        hard_label_weight: share w of the label's cross-entropy: `(1 - w) * KL + w * CE`; the paper uses 0.
        ema_decay: decay of an exponential moving average of the weights, which is then evaluated and saved; 0: none.
        repeated_augmentation: augmentations of an image in one batch, see `EpochSampler`; 1 for none.
        cache_images: decode the training images once, into memory that dataloader workers share, 3 bytes a pixel.

    Example:
        from hf_reinforce import KDTrainingArguments

        args = KDTrainingArguments(output_dir="outputs/student", method="reinforced", num_train_epochs=60)
    """

    method: str = field(default="reinforced", metadata={"help": "reinforced, online or plain."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the distillation loss."})
    hard_label_weight: float = field(default=0.0, metadata={"help": "Share of the label's cross-entropy in the loss."})
    ema_decay: float = field(default=0.0, metadata={"help": "Decay of an average of the weights; 0 for none."})
    repeated_augmentation: int = field(default=1, metadata={"help": "Augmentations of an image in one batch."})
    cache_images: bool = field(default=False, metadata={"help": "Keep decoded images in memory that workers share."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Most that a gradient's norm may be; 0: no clipping."})
    batch_eval_metrics: bool = field(default=True, metadata={"help": "Accumulate metrics batch by batch."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("reinforced", "online", "plain"):
            raise ValueError(f"method must be one of reinforced, online, plain, not {self.method!r}.")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be > 0, not {self.temperature}.")
        if not 0 <= self.hard_label_weight <= 1:
            raise ValueError(f"hard_label_weight must lie in [0, 1], not {self.hard_label_weight}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), not {self.ema_decay}.")
