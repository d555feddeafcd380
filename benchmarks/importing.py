"""Importing an archive of the original implementation."""

import shutil
import statistics
import tarfile
import time

from benchmarks.measure import Row, Settings
from benchmarks.records import CLASSES, both_formats
from hf_reinforce import load_policy
from hf_reinforce.importers.ml_dr import import_ml_dr

POLICY = "randaug"


def importing(settings: Settings) -> list[Row]:
    """`import_ml_dr` of a tar with N = 400 compressed records an image, in records a second of CPU time."""
    num_samples = settings.pick(400, 3)
    _, records = both_formats(settings, POLICY, num_samples)
    photos = settings.photos.select(range(min(128, len(settings.photos))))
    archive, folder = settings.cache / f"{POLICY}-{len(photos)}x{num_samples}.tar", settings.cache / "imported"
    with tarfile.open(archive, "w") as tar:
        for row in range(len(photos)):
            tar.add(records / f"{row}.pth.tar", f"reinforced_data/{row}.pth.tar")
    policy, speeds = load_policy(POLICY, settings.image_size), []
    for _ in range(settings.pick(4, 1)):
        shutil.rmtree(folder, ignore_errors=True)
        start = time.process_time()
        import_ml_dr([archive], photos, folder, policy=policy, num_classes=CLASSES, label_column="")
        speeds.append(len(photos) * num_samples / (time.process_time() - start))
    speed = statistics.median(speeds[1:] or speeds)  # the first one warms up
    return [Row("importing", "one core", speed, 10_000, {"records a second": speed}, unit="records/s")]
