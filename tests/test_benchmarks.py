"""Every benchmark runs at tiny size and says what it should; no time is checked."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import measure
from benchmarks.__main__ import RESULTS, benchmarks, main
from benchmarks.measure import Row, Settings, interleave
from benchmarks.photos import generated_photos, load_photos

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    torch.set_num_threads(1)
    cache = tmp_path_factory.mktemp("benchmarks")
    photos = generated_photos(6, cache)
    # forked, a process need not import everything again; its memory then means nothing
    return Settings(photos, "generated", cache, tiny=True, repetitions=1, start_method="fork", image_size=64)


@pytest.mark.parametrize("name", benchmarks())
def test_benchmark_runs(name, settings, tmp_path):
    if name == "memory":  # its process uses threads, which do not survive a fork
        settings = replace(settings, start_method="spawn")
    rows = benchmarks()[name](settings)
    output = tmp_path / "latest.json"
    measure.save(rows, output, settings.data)
    content = json.loads(output.read_text(encoding="utf-8"))
    assert set(content) == {"machine", "versions", "rows"}
    assert {"cpu", "cores", "memory_gb", "gpu", "date"} <= set(content["machine"])
    assert len(content["rows"]) == len(rows) > 0
    for row in content["rows"]:
        assert {"name", "against", "ratio", "target", "ok", "medians"} <= set(row)
        if row["note"].startswith("not measured"):
            assert row["ratio"] is None and row["ok"] is None
            continue
        assert math.isfinite(row["ratio"]) and row["ratio"] >= 0
        assert isinstance(row["ok"], bool)
        assert row["medians"] and all(math.isfinite(value) and value >= 0 for value in row["medians"].values())
    for row in rows:
        assert f"| {row.name} | {row.against} |" in measure.table(output)


def test_rows_of_other_benchmarks_are_kept(tmp_path):
    output = tmp_path / "results" / "latest.json"
    first = [Row("a", "b", 2.0, 1.5, {"x": 1.0}), Row("c", "d", None, 1.0, {}, note="not measured: no c")]
    measure.save(first, output, "photos")
    measure.save([Row("a", "b", 1.0, 1.5, {"x": 2.0}), Row("a", "e", 3.0, 1.0, {"x": 1.0})], output, "photos")
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    found = [(row["name"], row["against"], row["ratio"], row["ok"]) for row in rows]
    assert found == [("a", "b", 1.0, False), ("c", "d", None, None), ("a", "e", 3.0, True)]
    assert "not measured: no c" in measure.table(output)
    measure.save([Row("a", "b", 5.0, 1.5, {"x": 2.0})], output, "other photos")
    assert "| a | b | 1x |" in measure.table(output).split("other photos:")[0]
    assert "| a | b | 5x |" in measure.table(output).split("other photos:")[1]


def test_document_has_the_tables_of_the_results():
    assert measure.table(RESULTS) in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def test_upper_bounds():
    assert [Row("a", "b", ratio, 1.0, {}, at_most=True).ok for ratio in (0.9, 1.1)] == [True, False]


def test_the_command_names_itself_and_its_benchmarks(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["__main__.py", "nothing"])
    with pytest.raises(SystemExit):
        main()
    assert "usage: python -m benchmarks [-h]" in (said := capsys.readouterr().err) and "there is no nothing;" in said


def test_variants_take_turns():
    order, values = [], iter([9.0, 9.0, 1.0, 10.0, 30.0, 5.0, 3.0, 20.0])
    variant = lambda name: lambda: order.append(name) or next(values)
    medians = interleave({"a": variant("a"), "b": variant("b")}, 3)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert medians == {"a": 20.0, "b": 3.0}  # of 10, 30, 20 and of 1, 5, 3; the first turn is left out


def test_photos_of_a_folder(tmp_path, encoded):
    for name in ("b.jpg", "a.jpeg", "notes.txt"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(encoded("JPEG"))
    photos, data = load_photos(str(tmp_path / "photos"), 10, tmp_path / "cache")
    assert len(photos) == 2 and data == "2 photos of photos"
    assert photos[0]["image"]["bytes"] == encoded("JPEG")
