import os
import tempfile

import pytest
from datasets import Dataset, concatenate_datasets
from tiny import tiny_dataset, tiny_teacher

from hf_reinforce import reinforce
from hf_reinforce.augmentations.policies import named_policy
from hf_reinforce.generation import estimate as module
from hf_reinforce.generation.estimate import Estimate, estimate
from hf_reinforce.images import ImageError

RRC = named_policy("rrc", 16)


def test_it_reads_as_text():
    text = str(
        Estimate("randaug", num_images=1_281_167, num_samples=50, seconds=256_233.4, num_bytes=2.1e9, num_files=313)
    )
    assert "1,281,167 images, policy randaug, N = 50: 64,058,350 views" in text
    assert "about 2,100.0 MB: 313 Parquet files, 33 bytes a reinforcement" in text
    assert "250 views/s" in text and "2 days, 23:10:33 on 1, 8:53:49 on 8, 1:06:44 on 64 devices" in text
    assert "measured on a few images" in text


@pytest.mark.parametrize(("policy", "shard_size", "files"), [("rrc", 320, 1), ("rrc", 50, 5), ("mixing", 320, 1)])
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
    options = {"num_samples": 3, "top_k": 3}
    found = estimate(tiny_dataset(20), tiny_teacher(), RRC, num_images=10**6, **options)
    assert found.num_images == 10**6 and asked == [(20, 1), (20, 1), (20, 3)]
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    estimate(tiny_dataset(70), tiny_teacher(), RRC, **options)
    assert asked[3:] == [(64, 1), (64, 1), (64, 2)]


def test_images_that_cannot_be_decoded():
    options = {"num_samples": 2, "top_k": 3}
    rows = [{"image": {"bytes": b"no image", "path": None}, "label": 0}] * 2
    broken = Dataset.from_list(rows, features=tiny_dataset(1).features)
    data = concatenate_datasets([tiny_dataset(10), broken])
    with pytest.raises(ImageError):
        estimate(data, tiny_teacher(), RRC, **options)
    assert estimate(data, tiny_teacher(), RRC, on_error="skip", **options).num_images == 12
    with pytest.raises(ValueError, match="could be decoded"):
        estimate(broken, tiny_teacher(), RRC, on_error="skip", **options)


def test_embedded_images_are_counted():
    data = tiny_dataset(10)
    options = {"num_samples": 1, "top_k": 3}
    plain, embedded = (estimate(data, tiny_teacher(), RRC, embed_images=e, **options).num_bytes for e in (False, True))
    sizes = [len(item["bytes"]) for item in data.data.column("image").to_pylist()]
    assert embedded - plain == pytest.approx(sum(sizes), rel=0.2)


@pytest.mark.parametrize("name", ["num_samples", "shard_size", "batch_size"])
@pytest.mark.parametrize("count", [0, -1])
def test_counts_are_refused_as_in_a_run(tmp_path, name, count):
    options = {"num_samples": 1, "top_k": 3, name: count}
    arguments = tiny_dataset(2), tiny_teacher(), RRC
    for call in (lambda: estimate(*arguments, **options), lambda: reinforce(*arguments, tmp_path, **options)):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1, not {count}\\.$"):
            call()
    assert os.listdir(tmp_path) == []


def test_what_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="no rows"):
        estimate(tiny_dataset(2).select([]), tiny_teacher(), RRC, num_samples=1)
    with pytest.raises(ValueError, match="no image column"):
        estimate(Dataset.from_dict({"label": [0]}), tiny_teacher(), RRC, num_samples=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="without accelerate launch"):
        estimate(tiny_dataset(2), tiny_teacher(), RRC, num_samples=1)
