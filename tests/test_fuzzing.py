"""Whatever a file from elsewhere holds, it is read, or refused with a ValueError of one sentence."""

import copy
import gzip
import io
import json
import math
import pickle
import re
import tarfile
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from datasets import Features
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_config import example
from tiny import tiny_dataset, tiny_teacher

from hf_reinforce import ReinforcementConfig, reinforce
from hf_reinforce.augmentations import AUGMENTATIONS
from hf_reinforce.augmentations.documents import read_document
from hf_reinforce.augmentations.policies import AugmentationPolicy, load_policy, named_policy, read_operation
from hf_reinforce.importers.ml_dr.config import TRANSFORMS, read_config
from hf_reinforce.importers.ml_dr.records import read_record
from hf_reinforce.importers.ml_dr.unpickling import Member, read_members, safe_load
from hf_reinforce.models.classes import load_table, make_class_map
from hf_reinforce.store.rows import ParquetRows
from hf_reinforce.store.shards import open_shard
from hf_reinforce.targets.class_distribution import FIELDS, ClassDistribution, encode, top_k_targets

quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

NUMBERS = [0, 1, -1, 2**31, 2**70, 1.5, -0.0, 1e-320, 1e300, math.inf, math.nan, 10**400]
SCALARS = st.one_of(
    st.sampled_from([None, True, False, "", "a", "\x1b[31m", "../..", "/etc/passwd", *NUMBERS]), st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)
OPTIONS = sorted({name for kind in AUGMENTATIONS.values() for name in kind.__dataclass_fields__} - {"name", "field"})
OPERATIONS = st.dictionaries(
    st.sampled_from(list(AUGMENTATIONS)), st.dictionaries(st.sampled_from(OPTIONS), VALUES, max_size=2), max_size=1
)
ENDLESS = "a: &a [x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 8)}]" for i in range(20)
)
ODD_DOCUMENTS = ["", "[" * 600, "- " * 1_500, "&a [*a]", ENDLESS, "!!python/object/apply:os.system [touch harmed]"]
ODD_DOCUMENTS += ["!!bool a", "!!int ''", "!!float ''", "!!timestamp a", "!!binary a", "2001-99-99", "1" * 5_000]
ODD_DOCUMENTS += ["? [a]\n: b", "\0", "=", "<<: 1", b"\xff\xfe\xff", None]  # None: a folder


def refusal(function, *args):
    """What the function returns, or its ValueError; any other exception ends the test."""
    try:
        return function(*args)
    except ValueError as error:
        said = str(error)
        assert 8 < len(said) < 2_000 and not re.search(r"[\0-\x08\x0b-\x1f\x7f]", said), said
        return error


def changed(data, draw):
    """A copy of nested lists and dicts, of which one part is replaced, removed or added to."""
    data = copy.deepcopy(data)
    place = data
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not len(keys):
            return data
        key = draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or draw(st.integers(0, 3)) == 0:
            break
        place = place[key]
    way = draw(st.integers(0, 5))
    if way == 0:
        del place[key]
    elif way == 1 and isinstance(place, dict):
        place[draw(st.text(max_size=3))] = draw(VALUES)
    else:
        place[key] = draw(VALUES)
    return data


@given(st.data())
@quick
def test_policies(tmp_path, data):
    whole = {"name": "mine", "operations": [{"random_crop": {"size": 8}}, "horizontal_flip", "rand_augment", "mixup"]}
    content = (
        changed(whole, data.draw) if data.draw(st.booleans()) else {**whole, "operations": [data.draw(OPERATIONS)]}
    )
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    policy = refusal(load_policy, str(tmp_path / "policy.yaml"))
    if isinstance(policy, ValueError):
        assert "policy.yaml is not a policy" in str(policy)
        return
    assert AugmentationPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    assert re.fullmatch(r"[A-Za-z0-9][\w.-]*", policy.name)


@given(st.sampled_from(list(AUGMENTATIONS)), st.data())
@quick
def test_operations_that_are_read_can_be_drawn(name, data):
    kinds = {key: field.type for key, field in AUGMENTATIONS[name].__dataclass_fields__.items()}
    options = {}
    for key in data.draw(st.lists(st.sampled_from(sorted(kinds)), unique=True, max_size=3)) if kinds else []:
        number = st.one_of(st.floats(0, 4), st.integers(0, 40), st.sampled_from(NUMBERS))
        options[key] = data.draw(st.lists(number, min_size=2, max_size=2) if "tuple" in str(kinds[key]) else number)
    operation = refusal(read_operation, {name: options})
    if not isinstance(operation, ValueError) and operation.stage != "resize":
        for seed in range(3):
            operation.sample(np.random.default_rng(seed), 30, 40)


