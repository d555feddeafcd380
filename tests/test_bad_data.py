"""Bad images and files, see `bad_images`: each is an error that names its row, a recorded skip, or a picture."""

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from bad_images import MEGABYTES, corpus, paths
from datasets import Dataset, DatasetInfo, Features, Image
from tiny import encode_image, tiny_image, tiny_teacher

from hf_reinforce import ReinforcementConfig, images, load_reinforced, reinforce
from hf_reinforce.augmentations.policies import named_policy
from hf_reinforce.generation.reinforcer import Reinforcer
from hf_reinforce.images import ImageError
from hf_reinforce.replay.dataset import WrongImageError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
SAMPLE = 330  # every kind once, and a hundred damaged files


def attempts(count, folder, first=0):
    """What a process of its own says of each item; it starts once more after an item that ended it."""
    command = [sys.executable, str(Path(__file__).with_name("bad_images.py")), str(count), str(folder), str(first)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    names = {item["start"]: item["name"] for item in said if "start" in item}
    found = {names[item["end"]]: item for item in said if "end" in item}
    if "decoders" in said[-1]:
        return found
    assert "start" in said[-1], done.stderr[-2000:]
    fatal = f"ended by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else done.stderr[-500:]
    found[said[-1]["name"]] = {"failure": fatal}
    return found | attempts(count, folder, said[-1]["start"] + 1)


def check(found):
    """Errors are ours and say something; pictures are those that must be; nobody takes much."""
    wrong = {}
    for name, item in found.items():
        said = item.get("message") or ""
        if "failure" in item:
            wrong[name] = item["failure"]
        elif item["expected"] not in (None, bool(item["size"])):
            wrong[name] = f"{item['size'] or said}"
        elif item["megabytes"] > MEGABYTES or "MemoryError" in said:
            wrong[name] = f"takes {item['megabytes']} MB; {said}"
        elif not item["size"] and (len(said) < 10 or len(said) > 9000 or re.search(r"[\0-\x1f\x7f]| at 0x", said)):
            wrong[name] = f"unclear: {said!r}"
    assert not wrong


@pytest.mark.parametrize("count", [SAMPLE, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_bad_file_is_an_error_or_a_picture(tmp_path, count):
    found = attempts(count, tmp_path)
    check(found)
    assert len(found) == count and sum(bool(item["size"]) for item in found.values()) > 100


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Every seventh row is a good image, the others are those of the corpus that are small."""
    items = corpus(SAMPLE, tmp_path_factory.mktemp("paths"))
    values = [item for name, item, _ in items if "largest size" not in name]
    good = [{"bytes": encode_image(tiny_image(i)), "path": None} for i in range(len(values) // 6)]
    for index, item in enumerate(good):
        values.insert(7 * index, item)
    table = pa.table({"image": pa.array(values, Image().pa_type)})
    return Dataset(table, DatasetInfo(features=Features({"image": Image(decode=False)})))


def test_bad_rows_are_named_or_skipped_and_recorded(mixture, tmp_path):
    policy, expected = named_policy("randaug", 16), set()
    for row, item in enumerate(mixture.data.column("image").to_pylist()):
        try:
            policy.check_size(*images.decode(images.read_encoded(item)).shape[1:])
        except ImageError:
            expected.add(row)
    folder = reinforce(mixture, tiny_teacher(), policy, tmp_path, num_samples=2, top_k=3, on_error="skip")
    skipped = {item.row: item.error for item in ReinforcementConfig.load(folder).skipped}
    assert skipped.keys() == expected and 100 < len(skipped) < len(mixture) - 100
    for row, error in skipped.items():
        assert error.startswith(f"Row {row} (path ") and not re.search(r"[\0-\x1f\x7f]", error)
    replayed = load_reinforced(str(tmp_path), source=mixture)
    assert len(replayed) == len(mixture) - len(skipped)
    for position in range(0, len(replayed), 3):
        assert replayed[position]["pixel_values"].shape == (3, 16, 16)
    reinforcer, table = Reinforcer(tiny_teacher(), policy, 1, top_k=2), mixture.with_format("arrow")
    for row in sorted(expected)[::9]:
        with pytest.raises(ImageError, match=rf"^Row {row} \(path "):
            reinforcer(table[row : row + 1], [row])


@pytest.fixture
def on_disk(tmp_path):
    """Images as files, and what was reinforced of them: `(files, reinforced dataset)`."""
    (tmp_path / "images").mkdir()
    files = [tmp_path / "images" / f"{row}.png" for row in range(12)]
    for row, file in enumerate(files):
        file.write_bytes(encode_image(tiny_image(row)))
    features = Features({"image": Image(decode=False)})
    source = Dataset.from_dict({"image": [str(file) for file in files]}, features=features)
    reinforce(source, tiny_teacher(), named_policy("rrc", 16), tmp_path / "plus", num_samples=2, top_k=3)
    return files, load_reinforced(str(tmp_path / "plus"), source=source)


@pytest.mark.parametrize("damage", ["truncated", "another", "missing", "folder", "pipe", "empty", "too large here"])
def test_a_file_that_went_bad_is_named_at_replay(on_disk, monkeypatch, damage):
    files, dataset = on_disk
    file, data = files[7], files[7].read_bytes()
    assert dataset[7]["pixel_values"].shape == (3, 16, 16)
    if damage == "too large here":
        monkeypatch.setattr(images.Image, "MAX_IMAGE_PIXELS", 100)
    else:
        file.unlink()
    if damage in ("truncated", "another", "empty"):
        file.write_bytes({"truncated": data[:-20], "another": files[6].read_bytes(), "empty": b""}[damage])
    elif damage == "folder":
        file.mkdir()
    elif damage == "pipe":
        os.mkfifo(file)
    with pytest.raises((ImageError, WrongImageError), match=r"^Row 7\b"):
        dataset[7]
    monkeypatch.undo()
    assert dataset[8]["pixel_values"].shape == (3, 16, 16)


def test_paths_that_lead_elsewhere_are_errors(tmp_path):
    for item in paths(tmp_path):
        with pytest.raises(ImageError):
            images.read_encoded(item)


def test_remote_files_are_read_to_a_limit_only(monkeypatch, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(2**22))
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 2**21)
    with pytest.raises(ImageError, match="it has more than"):
        images.read_encoded({"bytes": None, "path": f"zip://zeros::{tmp_path}/a.zip"})
