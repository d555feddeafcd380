"""`reinforcement.json`: what is written is read back, anything else is refused by its key, differences are named."""

import copy
import dataclasses
import errno
import json
import os

import pytest

from hf_reinforce.augmentations.policies import POLICY_NAMES, named_policy
from hf_reinforce.store.config import (
    CONFIG_FILE,
    PixelContract,
    ReferenceView,
    ReinforcementConfig,
    SkippedImage,
    SourceRecord,
)
from hf_reinforce.targets import ClassDistribution

TEACHER = {"name": "net", "kind": "module", "weight": 1.0}
TARGET = ClassDistribution((TEACHER,), 3, 5, ("ant", "bee", "cat", "dog", "eel"))


def of_target(**changes):
    return {"targets": (dataclasses.replace(TARGET, **changes),)}


def example(**changes):
    config = ReinforcementConfig(
        policy=named_policy("mixing_randaug", 32),
        num_samples=8,
        targets=(TARGET,),
        seed=7,
        source=SourceRecord("me/pets", None, "abc", "train", 100, "image", "label", ("label",)),
        pixels=PixelContract({"decoder": "pil"}, {"torch": "2.8"}, (ReferenceView(0, 0, "f" * 16),)),
        shard_size=64,
        shuffled=True,
        skipped=(SkippedImage(4, "Row 4: broken"),),
        checksums={"train-00000-of-00001.parquet": "0" * 64},
    )
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"targets": (TARGET, dataclasses.replace(TARGET, teachers=(), class_names=None, class_map=(4, 3, 2, 1, 0)))},
        {"source": SourceRecord(None, "ü\n", None, "train[:50%]+test", None, "\x1b", None, (), "mit"), "skipped": ()},
        {"seed": -(2**63), "embed_images": True, "complete": True, "checksums": {}, "shard_size": 2**40},
        *({"policy": named_policy(name, 224)} for name in POLICY_NAMES),
    ],
)
def test_a_configuration_round_trips_through_json(tmp_path, changes):
    config = example(**changes)
    config.save(tmp_path)
    assert ReinforcementConfig.load(tmp_path) == config
    assert (config.schema_version, config.split) == (len(config.targets), "train")


def test_keys_that_earlier_versions_lack_are_optional_and_no_difference(tmp_path):
    plain = example(checksums={})
    assert "license" not in plain.to_dict()["source"] and "checksums" not in plain.to_dict()
    assert next(iter(plain.to_dict())) == "schema_version" and plain.to_dict()["schema_version"] == 1
    teacher = {**TEACHER, "name": "./net", "license": "mit", "architecture": "resnet18"}
    source = dataclasses.replace(plain.source, name="./me/pets", license="cc-by-4.0")
    new = example(source=source, **of_target(teachers=(teacher,)))
    new.save(tmp_path)
    assert ReinforcementConfig.load(tmp_path) == new
    assert new.differences(plain) == plain.differences(new) == []
    assert new.source.name == "./me/pets", "comparing changes nothing"
    other = example(source=dataclasses.replace(source, name="me/birds"))
    assert new.differences(other) == ["source.name: 'me/pets', not 'me/birds'"]


LEVELS = [
    (),
    ("policy",),
    ("policy", "operations", 0, "random_resized_crop"),
    ("source",),
    ("pixels",),
    ("pixels", "reference_views", 0),
    ("skipped", 0),
]


def at(data, path):
    for key in path:
        data = data[key]
    return data


def refused(folder, data, message):
    (folder / CONFIG_FILE).write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(ValueError, match=f"{CONFIG_FILE} cannot be used.*{message}"):
        ReinforcementConfig.load(folder)


@pytest.mark.parametrize("path", LEVELS, ids=lambda path: ".".join(map(str, path)) or "top")
def test_unknown_and_missing_keys_are_refused(tmp_path, path):
    data = example(checksums={}).to_dict()
    for key in at(data, path) if "operations" not in path else ():
        without = copy.deepcopy(data)
        del at(without, path)[key]
        refused(tmp_path, without, "schema version None" if key == "schema_version" else key)
    at(data, path)["surprise"] = 1
    refused(tmp_path, data, "surprise")


