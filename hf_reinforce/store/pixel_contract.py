"""The pixel contract: a dataset is only used where its views come out as they did when the teacher saw them."""

from importlib.metadata import version

import torch
from torch import Tensor

from hf_reinforce import images
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.store.config import PixelContract, ReferenceView

_LIBRARIES = ("torch", "torchvision", "pillow", "numpy", "datasets")


class PixelMismatchError(ValueError):
    """Views come out differently here than where the teacher saw them."""


def library_versions() -> dict[str, str]:
    """Versions of the libraries that make the pixels."""
    return {name: version(name) for name in _LIBRARIES}


def view_checksum(view: Tensor) -> str:
    """xxh3-64, hex, of a uint8 view [3, S, S] in row-major H, W, C order."""
    return images.image_hash(view.permute(1, 2, 0).contiguous().numpy().tobytes())


def reference_view(policy: AugmentationPolicy, seed: int, row: int, slot: int, image: Tensor) -> ReferenceView:
    """The checksum to store for one reinforcement of a decoded image."""
    params = policy.sample(seed, row, slot, *image.shape[1:])
    return ReferenceView(row, slot, view_checksum(policy.apply(image, params)))


ACCEPT = "accept the difference with accept_pixel_mismatch=True (--accept_pixel_mismatch True)"


def check_reference(contract: PixelContract, reference: ReferenceView, checksum: str, otherwise: str = ACCEPT) -> None:
    """Compares the checksum of a view, made here, with the stored one.

    Raises:
        PixelMismatchError: naming the libraries that differ, and what to do: install those, or `otherwise`.
    """
    if checksum == reference.checksum:
        return
    then, here = contract.versions, library_versions()
    different = [
        f"{name} {then.get(name, 'unknown')} then, {found} now"
        for name, found in here.items()
        if then.get(name) != found
    ]
    if contract.backend != images.PIXEL_BACKEND:
        different.append(f"backend {contract.backend} then, {images.PIXEL_BACKEND} now")
    if not different:
        different.append(f"same libraries, CPU capability {torch.backends.cpu.get_cpu_capability()} now")
    raise PixelMismatchError(
        f"The view of row {reference.row}, reinforcement {reference.slot}, has other pixels here than where the "
        f"teacher saw it: {'; '.join(different)}. Install the recorded versions, or {otherwise}."
    )
