"""Images in the device's memory: whole batches are augmented there, and the loader only fetches what is stored."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_reinforce.images import ImageError
from hf_reinforce.replay.views import AugmentedDataset
from hf_reinforce.store.pixel_contract import PixelMismatchError

logger = logging.getLogger(__name__)

_CHECKED = 64


class ResidentImages:
    """All images of a data set, decoded, on a device.

    Every image is read once, with the checks of the data set, and the first 64 views are compared with those that the
    data set makes by itself.

    Args:
        dataset: images that are of one size, or are once the policy has resized them, under a policy whose operations
            work on whole batches, such as the `small_*` ones.
        device: where they are kept, 3 bytes a pixel.

    Raises:
        ValueError: if the policy works on one image at a time, or replays at another size than its own.
        ImageError: if an image cannot be decoded, or has another size than the first.
        PixelMismatchError: if a view differs by more than one level from that of the data set.
    """

    def __init__(self, dataset: AugmentedDataset, device: torch.device | str) -> None:
        self._policy = dataset.policy
        if dataset.image_size not in (None, self._policy.image_size):
            raise ValueError(
                f"Images on the device are replayed at {self._policy.image_size} pixels, the policy's own size, not "
                f"{dataset.image_size}; use --input_size to enlarge them."
            )
        self._check_policy(dataset)
        first = self._resized(dataset, 0)
        stacked = torch.empty((len(dataset), *first.shape), dtype=torch.uint8)
        logger.info("Reading %d images into the memory of %s, %.0f MB.", len(dataset), device, stacked.numel() / 1e6)
        for position in range(len(dataset)):
            image = self._resized(dataset, position)
            if image.shape != first.shape:
                raise ImageError(
                    f"Row {dataset.row(position)} has {image.shape[2]}x{image.shape[1]} pixels and the first image "
                    f"{first.shape[2]}x{first.shape[1]}, but images on the device have one size; leave out "
                    "images_on_device (--images_on_device False)."
                )
            stacked[position] = image
        self._images = stacked.to(device)
        self._check_pixels(dataset)

    def views(self, positions: Tensor, params: Mapping[str, NDArray[Any]]) -> Tensor:
        """The views of a batch without pixels: uint8 [B, 3, S, S], values 0 to 255, on the device."""
        return self._policy.apply_batch(self._images[positions.to(self._images.device)], params)

    def _resized(self, dataset: AugmentedDataset, position: int) -> Tensor:
        image = dataset.image(position)
        first = self._policy.view_operations[0]
        return first.apply(image, None) if first.stage == "resize" else image

    def _check_policy(self, dataset: AugmentedDataset) -> None:
        drawn = dataset.params(0, 0)
        try:
            self._policy.collate_views([drawn])
        except ValueError as error:
            raise ValueError(
                f"Policy {self._policy.name!r} cannot augment whole batches on the device: {error} Leave out "
                "images_on_device (--images_on_device False)."
            ) from error

    def _check_pixels(self, dataset: AugmentedDataset) -> None:
        positions = range(min(_CHECKED, len(dataset)))
        params = [dataset.params(position, 0) for position in positions]
        here = self.views(torch.tensor(positions), self._policy.collate_views(params)).cpu().int()
        for position, view in zip(positions, here, strict=True):
            difference = int((view - dataset.pixels(position, params[position]).int()).abs().max())
            if difference > 1:
                raise PixelMismatchError(
                    f"A view of row {dataset.row(position)} that is made on {self._images.device} is off by "
                    f"{difference} levels; leave out images_on_device (--images_on_device False)."
                )
