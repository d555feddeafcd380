"""What a run will cost, as `estimate` says it."""

import os
import tempfile

import pytest
from datasets import Dataset
from tiny import tiny_dataset, tiny_teacher

from hf_reinforce import reinforce
from hf_reinforce.augmentations.policies import named_policy
from hf_reinforce.generation import estimate as module
from hf_reinforce.generation.estimate import Estimate, estimate
from hf_reinforce.images import ImageError

RRC, OPTIONS = named_policy("rrc", 16), {"num_samples": 3, "top_k": 3}


def test_it_reads_as_text():
    text = str(Estimate("randaug", 1_281_167, 50, seconds=256_233.4, num_bytes=2.1e9, num_files=313))
    assert "1,281,167 images, policy randaug, N = 50: 64,058,350 views" in text
    assert "about 2,100.0 MB: 313 Parquet files, 33 bytes a reinforcement" in text
    assert "250 views/s" in text and "2 days, 23:10:33 on 1, 8:53:49 on 8, 1:06:44 on 64 devices" in text


@pytest.mark.parametrize(("policy", "shard_size", "files"), [("rrc", 320, 1), ("mixing", 50, 5)])
def test_bytes_are_those_of_a_run_and_nothing_is_left(policy, shard_size, files, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    arguments = tiny_dataset(320), tiny_teacher(), named_policy(policy, 16)
    options = {"num_samples": 12, "top_k": 3, "shard_size": shard_size}
    found = estimate(*arguments, **options)
    assert os.listdir(tmp_path / "temporary") == []
    sizes = [path.stat().st_size for path in reinforce(*arguments, tmp_path, **options).glob("*.parquet")]
    assert len(sizes) == found.num_files == files
    assert found.num_bytes == pytest.approx(sum(sizes), rel=0.25)
    assert (found.num_images, found.num_samples) == (320, 12) and found.seconds > 0


def test_a_few_rows_stand_for_the_whole_and_a_slow_teacher_is_asked_less(monkeypatch):
    asked = []

    def run(*arguments, num_samples, **options):
        asked.append((len(arguments[0]), num_samples))
        return reinforce(*arguments, num_samples=num_samples, **options)

    monkeypatch.setattr(module, "reinforce", run)
    found = estimate(tiny_dataset(20), tiny_teacher(), RRC, num_images=10**6, **OPTIONS)
    assert found.num_images == 10**6 and asked == [(20, 1), (20, 1), (20, 3)]
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    estimate(tiny_dataset(70), tiny_teacher(), RRC, **OPTIONS)
    assert asked[3:] == [(64, 1), (64, 1), (64, 2)]


def test_what_is_embedded_is_counted_and_what_is_skipped_is_not():
    data = tiny_dataset(10)
    plain, embedded = (estimate(data, tiny_teacher(), RRC, embed_images=e, **OPTIONS).num_bytes for e in (False, True))
    stored = data.data.column("image").to_pylist()
    assert embedded - plain == pytest.approx(sum(len(item["bytes"]) for item in stored), rel=0.2)
    stored[3:5] = [{"bytes": b"no image", "path": None}] * 2
    broken = Dataset.from_dict({"image": stored, "label": data["label"]}, features=data.features)
    with pytest.raises(ImageError):
        estimate(broken, tiny_teacher(), RRC, **OPTIONS)
    assert estimate(broken, tiny_teacher(), RRC, on_error="skip", **OPTIONS).num_images == 10


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (tiny_dataset(2), {"shard_size": -1}, "^shard_size must be at least 1, not -1"),
        (tiny_dataset(2), {"num_samples": 0}, "^num_samples must be at least 1, not 0"),
        (tiny_dataset(2).select([]), {}, "no rows"),
        (Dataset.from_dict({"label": [0]}), {}, "no image column"),
        (None, {}, "without accelerate launch"),
    ],
)
def test_what_does_not_fit_is_refused(monkeypatch, dataset, options, message):
    monkeypatch.setenv("WORLD_SIZE", "2" if dataset is None else "1")
    with pytest.raises(ValueError, match=message):
        estimate(dataset, tiny_teacher(), RRC, **OPTIONS | options)
