"""What networks answer: the logits in what a forward pass returns, and one pass that tells whether a network fits."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def logits_of(output: Any, name: str) -> Tensor:
    """The logits [B, C] in what a network returns.

    Args:
        output: a tensor, an output of transformers, or a dict or tuple of which one item is known to be the logits:
            the one named `logits`, or the only tensor [B, C].
        name: name of the network, for the error.

    Raises:
        ValueError: if it is none of these.
    """
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    items = list(output.values()) if isinstance(output, Mapping) else output
    if named is not None:
        items = [named]
    elif not isinstance(items, (list, tuple)):
        items = [items]
    found = [item for item in items if isinstance(item, Tensor) and item.ndim == 2 and item.is_floating_point()]
    if len(found) != 1:
        shapes = [tuple(item.shape) if isinstance(item, Tensor) else type(item).__name__ for item in items]
        raise ValueError(
            f"{name} should answer with logits [images, classes], but returns a {type(output).__name__} of "
            f"{', '.join(map(str, shapes)) or 'nothing'}. Take an image classifier, or wrap the network in a module "
            "that returns the logits alone."
        )
    return found[0]


def try_network(network: nn.Module, answer: Callable[[Tensor], Tensor], name: str, image_size: int, hint: str) -> int:
    """Sends two black images through a network, in training mode and in evaluation mode, and puts it back as it was.

    Args:
        network: the network.
        answer: its logits [B, C] for views [B, 3, S, S] with values 0 to 255.
        name: its name, for the error.
        image_size: side S of the views in pixels.
        hint: what to do if it takes no such views, a sentence.

    Returns:
        Number of its classes.

    Raises:
        ValueError: if it fails, or its answer is not finite.
    """
    device = next(network.parameters(), torch.empty(0)).device
    views = torch.zeros(2, 3, image_size, image_size, device=device)
    modes = {module: module.training for module in network.modules()}
    buffers = {key: value.clone() for key, value in network.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            for training in (True, False):
                network.train(training)
                logits = answer(views)
    except ValueError as error:
        if name in str(error):
            raise
        raise _refused(name, image_size, error, hint) from error
    except Exception as error:  # networks raise whatever their layers run into
        raise _refused(name, image_size, error, hint) from error
    finally:
        for module, training in modes.items():
            module.training = training
        for key, value in network.named_buffers():
            if key in buffers and value.shape == buffers[key].shape:
                value.copy_(buffers[key])
    if logits.ndim != 2 or len(logits) != 2 or not bool(logits.isfinite().all()):
        found = "values that are not finite" if logits.ndim == 2 and len(logits) == 2 else f"{tuple(logits.shape)}"
        raise ValueError(
            f"{name} answers two black views of {image_size} pixels with {found}, not with finite logits "
            "[2, classes]: its weights are damaged, or it is no image classifier."
        )
    return logits.shape[-1]


def _refused(name: str, image_size: int, error: Exception, hint: str) -> ValueError:
    text = " ".join(str(error).split())[:300]
    return ValueError(
        f"{name} cannot take views of {image_size} x {image_size} pixels in three channels ({type(error).__name__}: "
        f"{text}). {hint}"
    )