@pytest.mark.parametrize(
    ("path", "values", "message"),
    [
        *(((key,), [None, 3, "text", [1]], "") for key in ("policy", "source", "pixels", "skipped")),
        (("policy", "operations", 0), [{"warp": {}}], "Unknown operation 'warp'"),
        (("schema_version",), [0, 3, None, "1"], "schema version .*reads versions up to 2.*Install a newer"),
        (("num_samples",), [0, -1], "num_samples must be at least 1"),
        (("num_samples",), ["8", 8.0, True, None, [8]], "num_samples must be a whole number, not"),
        (("num_classes",), [0, -5], "num_classes must be at least 1"),
        (("num_classes",), [2], "top_k must lie between 1 and the 2 classes, not 3"),
        (("top_k",), [0, -3], "top_k must be at least 1"),
        (("top_k",), [99], "top_k must lie between 1 and the 5 classes, not 99"),
        (("seed",), ["7", 0.5, False], "seed must be a whole number"),
        (("shard_size",), [0, -64], "shard_size must be at least 1"),
        (("temperature",), ["hot", None, True], "temperature must be a number"),
        (("shuffled",), [0, 1, "yes", None], "shuffled must be true or false"),
        (("complete",), [1], "complete must be true or false"),
        (("class_names",), ["ants", {"ant": 0}], "class_names must be a list"),
        (("class_names",), [[1, 2, 3, 4, 5]], r"class_names\[0\] must be a text"),
        (("class_map",), ["01234", 5], "class_map must be a list"),
        (("class_map",), [[0, True]], r"class_map\[1\] must be a whole number, not True"),
        (("class_map",), [[0, 1, -1]], r"class_map\[2\] must be at least 0, not -1"),
        (("teachers",), [{"name": "net"}, None], "teachers must be a list"),
        (("teachers",), [["net"]], r"teachers\[0\] must be a record, not 'net'"),
        (("source", "num_rows"), ["many", 1e3, True], r"source.num_rows must be a whole number or null, not"),
        (("source", "num_rows"), [-1], "source.num_rows must be at least 0"),
        (("source", "split"), [None, 3], "source.split must be a text"),
        (("source", "columns"), ["label"], "source.columns must be a list"),
        (("pixels", "reference_views", 0, "row"), ["0", -1], r"pixels.reference_views\[0\].row must be"),
        (("skipped", 0, "row"), [None, -4], r"skipped\[0\].row must be"),
        (("checksums",), [None, ["0"], "0"], "checksums must be a record"),
        (("checksums", "train-00000-of-00001.parquet"), [None, 0], "checksums.train-00000-of-00001.parquet must be"),
    ],
)
def test_values_of_another_type_or_out_of_range_are_refused(tmp_path, path, values, message):
    for value in values:
        data = example().to_dict()
        at(data, path[:-1])[path[-1]] = value
        refused(tmp_path, data, message)


def test_a_whole_number_is_a_number():
    data = {**example().to_dict(), "temperature": 2}
    assert ReinforcementConfig.from_dict(data).classes.temperature == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"schema_version": 1', b"\xff\xfe\0\x80"])
def test_something_that_is_no_configuration_is_refused(tmp_path, content):
    with pytest.raises(FileNotFoundError, match=f"has no {CONFIG_FILE}"):
        ReinforcementConfig.load(tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=CONFIG_FILE):
        ReinforcementConfig.load(tmp_path)


@pytest.mark.parametrize("fail", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, fail):
    example().save(tmp_path)
    before = (tmp_path / CONFIG_FILE).read_bytes()

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, fail, full)
    with pytest.raises(OSError):
        example(num_samples=9).save(tmp_path)
    assert (tmp_path / CONFIG_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG_FILE]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("policy", named_policy("mixing_randaug", 64)),
        ("top_k", 4),
        ("num_classes", 6),
        ("class_names", ("ant", "bee", "cat", "dog", "fox")),
        ("seed", 8),
        ("teachers", ({**TEACHER, "weight": 2.0},)),
        ("temperature", 2.0),
        ("class_map", (0, 1, 2, 3, 4)),
        ("source", SourceRecord("me/pets", None, "abc", "test", 100, "image", "label", ("label",))),
        ("shard_size", 128),
        ("shuffled", False),
        ("embed_images", True),
    ],
)
def test_differences_name_the_field_and_both_values(key, value):
    changes = of_target(**{key: value}) if hasattr(TARGET, key) else {key: value}
    mine, other = example(**changes), example()
    (difference,) = mine.differences(other)
    asked, there = mine.to_dict()[key], other.to_dict()[key]
    inner = {"policy": "operations", "source": "split"}.get(key)
    if inner is not None:  # of a record only what differs is named, shortened where it is long
        asked, there = asked[inner], there[inner]
        key = f"{key}.{inner}"
    assert difference.startswith(f"{key}: {asked!r}"[:200]) and f", not {there!r}"[:200] in difference
    assert len(difference) < 450


def test_every_field_is_either_compared_or_only_reported():
    data = example().to_dict()
    names = {field.name for item in (ReinforcementConfig, ClassDistribution) for field in dataclasses.fields(item)}
    assert set(data) == (names - {"targets"}) | {"schema_version"}
    reported = {"num_samples", "pixels", "complete", "skipped", "checksums"}

    class Other:
        def to_dict(self):
            return {key: [] if key == "teachers" else "another" for key in data}

    found = {difference.split(":")[0].split(".")[0] for difference in example().differences(Other())}
    assert found == set(data) - reported
