"""Repeated augmentation: several augmentations of an image in one batch, which is decoded once for all of them."""

from benchmarks.loader import epoch
from benchmarks.measure import Row, Settings, interleave
from benchmarks.records import both_formats
from hf_reinforce import load_reinforced
from hf_reinforce.replay.sampler import EpochSampler

POLICY = "rrc"


def repeated(settings: Settings) -> list[Row]:
    """Epochs with 2 and 4 augmentations of an image in a row against plain ones. Medians in ms a sample."""
    ours, _ = both_formats(settings, POLICY, settings.pick(50, 3))
    dataset = load_reinforced(str(ours), POLICY, source=settings.photos)
    variants = {
        f"repeats={repeats}": epoch(
            settings, dataset, sampler=EpochSampler(dataset, repeats=repeats), collate_fn=dataset.collate
        )
        for repeats in (1, 2, 4)
    }
    medians = interleave(variants, settings.repetitions)
    plain = medians["repeats=1"]
    return [
        Row(f"repeated augmentation, {POLICY}, {variant}", "plain epochs", plain / medians[variant], 1.0, medians)
        for variant in ("repeats=2", "repeats=4")
    ]
