"""Training loaders: encoded photos to batches of views and targets, with two workers. Medians in ms an image."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset, concatenate_datasets
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor
from torchvision import datasets as tv_datasets
from torchvision import transforms as T
from torchvision.datasets.folder import default_loader
from torchvision.transforms import functional as F

from benchmarks.measure import Measure, Row, Settings, faster, in_own_process, interleave, timed
from benchmarks.original import OriginalDataset
from benchmarks.photos import image_folder, photos_key
from benchmarks.records import both_formats, generate, made_up_teacher
from hf_reinforce import ReinforcedDataset, ReinforcementConfig, load_policy, load_reinforced, schema
from hf_reinforce.replay.sampler import EpochSampler, Readers
from hf_reinforce.store.shards import shard_name

BATCH_SIZE = 64


def epoch(settings: Settings, dataset: Any, **kwargs: Any) -> Measure:
    """Measures an epoch of a loader, in ms an image. The workers persist; nothing is done with a batch."""
    workers: dict[str, Any] = {"num_workers": settings.workers, "persistent_workers": True}
    loader = torch.utils.data.DataLoader(dataset, min(BATCH_SIZE, len(dataset)), **workers, **kwargs)

    def iterate() -> None:
        if isinstance(loader.sampler, EpochSampler):
            loader.sampler.set_epoch(loader.sampler.epoch + 1)
        for _ in loader:
            pass

    return timed(iterate, len(dataset))


def our_epoch(settings: Settings, dataset: ReinforcedDataset, **order: Any) -> Measure:
    """Our loader as `KDTrainer` uses it: uint8 batches (it normalises on the device) with sparse targets."""
    return epoch(settings, dataset, sampler=EpochSampler(dataset, **order), collate_fn=dataset.collate)


def reinforced_epoch(settings: Settings, policy_name: str) -> Measure:
    """Our loader of the photos with N = 400 records each; of the mixing policy those of a teacher without costs."""
    if policy_name == "mixing":
        return our_epoch(settings, cheap_dataset(settings, settings.photos, "mixing", settings.image_size)[1])
    ours, _ = both_formats(settings, policy_name, settings.pick(400, 3))
    return our_epoch(settings, load_reinforced(str(ours), policy_name, source=settings.photos))


def cheap_dataset(
    settings: Settings, photos: Dataset, policy_name: str, side: int, num_samples: int = 4, **options: Any
) -> tuple[Path, ReinforcedDataset]:
    """Photos reinforced by a teacher that costs nothing, made once: their folder, and the dataset."""
    folder = settings.cache / f"{policy_name}-{side}-{len(photos)}x{num_samples}-{photos_key(photos)}"
    if not (folder / policy_name).exists() or not ReinforcementConfig.load(folder / policy_name).complete:
        policy = load_policy(policy_name, side)
        generate(photos, made_up_teacher(side), policy, folder, num_samples=num_samples, **options)
    return folder, load_reinforced(str(folder), policy_name, source=photos)


def torchvision_transform(settings: Settings, policy_name: str, to_tensor: Any) -> T.Compose:
    """The transforms of torchvision's reference training, on PIL images, up to the tensor that is erased."""
    crop = [T.RandomResizedCrop(settings.image_size), T.RandomHorizontalFlip()]
    if policy_name == "rrc":
        return T.Compose([*crop, to_tensor])
    return T.Compose([*crop, T.RandAugment(), to_tensor, T.RandomErasing(0.25)])


def torchvision_epoch(settings: Settings, policy_name: str) -> Measure:
    """torchvision's own loader: ImageFolder, PIL, the transforms of its reference training, float batches.

    Normalisation is left out, because our loader leaves it to the device too; in the workers it would cost time.
    """
    folder = image_folder(settings.photos, settings.cache / f"files-{photos_key(settings.photos)}")
    transform = torchvision_transform(settings, policy_name, T.ToTensor())
    return epoch(settings, tv_datasets.ImageFolder(str(folder), transform), shuffle=True)


def original_epoch(settings: Settings, policy_name: str) -> Measure:
    """A loader in the original implementation's format, see `OriginalDataset`; its N = 400 records are the same."""
    _, folder = both_formats(settings, policy_name, settings.pick(400, 3))
    dataset = OriginalDataset(photo_files(settings), folder, settings.image_size)
    return epoch(settings, dataset, shuffle=True)


