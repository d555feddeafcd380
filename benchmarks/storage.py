"""What is stored: reading a record, bytes of a record, and importing records of the original implementation."""

import shutil
import statistics
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from benchmarks import original
from benchmarks.measure import Row, Settings, faster, interleave, timed
from benchmarks.photos import photos_key
from benchmarks.records import CLASSES, both_formats, generate, made_up_teacher
from hf_reinforce import Teacher, load_policy, load_reinforced, load_teacher
from hf_reinforce.importers.ml_dr import import_ml_dr
from hf_reinforce.local_copies import resolve
from hf_reinforce.store.atomic import whole_file
from hf_reinforce.targets.class_distribution import KL_BOUND, Targets, rounding_kl, top_k_targets

TEACHER = "timm/tf_efficientnet_lite0.in1k"


def record_read(settings: Settings) -> list[Row]:
    """One record out of N = 400, in batches of 256 random ones. Medians in us a record.

    The original unpickles the file of an image, with all its records, to use one.
    """
    count, num_samples = settings.pick(256, 8), settings.pick(400, 3)
    ours, folder = both_formats(settings, "randaug", num_samples)
    dataset = load_reinforced(str(ours), "randaug", source=settings.photos)
    rng = np.random.default_rng(0)

    def read_ours() -> None:
        positions, slots = rng.integers(len(dataset), size=count), rng.integers(num_samples, size=count)
        for position, slot in zip(positions.tolist(), slots.tolist(), strict=True):
            dataset.params(position, slot), dataset.target(position, slot)

    def read_original() -> None:
        for position in rng.integers(len(dataset), size=count).tolist():
            original.read_record(folder, position)[0]

    variants = {"ours": timed(read_ours, count, 1e6), "one torch.save an image": timed(read_original, count, 1e6)}
    medians = interleave(variants, settings.repetitions)
    name = "reading a record, N = 400"
    return [
        faster(name, "one torch.save an image", medians, "ours", 500),
        Row(name, "the clock", medians["ours"], 3, medians, at_most=True, unit="us"),
    ]


