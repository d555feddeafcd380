"""Training loaders: encoded photos to batches of views and targets, with two workers."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets as tv_datasets
from torchvision import transforms as T
from torchvision.datasets.folder import default_loader
from torchvision.transforms import functional as F

from benchmarks.measure import Measure, Row, Settings, in_own_process, interleave, timed
from benchmarks.original import OriginalDataset
from benchmarks.photos import image_folder, photos_key
from benchmarks.records import both_formats, generate, made_up_teacher
from hf_reinforce import ReinforcedDataset, ReinforcementConfig, load_policy, load_reinforced, schema
from hf_reinforce.replay.sampler import EpochSampler

BATCH_SIZE = 64
NO_BOX_DECODER = "not measured: no libturbojpeg >= 3"


def epoch(settings: Settings, dataset: Any, use: Callable[[Any], Any] | None = None, **kwargs: Any) -> Measure:
    """Measures an epoch of a loader, in ms an image. The workers persist; nothing is done with a batch but `use`."""
    batch_size = min(BATCH_SIZE, len(dataset))
    workers: dict[str, Any] = {"num_workers": settings.workers, "persistent_workers": True}
    loader = torch.utils.data.DataLoader(dataset, batch_size, **workers, **kwargs)

    def iterate() -> None:
        if isinstance(loader.sampler, EpochSampler):
            loader.sampler.set_epoch(loader.sampler.epoch + 1)
        for batch in loader:
            if use is not None:
                use(batch)

    return timed(iterate, len(dataset))


def reinforced_epoch(settings: Settings, policy_name: str) -> Measure:
    """Our loader as `KDTrainer` uses it: uint8 batches (it normalises on the device) with sparse targets."""
    if policy_name == "mixing":
        dataset = mixing_dataset(settings)
    else:
        ours, _ = both_formats(settings, policy_name, settings.pick(400, 3))
        dataset = load_reinforced(str(ours), policy_name, source=settings.photos)
    return epoch(settings, dataset, sampler=EpochSampler(dataset), collate_fn=dataset.collate)


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


def mixing_dataset(settings: Settings) -> Any:
    """The photos reinforced with the `mixing` policy by a teacher that costs nothing."""
    folder = settings.cache / f"mixing-{len(settings.photos)}-{photos_key(settings.photos)}"
    if not (folder / "mixing").exists() or not ReinforcementConfig.load(folder / "mixing").complete:
        teacher, policy = made_up_teacher(settings.image_size), load_policy("mixing", settings.image_size)
        generate(settings.photos, teacher, policy, folder, num_samples=4)
    return load_reinforced(str(folder), "mixing", source=settings.photos)


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
        pixels = self._view(index, params)
        if params[schema.PARTNER_ROW] is None:
            return pixels
        partner_row = params[schema.PARTNER_ROW]
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
    dataset = BothImages(photo_files(settings), mixing_dataset(settings), settings.image_size)
    return epoch(settings, dataset, shuffle=True)


def compare(
    settings: Settings,
    policy_name: str,
    against: str,
    baseline: Callable[[Settings, str], Measure],
    target: float,
    box_target: float | None = None,
) -> list[Row]:
    """Our loader against another one, without box-only decoding and, where the library is there, with it."""
    with ExitStack() as stack:
        variants = {"ours": reinforced_epoch(settings, policy_name), against: baseline(settings, policy_name)}
        if settings.box_decoder is not None:
            box = in_own_process(settings, settings.box_decoder, reinforced_epoch, settings, policy_name)
            variants["ours, box-only decoding"] = stack.enter_context(box)
        medians = interleave(variants, settings.repetitions)
    name = f"training loader, {policy_name}"
    rows = [Row(name, against, medians[against] / medians["ours"], target, medians)]
    if settings.box_decoder is not None:
        ratio = medians[against] / medians["ours, box-only decoding"]
        rows.append(Row(f"{name}, box-only decoding", against, ratio, box_target or target, medians))
    elif box_target is not None:
        rows.append(Row(f"{name}, box-only decoding", against, None, box_target, {}, note=NO_BOX_DECODER))
    return rows


def loader_randaug(settings: Settings) -> list[Row]:
    """Our loader against torchvision's, both with RandAugment and erasing. Medians in ms an image."""
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
