"""The head of a pretrained student: kept, put into the order of other classes, or made anew, and said so."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from hf_reinforce.models.classes import ModelClasses, some
from hf_reinforce.models.weights import WeightReport

logger = logging.getLogger(__name__)


def fit_head(name: str, model: Any, theirs: Sequence[str], names: Sequence[str], report: WeightReport) -> None:
    """Gives a pretrained classifier the classes of a dataset, and says in a line what became of its head.

    A head of as many classes stays, with its rows in the order of the names; where the names are other ones it is made
    anew, as is that of another number of classes, which `from_pretrained(ignore_mismatched_sizes=True)` has made.

    Args:
        name: of the network, for the messages.
        model: classifier of transformers for as many classes as there are `names`, with the weights of its checkpoint.
        theirs: names of the classes of the checkpoint.
        names: names of the classes of the dataset, `LABEL_0`, ... where they are unknown.
        report: how the weights of the checkpoint fitted.

    Raises:
        ValueError: if the checkpoint lacks weights of the body, or has them in other shapes.
    """
    rows = class_dimensions(model)
    body = report.without(lambda tensor: tensor in rows)
    if body.fresh:
        body.check(name)
    fresh = [tensor for tensor in report.fresh if tensor in rows]
    count, own = len(names), ModelClasses(theirs, len(theirs))
    if fresh:
        has = "none" if set(fresh) <= set(report.missing) else str(len(theirs))
        logger.info(
            "%s gets a new head for %d classes (its checkpoint has %s): %s.", name, count, has, ", ".join(fresh)
        )
    elif not own.names or not ModelClasses(names, count).names:
        logger.info(
            "%s keeps its head: nothing says what its %d classes are, so they are taken as given.", name, count
        )
    elif (places := own.places(names)) is None:
        renew(model, rows)
        logger.info(
            "%s gets a new head: its %d classes (%s) are not the %d of the dataset (%s).",
            *(name, len(theirs), some(theirs), count, some(names)),
        )
    elif places[0] == list(range(count)):
        logger.info("%s keeps its head of %d classes.", name, count)
    else:
        reorder(model, rows, places[0])
        logger.info("%s keeps its head of %d classes, put into the order of the dataset by name.", name, count)


def class_dimensions(model: Any) -> dict[str, int]:
    """The tensors of a classifier of transformers that have one row for each class, and in which dimension."""
    from transformers import AutoModelForImageClassification

    config = deepcopy(model.config)
    count = config.num_labels
    config.num_labels = count + 1
    with torch.device("meta"):
        other = AutoModelForImageClassification.from_config(config, trust_remote_code=False).state_dict()
    found = {}
    for name, tensor in model.state_dict().items():
        sizes = list(zip(tensor.shape, other[name].shape, strict=True)) if name in other else []
        different = [dimension for dimension, (own, theirs) in enumerate(sizes) if own != theirs]
        if len(different) == 1 and sizes[different[0]] == (count, count + 1):
            found[name] = different[0]
    return found


def reorder(model: nn.Module, rows: dict[str, int], places: Sequence[int]) -> None:
    """Puts the rows of the classes into the order of `places`."""
    state = model.state_dict()
    for name, dimension in rows.items():
        _fill(state[name], state[name].index_select(dimension, torch.tensor(places)))


def renew(model: Any, rows: dict[str, int]) -> None:
    """Gives the rows of the classes new random weights, such as a new network has."""
    from transformers import AutoModelForImageClassification

    state = model.state_dict()
    other = AutoModelForImageClassification.from_config(model.config, trust_remote_code=False).state_dict()
    for name in rows:
        _fill(state[name], other[name])


def _fill(tensor: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(values)