def photo_files(settings: Settings) -> list[str]:
    """The photos as files, in their order."""
    folder = image_folder(settings.photos, settings.cache / f"files-{photos_key(settings.photos)}")
    return [str(file) for file in sorted(folder.rglob("*.jpg"), key=lambda file: file.name)]


class BothImages(torch.utils.data.Dataset[Tensor]):
    """Mixed samples as they are usually replayed: each sample decodes its image and its partner, and mixes them.

    The records are read as ours are, so that only the work on images differs.
    """

    def __init__(self, files: list[str], records: ReinforcedDataset, image_size: int) -> None:
        self.files, self.records, self.image_size = files, records, image_size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        slot = int(torch.randint(self.records.config.num_samples, ()))
        params = self.records.params(index, slot)
        pixels, partner_row = self._view(index, params), params[schema.PARTNER_ROW]
        if partner_row is None:
            return pixels
        partner = self._view(partner_row, self.records.params(partner_row, slot))
        if params["mixup"] is not None:
            lam = params["mixup"]["lam"]
            pixels = lam * pixels + (1 - lam) * partner
        if params["cutmix"] is not None:
            top, left, height, width = (params["cutmix"][key] for key in ("top", "left", "height", "width"))
            box = (slice(None), slice(top, top + height), slice(left, left + width))
            pixels[box] = partner[box]
        return pixels

    def _view(self, index: int, params: dict[str, Any]) -> Tensor:
        crop = [params["crop"][key] for key in ("top", "left", "height", "width")]
        image = F.resized_crop(default_loader(self.files[index]), *crop, [self.image_size, self.image_size])
        pixels: Tensor = F.to_tensor(F.hflip(image) if params["hflip"] else image)
        return pixels


def both_images_epoch(settings: Settings, policy_name: str) -> Measure:
    """A loader of mixed samples that decodes both images of each, see `BothImages`."""
    _, records = cheap_dataset(settings, settings.photos, policy_name, settings.image_size)
    return epoch(settings, BothImages(photo_files(settings), records, settings.image_size), shuffle=True)


def compare(
    settings: Settings,
    policy_name: str,
    against: str,
    baseline: Callable[[Settings, str], Measure],
    target: float,
    box_target: float | None = None,
) -> list[Row]:
    """Our loader against another one, without box-only decoding and, where the library is there, with it."""
    name, boxed = f"training loader, {policy_name}", "ours, box-only decoding"
    with ExitStack() as stack:
        variants = {"ours": reinforced_epoch(settings, policy_name), against: baseline(settings, policy_name)}
        if settings.box_decoder is not None:
            box = in_own_process(settings, settings.box_decoder, reinforced_epoch, settings, policy_name)
            variants[boxed] = stack.enter_context(box)
        medians = interleave(variants, settings.repetitions)
    rows = [faster(name, against, medians, "ours", target)]
    if settings.box_decoder is not None:
        rows.append(faster(f"{name}, box-only decoding", against, medians, boxed, box_target or target))
    elif box_target is not None:
        missing = "not measured: no libturbojpeg >= 3"
        rows.append(Row(f"{name}, box-only decoding", against, None, box_target, {}, note=missing))
    return rows


def loader_randaug(settings: Settings) -> list[Row]:
    """Our loader against torchvision's, both with RandAugment and erasing."""
    return compare(settings, "randaug", "torchvision's loader", torchvision_epoch, 1.4, 1.6)


def loader_rrc(settings: Settings) -> list[Row]:
    """The same with crops and flips only."""
    return compare(settings, "rrc", "torchvision's loader", torchvision_epoch, 2.1, 2.6)


def loader_original(settings: Settings) -> list[Row]:
    """Our loader against one in the original implementation's format."""
    against = "a loader of one torch.save an image"
    rows = compare(settings, "randaug", against, original_epoch, 2.2)
    return rows + compare(settings, "rrc", against, original_epoch, 4.0)


def loader_mixing(settings: Settings) -> list[Row]:
    """Mixed samples: ours decodes each image of a batch once and mixes on the device."""
    return compare(settings, "mixing", "decoding both images per sample", both_images_epoch, 2.5)