class Recorder(nn.Module):
    """A network that remembers its answers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.answers: list[Targets] = []

    def forward(self, pixels: Tensor) -> Tensor:
        output: Any = self.network(pixels)
        logits: Tensor = output.logits if hasattr(output, "logits") else output
        self.answers.append(top_k_targets(logits.float().log_softmax(-1), 10))
        return logits


def record_bytes(settings: Settings) -> list[Row]:
    """Bytes on disk of a reinforcement, `randaug`, K = 10, N = 50, of a real teacher. Medians in bytes each.

    Ours are Parquet and configuration. The original's are the same records with the teacher's outputs not rounded, one
    file an image, in a tar.gz. Both are kept, so a second run is quick. Without a local copy of the teacher one is
    made up.
    """
    count, num_samples = settings.pick(settings.reinforced_images, 4), settings.pick(50, 2)
    photos = settings.photos.select(range(min(count, len(settings.photos))))
    folder = settings.cache / f"bytes-{len(photos)}x{num_samples}-{photos_key(photos)}"
    answers_file, tar_file = folder / "answers.pt", folder / "original.tar.gz"
    if not tar_file.exists():
        torch.save(_reinforce_and_record(settings, photos, folder / "ours", num_samples), answers_file)
        _write_tar(load_reinforced(str(folder / "ours"), source=photos), torch.load(answers_file), tar_file)
    exact = torch.load(answers_file)
    dataset = load_reinforced(str(folder / "ours"), source=photos)
    worst, views = 0.0, len(photos) * num_samples
    for position in range(len(photos)):
        stored = [dataset.target(position, slot) for slot in range(num_samples)]
        names = ("target_label", "target_value", "target_tail")
        found = Targets(*(torch.from_numpy(np.stack([item[name] for item in stored])) for name in names))
        truth = Targets(*(exact[name][position] for name in ("label", "value", "tail")))
        assert torch.equal(found.label.long(), truth.label)
        worst = max(worst, float(rounding_kl(truth, found).max()))
    files = [file for file in (folder / "ours").glob("*/*") if file.suffix in (".parquet", ".json")]
    medians = {
        "ours": sum(file.stat().st_size for file in files) / views,
        "the original's tar.gz": tar_file.stat().st_size / views,
    }
    row = faster("bytes per reinforcement, randaug, N = 50", "the original's tar.gz", medians, "ours", 2.8)
    name, against = "rounding of stored targets, worst record", "the teacher's own outputs"
    note = f"{views:,} records of {_teacher_name(settings) or 'a made-up teacher'}"
    rounding = Row(name, against, worst, KL_BOUND, {"KL": worst}, at_most=True, unit="nats", note=note)
    return [replace(row, note=f"{len(photos)} photos"), rounding]


def importing(settings: Settings) -> list[Row]:
    """`import_ml_dr` of a tar with N = 400 compressed records an image, in records a second of CPU time."""
    num_samples = settings.pick(400, 3)
    _, records = both_formats(settings, "randaug", num_samples)
    photos = settings.photos.select(range(min(128, len(settings.photos))))
    archive, folder = settings.cache / f"randaug-{len(photos)}x{num_samples}.tar", settings.cache / "imported"
    with tarfile.open(archive, "w") as tar:
        for row in range(len(photos)):
            tar.add(records / f"{row}.pth.tar", f"reinforced_data/{row}.pth.tar")
    policy, speeds = load_policy("randaug", settings.image_size), []
    for _ in range(settings.pick(4, 1)):
        shutil.rmtree(folder, ignore_errors=True)
        start = time.process_time()
        import_ml_dr([archive], photos, folder, policy=policy, num_classes=CLASSES, label_column="")
        speeds.append(len(photos) * num_samples / (time.process_time() - start))
    speed = statistics.median(speeds[1:] or speeds)  # the first one warms up
    return [Row("importing", "one core", speed, 20_000, {"records a second": speed}, unit="records/s")]


def _teacher_name(settings: Settings) -> str | None:
    return TEACHER if resolve(TEACHER) != TEACHER and not settings.tiny else None


def _reinforce_and_record(settings: Settings, photos: Dataset, folder: Path, num_samples: int) -> dict[str, Tensor]:
    """Reinforces and returns what the teacher said before it was rounded, [image, slot, ...]."""
    name = _teacher_name(settings)
    teacher = made_up_teacher(settings.image_size) if name is None else load_teacher(name)
    recorder = Recorder(teacher.members[0].model)
    teacher = Teacher([replace(teacher.members[0], model=recorder)])
    options = {"num_samples": num_samples, "device": settings.device}
    generate(photos, teacher, load_policy("randaug", settings.image_size), folder, **options)
    batches = recorder.answers[-num_samples * -(-len(photos) // 64) :]  # the first answers were about no image
    parts: dict[str, list[Tensor]] = {"label": [], "value": [], "tail": []}
    for start in range(0, len(batches), num_samples):  # a block of images, slot after slot
        for name, part in parts.items():
            part.append(torch.stack([getattr(batch, name).cpu() for batch in batches[start : start + num_samples]], 1))
    return {name: torch.cat(part) for name, part in parts.items()}


def _write_tar(dataset: Any, exact: dict[str, Tensor], path: Path) -> None:
    files = path.parent / "original"
    files.mkdir(exist_ok=True)
    for position in range(len(dataset)):
        probs, labels = exact["value"][position].exp().tolist(), exact["label"][position].tolist()
        params = [dataset.params(position, slot) for slot in range(len(probs))]
        records = [original.to_record(*record) for record in zip(params, probs, labels, strict=True)]
        original.write_record(files, position, records)
    with whole_file(path) as temporary, tarfile.open(temporary, "w:gz") as tar:
        tar.add(files, "reinforced_data")
