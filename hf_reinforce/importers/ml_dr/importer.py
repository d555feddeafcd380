"""Imports reinforced datasets that the original implementation (apple/ml-dr) published; see `docs/import.md`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray

from hf_reinforce import images
from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.importers.ml_dr.config import OriginalConfig, read_config
from hf_reinforce.importers.ml_dr.shards import Import
from hf_reinforce.importers.ml_dr.unpickling import read_members
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.sources.image_source import recorded_source
from hf_reinforce.store.config import PixelContract, ReinforcementConfig
from hf_reinforce.store.pixel_contract import library_versions
from hf_reinforce.targets import ClassDistribution


def import_ml_dr(
    archives: Sequence[str | Path],
    dataset: Dataset,
    output_dir: str | Path,
    *,
    id_map: Sequence[int] | NDArray[np.int64] | None = None,
    policy: AugmentationPolicy | None = None,
    teachers: Sequence[str] = (),
    num_classes: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    source_name: str | None = None,
    source_config: str | None = None,
    source_revision: str | None = None,
    split: str = "train",
    shard_size: int | None = None,
) -> Path:
    """Converts archives of the original implementation into a folder that is a Hub repository.

    Run again after an interruption, it goes on where it was.

    Args:
        archives: tar or tar.gz files or extracted folders of one kind. If there are several, or several folders inside
            one, the reinforcements of each image are put one behind the other.
        dataset: the images that were reinforced, one split.
        output_dir: folder of the Hub repository; the shards go to a subfolder with the policy's name.
        id_map: for each index of the archive, the row of the dataset; -1 leaves the image out. Default: the same.
            See `ml_dr.images.image_folder_order`.
        policy: what the views were made with; default: as the archive's configuration says.
        teachers: names of the teachers; default: those in the archive's configuration.
        num_classes: classes of the targets; default those of the label column, else of the archive.
        image_column, label_column: as for `reinforce`.
        source_name, source_config, source_revision, split: as for `reinforce`.
        shard_size: rows per Parquet file, default so many that a shard has about 2^20 reinforcements, at most 4,096.

    Returns:
        The folder of the configuration, `output_dir / policy.name`.

    Raises:
        UnsafePickleError: if an archive asks for any class or function but NumPy's numbers.
        ValueError: if an archive is damaged or incomplete, or its records, the policy and the images do not belong
            together.
    """
    paths = [Path(archive) for archive in archives]
    missing = [str(path) for path in paths if not path.exists()]
    if missing or not paths or not len(dataset):
        raise ValueError(f"There must be archives and images to import; missing: {missing or 'any'}.")
    where = (source_name, source_config, source_revision, split)
    dataset, source = recorded_source(dataset, image_column, label_column, *where)
    original = OriginalConfig(policy, None, ["unknown"], {}) if policy is not None else _find_config(paths)
    policy = original.policy
    rows = _check_id_map(np.arange(len(dataset)) if id_map is None else np.asarray(id_map), len(dataset))
    label = dataset.features[source.label_column] if source.label_column else None
    names = tuple(label.names) if isinstance(label, ClassLabel) else None
    counts = {count for count in (num_classes, names and len(names), original.num_classes) if count}
    if len(counts) != 1:
        raise ValueError(
            f"The number of classes must be given once or alike: num_classes is {num_classes}, the label column has "
            f"{names and len(names)}, the archive {original.num_classes}."
        )
    described = _describe(teachers or original.teachers, policy, original.normalize)
    target = ClassDistribution.of(counts.pop(), 1).recorded(described, names)
    config = ReinforcementConfig(
        policy=policy,
        num_samples=1,  # as K and shard_size: known when the archives have been read
        targets=(target,),
        seed=0,
        source=source,
        pixels=PixelContract(images.PIXEL_BACKEND, library_versions(), ()),
        shard_size=shard_size or 0,
        shuffled=False,
    )
    folder = Path(output_dir) / policy.name
    run = Import(paths, dataset, rows, config, target, folder)
    run.read()
    run.write()
    return folder


def _find_config(paths: Sequence[Path]) -> OriginalConfig:
    for path in paths:
        for member in read_members(path):
            if member.index is None:
                return read_config(member)
    raise ValueError(f"None of {[path.name for path in paths]} has a config.pth.tar; say which policy it is of.")


def _check_id_map(rows: NDArray[Any], num_rows: int) -> NDArray[np.int64]:
    used = rows[rows >= 0] if rows.ndim == 1 and rows.dtype.kind == "i" else np.zeros(0, dtype=np.int64)
    if not len(used) or rows.min() < -1 or used.max() >= num_rows or len(np.unique(used)) < len(used):
        last = num_rows - 1
        raise ValueError(f"The id map must be a list with a row of its own, 0 to {last}, or -1 for each index.")
    return rows.astype(np.int64)


def _describe(
    names: Sequence[str], policy: AugmentationPolicy, normalize: Mapping[str, list[float]]
) -> tuple[Any, ...]:
    """The teachers as `Teacher.describe` would, as far as they are known."""
    preprocessing = Preprocessing(policy.image_size, interpolation="bilinear").record()
    preprocessing |= {key: numbers for key, numbers in normalize.items() if numbers}
    unknown = {"kind": "ml-dr", "revision": None, "weight_hash": None, "dtype": "float32", "weight": 1.0}
    return tuple({"name": name.strip(), **unknown, "preprocessing": preprocessing} for name in names)
