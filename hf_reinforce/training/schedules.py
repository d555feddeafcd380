"""timm's learning-rate schedules behind the interface that a Trainer steps."""

from typing import Any

import torch


class TimmSchedule(torch.optim.lr_scheduler.LRScheduler):
    """A timm schedule, updated at every optimizer step.

    Args:
        optimizer: whose learning rates are set.
        name: timm's name of the schedule, e.g. `cosine`, `step`, `poly`.
        num_training_steps: steps of the whole run.
        num_warmup_steps: linear warm-up from zero, part of the run.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, name: str, num_training_steps: int, num_warmup_steps: int
    ) -> None:
        from timm.scheduler import create_scheduler_v2

        self._timm, _ = create_scheduler_v2(
            optimizer,
            sched=name,
            num_epochs=max(1, num_training_steps - num_warmup_steps),
            decay_epochs=max(1, num_training_steps // 3),
            warmup_epochs=num_warmup_steps,
            warmup_lr=0.0,
            warmup_prefix=True,
            step_on_epochs=False,
            updates_per_epoch=1,
        )
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """The learning rate of every parameter group at the current step."""
        self._timm.step_update(self.last_epoch)
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The step; everything else follows from the arguments."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues at the step of `state_dict`."""
        self.last_epoch = state_dict["last_epoch"]
        self._last_lr = self.get_lr()
