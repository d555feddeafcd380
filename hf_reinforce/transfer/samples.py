"""Images with targets, augmented by transforms of torchvision, for detection and segmentation; optional packages."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2


class TransferDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Random access to images and their targets, to which transforms of `torchvision.transforms.v2` are applied.

    What is random in a sample depends on (seed, epoch, row) alone, so a resumed training sees the same samples.
    """

    blocks = None  # its rows are at hand in any order, see `EpochSampler`

    def __init__(self, rows: datasets.Dataset, transforms: Sequence[Callable[..., Any]], seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._transforms = v2.Compose([*transforms, v2.ToPureTensor()])

    def __len__(self) -> int:
        return len(self._rows)

    def partners(self, epoch: int) -> NDArray[np.int64]:
        """No image is mixed with another: -1 for each, which `EpochSampler` asks for."""
        return np.full(len(self), -1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample, `images` and `targets`; index `epoch * len(self) + row`."""
        row = index % len(self)
        try:
            image, target = self.read(self._rows[row], row)
        except ValueError as error:
            raise ValueError(f"Row {row}: {error}") from error
        with torch.random.fork_rng(devices=()):
            (state,) = np.random.SeedSequence([self._seed, index]).generate_state(1, np.uint64)
            torch.default_generator.manual_seed(int(state))
            image, target = self._transforms(image, target)
        return {"images": image, "targets": target}

    def read(self, values: Mapping[str, Any], row: int) -> tuple[Any, Any]:
        """The image of a row and its target, before the transforms, with the types of `torchvision.tv_tensors`."""
        raise NotImplementedError


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Batches samples as lists, since images differ in size."""
    return {name: [sample[name] for sample in samples] for name in samples[0]}


class MissingPackageError(ImportError, ValueError):
    """An optional package that is not installed."""


def optional(module: str) -> Any:
    """An optional module by its full name, such as `sklearn.linear_model`; the error says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingPackageError(f"This needs {package} ({error}); pip install 'hf-reinforce[transfer]'.") from error