def repeated(settings: Settings) -> list[Row]:
    """Epochs with 2 and 4 augmentations of an image in one batch, which is decoded once, against plain ones."""
    ours, _ = both_formats(settings, "rrc", settings.pick(50, 3))
    dataset = load_reinforced(str(ours), "rrc", source=settings.photos)
    variants = {f"repeats={repeats}": our_epoch(settings, dataset, repeats=repeats) for repeats in (1, 2, 4)}
    medians = interleave(variants, settings.repetitions)
    first, *others = variants
    name = "repeated augmentation, rrc"
    return [faster(f"{name}, {each}", "plain epochs", medians, each, 1.0, other=first) for each in others]


def cached(settings: Settings) -> list[Row]:
    """Images of 32 pixels, decoded once into shared memory, against the loader, which decodes them at every epoch."""
    policy_name, side, rows = "small_randaug", 32, []
    for photo in settings.photos:
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(photo["image"]["bytes"])) as opened:
            opened.convert("RGB").resize((side, side)).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": photo["label"]})
    thumbnails = Dataset.from_list(rows).cast_column("image", ImageFeature(decode=False))
    dataset, other = (cheap_dataset(settings, thumbnails, policy_name, side)[1] for _ in range(2))
    other.cache_images()
    variants = {"loader": our_epoch(settings, dataset), "cached images": our_epoch(settings, other)}
    medians = interleave(variants, settings.repetitions)
    name = f"cached images, {policy_name}, {side} px"
    return [faster(name, "the loader", medians, "cached images", 1.0, other="loader")]


def streaming(settings: Settings) -> list[Row]:
    """An epoch of remote rows, from a folder and over HTTP on loopback, against one of the same rows, memory-mapped.

    Who serves takes from the same cores.
    """
    photos = concatenate_datasets([settings.photos] * settings.pick(4, 1))
    num_samples = settings.pick(50, 3)
    plus, dataset = cheap_dataset(settings, photos, "rrc", settings.image_size, num_samples, shard_size=256)
    source = settings.cache / f"photos-{len(photos)}-{photos_key(photos)}"
    for start in range(0, len(photos), len(settings.photos)):
        if not (file := source / shard_name("train", start, len(photos))).exists():
            source.mkdir(exist_ok=True)
            settings.photos.to_parquet(str(file))
    variants = {"local": our_epoch(settings, dataset), "folder": stream_epoch(settings, str(plus), str(source))}
    for measure in variants.values():
        measure()  # starts the workers, before there are threads that answer requests
    with over_http(settings, {"photos": source, "plus": plus}) as variants["HTTP"]:
        medians = interleave(variants, settings.repetitions)
    return [
        faster(f"streaming from {where}", "local rows", medians, variant, 0.9, other="local")
        for variant, where in (("folder", "a folder"), ("HTTP", "a Hub on loopback"))
    ]


def stream_epoch(settings: Settings, name: str, source: str) -> Measure:
    """Measures an epoch of remote rows; the workers persist."""
    stream = load_reinforced(name, source=source, streaming=True)
    return our_epoch(settings, stream, readers=Readers(min(BATCH_SIZE, len(stream)), max(1, settings.workers)))


@contextmanager
def over_http(settings: Settings, folders: dict[str, Path]) -> Iterator[Any]:
    """The stream of two repositories of a Hub, the stand-in of the tests, in a process whose clients know of it."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from hub_server import TOKEN, HubServer

    sys.path.pop()
    with HubServer() as hub:
        for name, folder in folders.items():
            files = [file for file in folder.rglob("*") if file.is_file()]
            contents = {str(file.relative_to(folder)): file.read_bytes() for file in files}
            hub.add_repository("dataset", f"me/{name}", contents)
        options = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(settings.cache / "hub")}
        spawned = replace(settings, start_method="spawn")  # the clients read all this when they are imported
        with (
            patch.dict(os.environ, {**options, **online, "HF_HUB_CACHE": str(settings.cache / "hub" / "hub")}),
            in_own_process(spawned, None, stream_epoch, settings, "me/plus", "me/photos") as measure,
        ):
            yield measure
