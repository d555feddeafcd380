import os
import tempfile
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, concatenate_datasets
from tiny import tiny_dataset, tiny_teacher

from hf_reinforce import reinforce
from hf_reinforce.augmentations.policies import named_policy
from hf_reinforce.generation import estimate as module
from hf_reinforce.generation import reinforce as run_of_files
from hf_reinforce.generation.estimate import Estimate, estimate
from hf_reinforce.images import ImageError

KNOWN = Estimate(
    policy="randaug",
    num_images=1_281_167,
    num_samples=50,
    measured_views=1000,
    measured_seconds=4.0,
    teacher_seconds=3.6,
    bytes_per_reinforcement=32.0,
    bytes_per_image=20.0,
    bytes_per_shard=50_000.0,
    arrow_bytes=100.0,
    shard_size=4096,
    device="cpu",
)


def test_totals_follow_from_what_was_measured():
    assert KNOWN.num_views == 64_058_350
    fixed = 313 * 50_000 + 1_000_000  # 312 full shards and one more, card and pictures
    assert KNOWN.num_bytes == 64_058_350 * 32 + 1_281_167 * 20 + fixed
    assert KNOWN.hours() == pytest.approx(64_058_350 / 250 / 3600)
    assert KNOWN.hours(8) == pytest.approx(KNOWN.hours() / 8)
    assert replace(KNOWN, bytes_per_image=110_000.0).num_bytes == 64_058_350 * 32 + 1_281_167 * 110_000 + fixed


def test_it_reads_as_text():
    text = str(KNOWN)
    assert "1,281,167 images, policy randaug, N = 50: 64,058,350 views" in text
    assert "about 2.1 GB: 32 bytes a reinforcement, 20 bytes an image, 50.0 KB a shard, and 1.0 MB of card" in text
    assert "313; where they are opened, 6.4 GB in the cache of datasets" in text
    assert (
        "250 views/s on cpu, 90 % of the 278 views/s of the teacher alone (measured on 1,000 views in 4.0 s)" in text
    )
    assert "71.2 h on 1, 8.9 h on 8, 1.1 h on 64 devices like this one" in text
    assert ", 110.0 KB an image" in str(replace(KNOWN, bytes_per_image=110_000.0))
    assert "3.8 min on 1, 29 s on 8, 4 s on 64" in str(replace(KNOWN, num_images=1_150))


@pytest.mark.parametrize("policy", ["randaug", "mixing"])
def test_a_measurement_leaves_nothing_behind(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = estimate(tiny_dataset(100), tiny_teacher(), named_policy(policy, 16), num_samples=3, top_k=3)
    assert (found.num_images, found.num_samples, found.num_views) == (100, 3, 300)
    assert found.measured_views == 3 * 64, "a block of images, every reinforcement"
    assert found.measured_seconds > 0 and found.teacher_seconds > 0 and 0 < found.bytes_per_image < 40
    assert os.listdir(tmp_path) == []


def test_bytes_are_those_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_of_files, "write_preview", lambda *arguments: None)
    monkeypatch.setattr(run_of_files, "write_dataset_card", lambda *arguments: None)
    monkeypatch.setattr(module, "_DESCRIPTION", 0)
    data, teacher, policy = tiny_dataset(320), tiny_teacher(), named_policy("rrc", 16)
    for shard_size, count in ((320, 1), (50, 5)):
        options = {"num_samples": 12, "top_k": 3, "shard_size": shard_size}
        found = estimate(data, teacher, policy, **options)
        folder = reinforce(data, teacher, policy, tmp_path / str(count), seed=0, **options)
        shards = list(folder.glob("*.parquet"))
        sizes = [shard.stat().st_size for shard in shards]
        assert len(sizes) == found.num_files == count
        assert found.num_bytes == pytest.approx(sum(sizes), rel=0.1)
        tables = [pq.read_table(shard, columns=["augmentation_params", "teacher_logits"]) for shard in shards]
        assert found.num_views * found.arrow_bytes == pytest.approx(sum(table.nbytes for table in tables), rel=0.1)


def test_one_reinforcement_of_each_image_tells_the_bytes_of_many(monkeypatch):
    data, teacher, policy = tiny_dataset(64), tiny_teacher(), named_policy("rrc", 16)
    many = estimate(data, teacher, policy, num_samples=16, top_k=3)
    monkeypatch.setattr(module, "_SECONDS", 0.0)  # no time for more than one
    one = estimate(data, teacher, policy, num_samples=16, top_k=3)
    assert (many.measured_views, one.measured_views) == (16 * 64, 64)
    assert one.bytes_per_reinforcement == pytest.approx(many.bytes_per_reinforcement, rel=0.6)
    assert one.bytes_per_image == pytest.approx(many.bytes_per_image, rel=0.1)


def test_a_few_rows_stand_for_the_whole():
    found = estimate(
        tiny_dataset(20), tiny_teacher(), named_policy("rrc", 16), num_samples=2, top_k=3, num_images=10**6
    )
    assert (found.num_images, found.num_views, found.measured_views) == (10**6, 2 * 10**6, 40)


def test_images_that_cannot_be_decoded():
    options = {"num_samples": 2, "top_k": 3, "embed_images": True}
    rows = [{"image": {"bytes": b"no image", "path": None}, "label": 0}] * 2
    broken = Dataset.from_list(rows, features=tiny_dataset(1).features)
    data = concatenate_datasets([tiny_dataset(10), broken])
    with pytest.raises(ImageError):
        estimate(data, tiny_teacher(), named_policy("rrc", 16), **options)
    found = estimate(data, tiny_teacher(), named_policy("rrc", 16), on_error="skip", **options)
    assert found.measured_views == 20 and found.num_images == 12
    with pytest.raises(ValueError, match="None of the 2 images that were tried can be decoded"):
        estimate(broken, tiny_teacher(), named_policy("rrc", 16), on_error="skip", **options)


def test_embedded_images_are_counted():
    data = tiny_dataset(10)
    found = estimate(data, tiny_teacher(), named_policy("rrc", 16), num_samples=1, top_k=3, embed_images=True)
    sizes = [len(item["bytes"]) for item in data.data.column("image").to_pylist()]
    assert found.bytes_per_image >= sum(sizes) / len(sizes)
    assert found.bytes_per_image == pytest.approx(sum(sizes) / len(sizes), rel=0.1)


def test_a_slow_teacher_is_asked_less(monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    found = estimate(tiny_dataset(70), tiny_teacher(), named_policy("rrc", 16), num_samples=50, top_k=3)
    assert found.measured_views == 64 and found.num_views == 3500


@pytest.mark.parametrize("name", ["num_samples", "shard_size", "batch_size"])
@pytest.mark.parametrize("count", [0, -1])
def test_counts_are_refused_as_in_a_run(tmp_path, name, count):
    options = {"num_samples": 1, "top_k": 3, name: count}
    arguments = tiny_dataset(2), tiny_teacher(), named_policy("rrc", 16)
    for call in (lambda: estimate(*arguments, **options), lambda: reinforce(*arguments, tmp_path, **options)):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1, not {count}\\.$"):
            call()
    assert os.listdir(tmp_path) == []


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        estimate(tiny_dataset(2).select([]), tiny_teacher(), named_policy("rrc", 16), num_samples=1)
    with pytest.raises(ValueError, match="no image column"):
        estimate(Dataset.from_dict({"label": [0]}), tiny_teacher(), named_policy("rrc", 16), num_samples=1)
