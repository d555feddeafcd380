"""Reading the images that are reinforced: one that is bad is no reason to stop, a source that is gone is."""

import errno
from typing import Any

from torch import Tensor

from hf_reinforce import images
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.images import ImageError, UnreachableError
from hf_reinforce.randomness import PARTNER_BLOCK


def read_image(scalar: Any, row: int, policy: AugmentationPolicy) -> tuple[images.Encoded, Tensor] | ImageError:
    """The encoded and the decoded image (uint8 [3, H, W]) of a row, or the error that names the row.

    Args:
        scalar: Arrow value of an image column.
        row: of the source.
        policy: that will make views of it, which may refuse its size.
    """
    item = scalar.as_py()
    try:
        encoded = images.read_encoded(item)
        image = images.decode(encoded)
        policy.check_size(*image.shape[1:])
        return encoded, image
    except ImageError as error:
        found = type(error)(f"Row {row} (path {(item or {}).get('path')!r}): {error}")
        found.__cause__ = error.__cause__
        return found


_TROUBLES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ENOTCONN}  # not the data's


def source_is_gone(failed: list[tuple[int, ImageError]], readable: dict[str, Any] | None) -> bool:
    """Whether files are missing because their disk or server is: then what could be read before cannot be read now.

    Args:
        failed: rows and their errors.
        readable: the value of an image column that could be read, None if none could.
    """
    missing = [error for _, error in failed if isinstance(error, UnreachableError)]
    if any(getattr(error.__cause__, "errno", None) in _TROUBLES for error in missing):
        return True
    if not missing or readable is None:  # then only a whole block says more than one row
        return len(missing) == PARTNER_BLOCK
    try:
        images.read_encoded(readable)
    except UnreachableError:
        return True
    return False
