"""An exponential moving average of a student's weights, kept while it trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

EMA_FILE = "ema.safetensors"


class WeightAverage(TrainerCallback):  # type: ignore[misc]
    """timm's `ModelEmaV3`, updated after every step; the trainer saves it with every checkpoint.

    Args:
        model: the student; the average starts from its weights after the first step.
        decay: weight of the average so far, in (0, 1).

    Attributes:
        module: a copy of the student with the averaged weights.
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
        device = next(self.module.parameters()).device
        self.module.load_state_dict(load_file(Path(checkpoint) / EMA_FILE, device=str(device)))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._ema.update(extract_model_from_parallel(model, keep_torch_compile=False), step=state.global_step)
