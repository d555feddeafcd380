"""The images that an import joins: their order in the original's dataset, their hashes and their sizes."""

from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from datasets import Image as ImageFeature
from numpy.typing import NDArray
from PIL import ExifTags
from tqdm.auto import tqdm

from hf_reinforce import images
from hf_reinforce.images import ImageError
from hf_reinforce.sources.image_source import ImageSource, find_columns
from hf_reinforce.store.rows import ColumnReader


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


class ImageFacts(NamedTuple):
    """What is known of the source's images, by row.

    Attributes:
        hashes: hashes of the encoded bytes.
        sizes: height and width; None for an image that is not used.
        errors: why an image cannot be used.
    """

    hashes: list[str]
    sizes: list[tuple[int, int] | None]
    errors: dict[int, str]

    @classmethod
    def of(cls, source: ImageSource, rows: NDArray[np.int64]) -> "ImageFacts":
        """Reads the images of some rows, without decoding them."""
        facts = cls([""] * len(source), [None] * len(source), {})
        for row in tqdm(rows.tolist(), desc="Hashing the images", unit="image", unit_scale=True):
            try:
                encoded = source.encoded(row)
                with images.opened(encoded) as image:
                    size, orientation = image.size, image.getexif().get(ExifTags.Base.Orientation, 1)
                if orientation not in (0, 1):
                    raise ImageError(f"it has the EXIF orientation {orientation}, which the original ignored.")
                facts.hashes[row], facts.sizes[row] = images.image_hash(encoded), (size[1], size[0])
            except ImageError as error:
                facts.errors[row] = str(error)
        return facts