@pytest.mark.parametrize("content", ODD_DOCUMENTS, ids=range(len(ODD_DOCUMENTS)))
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_odd_documents(tmp_path, monkeypatch, content, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"odd.{suffix}"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = refusal(read_document, path)
    assert not isinstance(content, bytes | None) or isinstance(found, ValueError)
    table = refusal(load_table, str(path))
    if not isinstance(table, ValueError):
        refusal(make_class_map, ["x", "y"], 2, None, [0], str(path))
    if suffix == "yaml":
        assert isinstance(refusal(load_policy, str(path)), ValueError)
    assert not (tmp_path / "harmed").exists()


@given(VALUES, st.sampled_from([None, ["ant", "bee"], ["\x1b[31mant", "0"]]), st.booleans())
@quick
def test_class_maps(tmp_path, table, names, as_json):
    path = tmp_path / ("table.json" if as_json else "table.yaml")
    path.write_text(json.dumps(table) if as_json else yaml.safe_dump(table), encoding="utf-8")
    found = refusal(make_class_map, ["ant", "bee", "cat"], 3, names, [0, 1], str(path))
    if not isinstance(found, ValueError):
        assert found(torch.zeros(1, 3).log_softmax(-1)).exp().sum() == pytest.approx(1)


CONFIG = example().to_dict()


@given(st.data())
@quick
def test_configurations(tmp_path, data):
    content = changed(CONFIG, data.draw)
    (tmp_path / "reinforcement.json").write_text(json.dumps(content))
    config = refusal(ReinforcementConfig.load, tmp_path)
    if isinstance(config, ValueError):
        assert "reinforcement.json" in str(config)
    else:
        assert ReinforcementConfig.from_dict(config.to_dict()) == config


POLICIES = [named_policy(name, 32) for name in ("randaug", "mixing_randaug", "small_randaug")]


def record(policy, num_samples=2):
    """A compressed record of the original implementation, as lists."""
    values = {"random_resized_crop": [1, 2, 20, 20], "random_crop": [1, 2], "resize": 32, "horizontal_flip": True}
    values |= {"rand_augment": [[3, 4.5], [0, 0.0]], "random_erasing": None, "mixup": 0.4, "cutmix": [0.5, 1, 1, 9, 9]}
    own = [values[operation.name] for operation in policy.view_operations]
    if policy.mix_operations:
        own = [7, *([value, value] for value in own), *(values[operation.name] for operation in policy.mix_operations)]
    return [3, [{"params": own, "prob": [[0.6, 0.3], [1, 4]]} for _ in range(num_samples)]]


@given(st.sampled_from(POLICIES), st.data())
@quick
def test_records(policy, data):
    whole = record(policy)
    assert read_record(whole, policy, 5)[0] == 3
    found = refusal(read_record, changed(whole, data.draw), policy, 5)
    if not isinstance(found, ValueError):
        index, params, targets = found
        assert type(index) is int and len({len(params), *map(len, targets)}) == 1
        assert (targets.label >= 0).all() and (targets.label < 5).all()
        assert targets.value.isfinite().all() and (targets.value <= 0).all()
        pa.array(params, Features({"params": policy.feature}).arrow_schema.field("params").type)


def test_records_that_unfold_without_end():
    nested = [1, 1]
    for _ in range(60):
        nested = [nested, nested]
    for policy in POLICIES:
        for place in range(len(record(policy)[1][0]["params"])):
            value = record(policy, 1)
            value[1][0]["params"][place] = nested
            assert isinstance(refusal(read_record, value, policy, 5), ValueError)
        for part in (0, 1):
            value = record(policy, 1)
            value[1][0]["prob"][part] = nested
            assert isinstance(refusal(read_record, value, policy, 5), ValueError)


ARCHIVE_CONFIG = {
    "reinforce": {
        "image_augmentation": {"random_resized_crop": {"size": 32}, "normalize": {"mean": [0.5], "std": [1]}}
    },
    "teacher": {"name": "a,b"},
    "num_classes": 5,
}


def member(value):
    return Member("archive: config.pth.tar", ".", None, pickle.dumps(value, 4))


@given(st.data())
@quick
def test_configurations_of_archives(data):
    content = changed(ARCHIVE_CONFIG, data.draw)
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from([*TRANSFORMS, "unknown"]))
        options = st.dictionaries(st.sampled_from(["size", "p", "scale", "padding", "alpha", "enable"]), VALUES)
        content = copy.deepcopy(ARCHIVE_CONFIG)
        content["reinforce"]["image_augmentation"][name] = data.draw(options)
    refusal(read_config, member(content))


