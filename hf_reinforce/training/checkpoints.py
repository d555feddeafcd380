"""What makes a training resumable: it stops with a checkpoint when asked, and goes on from the newest whole one.

A `KDTrainer` writes `trainer_state.json` of a checkpoint when every process has written everything else, so a folder
without it was left by an interrupted run.
"""

import json
import logging
import re
import signal
import time
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile, ZipFile

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_reinforce.stopping import StopSignals

logger = logging.getLogger(__name__)

_STEPS_BETWEEN_AGREEMENTS = 5  # each waits for the device


class StopTraining(TrainerCallback):  # type: ignore[misc]
    """Ends training with a checkpoint after the step in which a signal came, and then is `stopped`.

    Several processes agree about it, at the first step that 5 divides: signals reach them at different steps, and one
    that stopped alone would leave the others waiting.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals, self.stopped = signals, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            if state.global_step % _STEPS_BETWEEN_AGREEMENTS and state.global_step < state.max_steps:
                return
            requested = self.signals.requested
            number = torch.tensor(signal.Signals[requested] if requested else 0, device=args.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            if number:
                self.signals.requested = signal.Signals(int(number)).name
        if self.signals.requested:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped and state.epoch % 1:  # it did not end, so what is done after an epoch is done another time
            control.should_log = control.should_evaluate = control.should_save = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped and state.is_world_process_zero:
            logger.warning(
                "Stopped by %s after step %d of %d; the same command goes on from %s/checkpoint-%d.",
                *(self.signals.requested, state.global_step, state.max_steps, args.output_dir, state.global_step),
            )


class TrainingTime(TrainerCallback):  # type: ignore[misc]
    """Adds `train_seconds`, the time of training over all parts of a resumed run, to every entry of the log."""

    _start: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.monotonic() - _training_seconds(state)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._start is not None and state.log_history:
            state.log_history[-1]["train_seconds"] = round(time.monotonic() - self._start, 2)


def _training_seconds(state: Any) -> float:
    return max((float(entry.get("train_seconds", 0)) for entry in state.log_history), default=0.0)


def last_checkpoint(args: TrainingArguments) -> str | None:
    """The newest checkpoint in `args.output_dir` that is whole, None where there is none.

    The main process looks for it, warns of others that are not whole, and tells all processes.

    Raises:
        ValueError: if there are checkpoints that were finished, and none of them can be used now.
    """
    found, problem = None, None
    if args.process_index == 0:
        paths = [path for path in Path(args.output_dir).glob("*/") if re.fullmatch(r"checkpoint-\d+", path.name)]
        for path in sorted(paths, key=lambda path: int(path.name.split("-")[1]), reverse=True):
            damage = _damage(path, args.save_only_model)
            if damage is None:
                found, problem = str(path), None
                break
            logger.warning("%s is passed over: %s.", path, damage)
            if (path / TRAINER_STATE_NAME).exists():
                problem = f"{path}: {damage}"
    found, problem = broadcast_object_list([found, problem])
    if problem is not None:
        raise ValueError(
            f"No checkpoint in {args.output_dir} can be used ({problem}). Name one with --resume_from_checkpoint, or "
            "remove them to begin anew."
        )
    return cast("str | None", found)


def is_finished(checkpoint: str, args: TrainingArguments) -> bool:
    """Whether a checkpoint is the end of a run of the length that is asked for."""
    state = _state(checkpoint)
    asked, made = args.num_train_epochs, state.num_train_epochs
    if args.max_steps > 0:
        asked, made = args.max_steps, state.max_steps
    return bool(state.global_step >= state.max_steps and asked <= made)


def load_finished(trainer: Any, checkpoint: str) -> dict[str, Any] | None:
    """Loads the student and the state of a finished run; returns metrics if the run ended before it wrote them."""
    state, output_dir = _state(checkpoint), trainer.args.output_dir
    result = _state(output_dir) if (Path(output_dir) / TRAINER_STATE_NAME).exists() else state
    written = result is not state and result.global_step >= state.global_step
    state = trainer.state = result if written else state
    state.is_world_process_zero = trainer.is_world_process_zero()
    state.is_local_process_zero = trainer.is_local_process_zero()
    best = trainer.args.load_best_model_at_end and state.best_model_checkpoint
    trainer.load_weights(best or checkpoint)
    told = {"epoch": state.epoch, "total_flos": state.total_flos, "train_runtime": _training_seconds(state)}
    return None if written else told


def _state(folder: str) -> Any:
    return TrainerState.load_from_json(str(Path(folder) / TRAINER_STATE_NAME))


def _damage(checkpoint: Path, only_model: bool) -> str | None:
    """What is wrong with a checkpoint: a file that is missing, or cut short."""
    if not (checkpoint / TRAINER_STATE_NAME).exists():
        return f"the run was interrupted while it wrote it ({TRAINER_STATE_NAME} is missing)"
    for name in [SAFE_WEIGHTS_NAME, *([] if only_model else [OPTIMIZER_NAME, SCHEDULER_NAME, "rng_state*.pth"])]:
        if not any(checkpoint.glob(name)):
            return f"{name} is missing"
    for path in sorted(checkpoint.iterdir()):
        try:
            _read(path)
        except (ValueError, OSError, EOFError, BadZipFile, SafetensorError) as error:
            return f"{path.name} is damaged ({error})"
    return None


def _read(path: Path) -> None:
    """Reads a file as far as it takes to notice that it is damaged."""
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="pt"):
            pass
    elif path.suffix in (".pt", ".pth"):
        with ZipFile(path) as file:
            wrong = file.testzip()
        if wrong is not None:
            raise BadZipFile(f"wrong checksum of {wrong}")
