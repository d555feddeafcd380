"""A long training does not grow, the soak test notices one that does, and every reinforcement is used as often."""

import json
import mmap
import os
from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from tiny import stored_rows, tiny_dataset, tiny_teacher
from torch.utils.data import BatchSampler

from benchmarks import soak
from hf_reinforce import ReinforcedDataset, ReinforcementConfig, load_policy, reinforce
from hf_reinforce.replay.sampler import EpochSampler

IMAGES, COUNTED = 32, ("handles", "threads", "processes")


kept = []


class Leaking(ReinforcedDataset):
    """Keeps 8 MiB and a file handle of every batch."""

    def __getitems__(self, indices):
        fresh = mmap.mmap(-1, 2**23, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # an array might reuse memory of the fork
        fresh.write(b"x" * 2**23)
        kept.append((fresh, os.open(os.devnull, os.O_RDONLY)))
        return super().__getitems__(indices)


def leak(dataset):
    dataset.__class__ = Leaking
    return dataset


def test_training_keeps_its_handles_threads_and_processes(tmp_path):
    samples = soak.soak(tmp_path, lambda sample: sample["images"] >= 14 * IMAGES, IMAGES)
    assert [sample["images"] for sample in samples] == [IMAGES * epoch for epoch in range(1, 15)]
    assert len(list((tmp_path / "student").glob("checkpoint-*"))) == 1, "it is saved as it goes"
    found = soak.growth(samples)
    assert all(found[name]["ok"] and found[name]["grew"] == 0 for name in COUNTED), found
    assert found["processes"]["first"] == 1 + soak.WORKERS, "workers of the training stay"
    assert all(sample["main"] > 2**26 and sample["workers"] > 2**26 for sample in samples)


def test_leak_of_memory_and_handles_in_a_worker_is_noticed(tmp_path):
    samples = soak.soak(tmp_path, lambda sample: sample["images"] >= 8 * IMAGES, IMAGES, leak)
    found = soak.growth(samples)
    assert {name for name, row in found.items() if not row["ok"]} >= {"workers", "handles"}
    assert found["threads"]["ok"] and found["processes"]["ok"]
    assert found["workers"]["grew"] > 4 * 2**23


def made_up(**slopes):
    """Samples of 200 epochs of 10,000 images, which warm up for 40, have some noise, and grow by so much per image."""
    noise = np.random.default_rng(0)
    levels = {"main": 2**29, "workers": 2**30, "handles": 50, "threads": 20, "processes": 5}

    def sample(epoch):
        warm = 1 if epoch > 40 else 0.5 + epoch / 80
        values = {name: warm * level + slopes.get(name, 0) * 10_000 * epoch for name, level in levels.items()}
        noisy = {name: values[name] + noise.normal(0, 2**20) for name in ("main", "workers")}
        return {"seconds": 10.0 * epoch, "images": 10_000 * epoch, **values, **noisy}

    return [sample(epoch) for epoch in range(1, 201)]


@pytest.mark.parametrize(
    ("slopes", "grown"),
    [
        ({"main": 0.5}, set()),
        ({"main": 8.0}, {"main"}),
        ({"workers": 8.0, "handles": 1e-4}, {"workers", "handles"}),
        ({"threads": 1e-4, "processes": 1e-4}, {"threads", "processes"}),
    ],
)
def test_verdict(slopes, grown, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(soak, "soak", lambda *args: made_up(**slopes))
    monkeypatch.setattr("sys.argv", ["soak", "--minutes", "1", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        soak.main()
    assert end.value.code == bool(grown)
    content = json.loads((tmp_path / "soak.json").read_text())
    assert {name for name, row in content["verdict"].items() if not row["ok"]} == grown
    assert len(content["samples"]) == 200 and (tmp_path / "soak.png").stat().st_size > 10_000
    assert capsys.readouterr().out.count("GROWS") == len(grown)


# -- evenness -----------------------------------------------------------------------------------------------------

N, ROWS, EPOCHS = 7, 14, 1001


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("plus"), tiny_dataset(ROWS)

    def replay(policy):
        options = {"num_samples": N, "top_k": 2, "num_workers": 1}
        path = reinforce(source, tiny_teacher(), load_policy(policy, 16), folder, **options)
        return ReinforcedDataset(stored_rows(path), ReinforcementConfig.load(path), source)

    return replay


@pytest.mark.parametrize(
    ("policy", "repeats", "ranks"),
    [("randaug", 1, 1), ("mixing_randaug", 1, 2), ("randaug", N, 2)],
)
def test_every_reinforcement_is_used_as_often_as_any_other(policy, repeats, ranks, replay):
    dataset = replay(policy)
    sampler = EpochSampler(dataset, repeats=repeats)
    batches = BatchSampler(sampler, ROWS // 2, drop_last=False)
    used = Counter()
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        shards = [list(BatchSamplerShard(batches, ranks, rank)) for rank in range(ranks)]
        assert len({len(shard) for shard in shards}) == 1
        epochs, positions = np.divmod(np.array(shards).reshape(-1), ROWS)
        used.update(zip(positions.tolist(), dataset.slots(epochs, positions).tolist(), strict=True))
        if epoch == 999 and repeats == 1:
            assert len(used) == ROWS * N and set(used.values()) == {1000 // N, 1000 // N + 1}
    assert len(used) == ROWS * N and set(used.values()) == {EPOCHS // N}
