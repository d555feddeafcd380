"""Seconds of training, over all parts of a run that was resumed."""

import time
from typing import Any

from transformers import TrainerCallback


class TrainingTime(TrainerCallback):  # type: ignore[misc]
    """Adds `train_seconds`, the time since training began, to every entry of the log.

    `train_runtime` of the Trainer covers what came after the last resume; this goes on from the checkpoint's figure.
    """

    def __init__(self) -> None:
        self._start: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        before = max((entry.get("train_seconds", 0.0) for entry in state.log_history), default=0.0)
        self._start = time.monotonic() - before

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._start is not None and state.log_history:
            state.log_history[-1]["train_seconds"] = round(time.monotonic() - self._start, 2)