@given(st.binary(max_size=40), st.integers(0, 10_000), st.integers(0, 5), st.sampled_from([0, 2, 4, 5]))
@quick
def test_pickles(noise, place, way, protocol):
    data = bytearray(pickle.dumps(record(POLICIES[0]), protocol))
    place %= len(data)
    data[place : place + (0 if way % 2 else len(noise))] = noise
    refusal(safe_load, bytes(data[: len(data) - (way > 3)]), "a.pth.tar")


def test_what_a_file_says_is_written_out_in_messages(tmp_path):
    path = tmp_path / "reinforcement.json"
    path.write_text(json.dumps({**example().to_dict(), "checksums": {"\x1f[31m": None}}), encoding="utf-8")
    found = refusal(ReinforcementConfig.load, tmp_path), refusal(safe_load, b"F\x1b[2J\n.", "a.pth.tar")
    assert [r"checksums.\x1f[31m must be" in str(found[0]), r"\x1b[2J" in str(found[1])] == [True, True]


@contextmanager
def little_memory(most):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("protocol", [b"", b"\x80\x02", b"\x80\x04"])
@pytest.mark.parametrize("bomb", [b"r\xff\xff\xff\x0f", b"p268435455\n", b"r\xff\xff\xff\xff"])
def test_pickles_that_ask_for_memory(protocol, bomb):
    strings = b"K\x01K\x02\x86G" + bytes(8) + b"C\x02ab"
    with little_memory(2**20):
        found = refusal(safe_load, protocol + strings + b"]" + bomb + b".", "a.pth.tar")
    assert isinstance(found, ValueError) and "remembers more" in str(found)


def archive(compressed):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compressed else "w") as file:
        for name in ("config", "0", "1"):
            data = pickle.dumps(record(POLICIES[0]), 4)
            info = tarfile.TarInfo(f"reinforced_data/{'long' * 40}/{name}.pth.tar")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


ARCHIVES = [archive(compressed) for compressed in (False, True)]


def read_all(path):
    return [(found.index, len(found.data)) for found in read_members(path)]


@given(st.sampled_from(ARCHIVES), st.binary(min_size=1, max_size=12), st.integers(0, 10_000), st.booleans())
@quick
def test_archives(tmp_path, data, noise, place, cut):
    place %= min(len(data), 3_000)
    path = tmp_path / "archive.tar"
    path.write_bytes(data[:place] if cut else data[:place] + noise + data[place + len(noise) :])
    found = refusal(read_all, path)
    assert isinstance(found, ValueError) or len(found) <= 3


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_SPARSE])
@pytest.mark.parametrize("compressed", [False, True])
def test_headers_that_ask_for_memory(tmp_path, kind, compressed):
    info = tarfile.TarInfo("a")
    info.type, info.size = kind, 2**33
    with (gzip.open if compressed else open)(tmp_path / "a.tar", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**20))
    with little_memory(2**22):
        assert isinstance(refusal(read_all, tmp_path / "a.tar"), ValueError)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """The bytes of a shard."""
    folder = tmp_path_factory.mktemp("plus")
    made = reinforce(tiny_dataset(), tiny_teacher(), named_policy("randaug", 16), folder, num_samples=2, top_k=3)
    return next(made.glob("*.parquet")).read_bytes()


@given(st.binary(min_size=1, max_size=6), st.integers(0, 100_000), st.booleans())
@quick
def test_footers_of_shards(tmp_path, shard, noise, place, cut):
    place = len(shard) - 1 - place % min(len(shard), 4_000)
    path = tmp_path / "train-00000-of-00001.parquet"
    path.write_bytes(shard[:place] if cut else shard[:place] + noise + shard[place + len(noise) :])

    def footer():
        with open_shard(path) as file:
            return file.metadata.num_rows, file.schema_arrow.names

    refusal(footer)
    refusal(ParquetRows, [str(path)], ["source_row"])


def test_records_of_targets():
    stored = encode(top_k_targets(torch.randn(50, 20, generator=torch.Generator().manual_seed(0)).log_softmax(-1), 4))
    label, value, tail = stored.label.numpy(), stored.value.numpy(), stored.tail.numpy()
    target = ClassDistribution.of(20, 4)

    def check_stored(label, value, tail):
        records = zip(label, value, tail, strict=True)
        target.collate([target.read(dict(zip(FIELDS, record, strict=True))) for record in records])

    check_stored(label, value - np.inf, tail - np.inf)
    for wrong in (-1, 20, 2**40):
        with pytest.raises(ValueError, match="classes of .* but they are 0 to 19"):
            check_stored(np.where(value == value.max(), wrong, label), value, tail)
    for wrong in (math.nan, math.inf, 0.5):
        with pytest.raises(ValueError, match="at most 0"):
            check_stored(label, np.where(value == value.max(), wrong, value), tail)
        with pytest.raises(ValueError, match="at most 0"):
            check_stored(label, value, np.where(tail == tail.max(), wrong, tail))
