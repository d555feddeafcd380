"""The square of a photo that a model is evaluated on: its library's own."""

from copy import copy
from dataclasses import replace
from typing import Any

from hf_reinforce.models.networks import Member
from hf_reinforce.models.preprocessing import timm_preprocessing
from hf_reinforce.models.teachers import Teacher


def as_evaluated(model: Teacher, image_size: int | None = None) -> Teacher:
    """The model at the size that its library evaluates it at: networks of timm at their `test_input_size`.

    That is what timm's `validate.py` does. transformers' pipeline shows the same networks images of the size of their
    training, which an `image_size` asks for.
    """
    if image_size is not None:
        return model
    evaluated = copy(model)
    evaluated.members = tuple(_at_test_size(member) for member in model.members)
    return evaluated


def _at_test_size(member: Member) -> Member:
    cfg: Any = getattr(member.model, "pretrained_cfg", None)
    if member.kind != "timm" or member.preprocessing != timm_preprocessing(cfg):
        return member  # of transformers, or the caller has said how
    return replace(member, preprocessing=timm_preprocessing(cfg, at_test_size=True) or member.preprocessing)


def framing(model: Teacher, image_size: int | None = None, crop_pct: float | None = None) -> dict[str, Any]:
    """Arguments of `evaluation_policy`; the members of an ensemble look at the same pixels, framed for the first.

    Args:
        model: as `as_evaluated` returns it.
        image_size: side of the view, default the largest input of the model's members.
        crop_pct: share of the shorter side, default the first member's.

    Raises:
        ValueError: if it isn't known how the first member wants it.
    """
    first = model.members[0]
    largest = max(member.preprocessing.image_size for member in model.members)
    try:
        return first.preprocessing.framing(image_size or largest, crop_pct)
    except ValueError as error:
        raise ValueError(f"{first.name}: {error}") from error
