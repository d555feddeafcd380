"""The images that an import joins: their order in the original's dataset, their hashes and their sizes."""

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from datasets import Dataset
from datasets import Image as ImageFeature
from numpy.typing import NDArray
from PIL import ExifTags
from tqdm.auto import tqdm

from hf_reinforce import images, schema
from hf_reinforce.augmentations import Crop, RandomResizedCrop
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.images import ImageError
from hf_reinforce.importers.ml_dr.records import PARTNER, Columns
from hf_reinforce.sources.image_source import ImageSource, find_columns
from hf_reinforce.store.atomic import whole_file
from hf_reinforce.store.rows import ColumnReader
from hf_reinforce.targets.class_distribution import FIELDS

MIN_AGREEMENT = 0.25
"""Least share of unmixed views whose most likely class is the image's label. With wrong images it is about 1 / C."""


def image_folder_order(
    dataset: Dataset,
    file_names: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> list[int]:
    """The rows of a dataset in the order of torchvision's `ImageFolder`: by class, then by folder and file name.

    The Hub's ImageNet appends the class to the names (`n01440764_18_n01440764.JPEG`), which would change their order;
    it is taken off.

    Args:
        dataset: its classes must be in the order of the class folders' names, as ImageNet's are.
        file_names: column of file names, default the paths in the image column.
        image_column: default: the only image column.
        label_column: default: the only ClassLabel column, else `label`.

    Raises:
        ValueError: if there are no file names, or two images of a class have the same.
    """
    image, label = find_columns(dataset.features, image_column, label_column)
    paths = ColumnReader(dataset.cast_column(image, ImageFeature(decode=False)), file_names or image)
    labels = None if label is None else ColumnReader(dataset, label)
    keys = []
    for row in range(len(dataset)):
        path = paths(row) if file_names else (paths(row) or {}).get("path")
        if not path:
            raise ValueError(f"Row {row} has no file name; name a column that has, or give the id map as a list.")
        file = PurePath(path)
        stem, _, suffix = file.stem.rpartition("_")
        name = stem + file.suffix if suffix and stem.startswith(f"{suffix}_") else file.name
        keys.append((-1 if labels is None else int(labels(row)), str(file.parent), name))
    if len(set(keys)) < len(keys):
        raise ValueError("Two images of one class have the same file name, so their order is unknown.")
    return sorted(range(len(keys)), key=keys.__getitem__)


@dataclass
class ImageFacts:
    """What is known of the source's images, by row.

    Attributes:
        hashes: hash of the encoded bytes, as ASCII.
        sizes: height and width; 0 for an image that is not used.
        errors: why an image cannot be used.
    """

    hashes: NDArray[np.bytes_]
    sizes: NDArray[np.int32]
    errors: dict[int, str]

    def __post_init__(self) -> None:
        self.usable = self.sizes[:, 0] > 0

    @classmethod
    def of(cls, source: ImageSource, rows: NDArray[np.int64], cache: Path) -> "ImageFacts":
        """Reads the images of some rows, without decoding them, and keeps what was found in a .npz file."""
        if not cache.exists():
            hashes, sizes, errors = np.zeros(len(source), "S16"), np.zeros((len(source), 2), np.int32), {}
            for row in tqdm(rows.tolist(), desc="Hashing the images", unit="image", unit_scale=True):
                try:
                    encoded = source.encoded(row)
                    hashes[row], sizes[row] = images.image_hash(encoded), _image_size(encoded)
                except ImageError as error:
                    errors[row] = str(error)
            with whole_file(cache) as temporary:
                rows_of_errors = np.array([*errors], int)
                np.savez(temporary, hashes=hashes, sizes=sizes, rows=rows_of_errors, errors=[*errors.values()])
        with np.load(cache) as stored:
            errors = dict(zip(stored["rows"].tolist(), stored["errors"].tolist(), strict=True))
            return cls(stored["hashes"], stored["sizes"], errors)


def _image_size(encoded: images.Encoded) -> tuple[int, int]:
    with images.opened(encoded) as image:
        orientation, (width, height) = image.getexif().get(ExifTags.Base.Orientation, 1), image.size
    if orientation not in (0, 1):
        raise ImageError(f"it has the EXIF orientation {orientation}, which the original ignored.")
    return height, width


class Join:
    """Puts rows in the place of the original's indices, and checks that the records belong to the images.

    Args:
        rows: row of the dataset for each index, or -1.
        facts: of the dataset's images.
        labels: of the dataset, by row; None without labels.
        policy: the policy of the records.
    """

    def __init__(
        self, rows: NDArray[np.int64], facts: ImageFacts, labels: NDArray[Any] | None, policy: AugmentationPolicy
    ) -> None:
        self.rows, self.facts, self.labels = rows, facts, labels
        self._crops_source = any(isinstance(operation, RandomResizedCrop) for operation in policy.view_operations)
        self._agreeing = self._compared = 0

    def __call__(self, row: int, columns: Columns) -> Columns:
        """The records of an image with its partners' rows.

        A record whose partner is left out is replaced by the next one of the same image that can be replayed.

        Raises:
            ValueError: if no record can be replayed, or a crop does not lie in its image.
        """
        index = columns[schema.PARTNER_ROW]
        partner = np.where(index >= 0, self.rows[index], -1)
        columns = {**columns, schema.PARTNER_ROW: partner}
        lost = (index >= 0) & ((partner < 0) | ~self.facts.usable[partner])
        if lost.any():
            kept = np.flatnonzero(~lost)
            if not len(kept):
                raise ValueError(f"all reinforcements of row {row} are mixed with images that are not used")
            chosen = kept[np.searchsorted(kept, np.arange(len(lost))) % len(kept)]
            columns = {name: values[chosen] for name, values in columns.items()}
            partner = columns[schema.PARTNER_ROW]
        mixed = partner >= 0
        if self._crops_source:
            self._check_crops(row, columns[Crop.field], self.facts.sizes[row])
            if mixed.any():
                self._check_crops(row, columns[PARTNER + Crop.field][mixed], self.facts.sizes[partner[mixed]])
        if self.labels is not None:
            top = columns[FIELDS[0]][~mixed, 0]
            self._compared += len(top)
            self._agreeing += int((top == self.labels[row]).sum())
        return columns

    @staticmethod
    def _check_crops(row: int, boxes: NDArray[Any], sizes: NDArray[Any]) -> None:
        if (boxes[:, :2] + boxes[:, 2:] > sizes).any():
            raise ValueError(
                f"a crop reaches beyond the image that it is for (row {row} of the dataset, or a partner). Either "
                "the id map does not lead to the images that were reinforced, or they have been resized since"
            )

    def check_labels(self) -> None:
        """Raises a ValueError if what was joined so far hardly agrees with the labels."""
        if self._compared and self._agreeing < MIN_AGREEMENT * self._compared:
            raise ValueError(
                f"The teacher's most likely class is the label of the image for only {self._agreeing} of "
                f"{self._compared} views. Either the id map does not lead to the images that were reinforced, or the "
                "classes are in another order; with label_column='' this is not checked."
            )
