"""`TransferTrainer`: the Trainer of detectors and segmenters, whose images and targets differ in size."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer_utils import EvalLoopOutput

from hf_reinforce.training.arguments import ResumableTrainingArguments
from hf_reinforce.training.resumable import ResumableTrainer


@dataclass
class TransferArguments(ResumableTrainingArguments):
    """Arguments of `TransferTrainer`, beside those of `ResumableTrainingArguments`.

    `lr_milestones` take the place of `lr_scheduler_type`, after the same linear warm-up; the defaults of
    `timm_optimizer` (SGD) and `max_grad_norm` (one crowded image may have a large gradient) are others.
    """

    timm_optimizer: str | None = field(default="momentum", metadata={"help": "A timm optimizer, e.g. adamw."})
    backbone_lr_scale: float = field(
        default=1.0, metadata={"help": "The backbone's learning rate, in multiples of that of the new layers."}
    )
    lr_milestones: list[float] = field(
        default_factory=list, metadata={"help": "Shares of the training where the learning rate falls to a tenth."}
    )
    max_grad_norm: float = field(
        default=10.0, metadata={"help": "Most that a gradient's norm may be; 0: no clipping."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if sorted(self.lr_milestones) != self.lr_milestones or not all(0 < m < 1 for m in self.lr_milestones):
            raise ValueError(f"lr_milestones must ascend and lie between 0 and 1; they are {self.lr_milestones}.")


class TransferTrainer(ResumableTrainer):
    """Trains a `Detector` or a `Segmenter`, which takes lists of images and targets and returns losses by name;
    without targets a prediction for each image.

    `new_metric` makes an empty metric, such as `MeanIoU`: `record(prediction, target)` says on the CPU what one image
    adds, so that ranks can exchange it, `add(record)` adds it, and `compute()` gives the values by name.
    """

    control: Any
    lr_scheduler: Any

    def __init__(
        self, model: nn.Module, args: TransferArguments, new_metric: Callable[[], Any], **kwargs: Any
    ) -> None:
        super().__init__(model, args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self._new_metric = new_metric

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum of the model's losses on one batch, which must be finite."""
        losses: dict[str, Tensor] = model(inputs["images"], inputs["targets"])
        loss = torch.stack(list(losses.values())).sum()
        if not bool(loss.isfinite()):
            found = {name: float(value) for name, value in losses.items()}
            raise ValueError(f"The loss is not finite ({found}); lower --learning_rate, or train in float32 or bf16.")
        return (loss, losses) if return_outputs else loss

    def evaluation_loop(self, dataloader: Any, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> Any:
        """Evaluates; images that several ranks have seen count once."""
        model: Any = self.accelerator.unwrap_model(self.model).to(self.args.device).eval()
        metric, seen = self._new_metric(), 0
        for batch in dataloader:
            with torch.no_grad(), self.compute_loss_context_manager():
                predictions = model(batch["images"])
            records = [metric.record(*pair) for pair in zip(predictions, batch["targets"], strict=True)]
            for record in self.accelerator.gather_for_metrics(records, use_gather_object=True):
                metric.add(record)
                seen += 1
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        values = {f"{metric_key_prefix}_{name}": value for name, value in metric.compute().items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=values, num_samples=seen)

    def trained_parameters(self, model: Any) -> list[dict[str, Any]]:
        """Groups of parameters: no weight decay for biases and norms, and the backbone's own learning rate."""
        model = self.accelerator.unwrap_model(model)
        of_backbone = {id(parameter) for parameter in model.backbone.parameters()}
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        for parameter in model.parameters():
            if parameter.requires_grad:
                groups.setdefault((id(parameter) in of_backbone, parameter.ndim > 1), []).append(parameter)
        args = self.args
        return [
            {
                "params": parameters,
                "lr": args.learning_rate * (args.backbone_lr_scale if backbone else 1.0),
                "weight_decay": args.weight_decay if decays else 0.0,
            }
            for (backbone, decays), parameters in groups.items()
        ]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of `lr_milestones`, where there are any, else of `lr_scheduler_type`."""
        if not self.args.lr_milestones:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        falls = [share * num_training_steps for share in self.args.lr_milestones]

        def factor(step: int) -> float:
            return float(min(1.0, (step + 1) / (warmup + 1)) * 0.1 ** sum(step >= fall for fall in falls))

        self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
        return self.lr_scheduler

    def save_to(self, folder: str, state_dict: Any) -> None:
        """Writes the model, also the configuration that `from_pretrained` builds it from, and the arguments."""
        if self.args.should_save:
            model: Any = self.accelerator.unwrap_model(self.model)
            model.save_pretrained(folder)
            torch.save(self.args, Path(folder) / "training_args.bin")

    def create_model_card(self, **kwargs: Any) -> None:
        """Nothing: `save_pretrained` has written the card."""
