"""The report of an evaluation: its table, its pictures, and what it says where something is missing."""

import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread
from simulated import NAMES, write_evaluation

from hf_reinforce.evaluation import pictures
from hf_reinforce.evaluation.report import clean_of, corruption_accuracies, metric_text, summary_name, write_report
from hf_reinforce.evaluation.results import Corruption, Evaluation

CORRUPTIONS = [("fog", 1), ("fog", 5), ("snow", 1), ("snow", 5)]


@pytest.fixture
def folder(tmp_path):
    """The evaluation of a student on two datasets, one of them also corrupted."""
    return write_evaluation(tmp_path / "student", ("pets", "zoo"), CORRUPTIONS) / "evaluation"


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are laid out but not drawn, which takes most of the time."""
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: path.touch())


def edited(folder, **changes):
    """Changes fields of an evaluation on the disk."""
    evaluation = replace(Evaluation.load(folder), **changes)
    evaluation.save(folder)
    return evaluation


def tables(text):
    """The Markdown tables of a text: lists of rows of cells, the header first, the rule left out."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.M)
    rows = [[[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()] for block in blocks]
    assert all(len({len(row) for row in table}) == 1 for table in rows), "a row has another number of cells"
    return [[table[0], *table[2:]] for table in rows]


def is_drawn(path):
    """Whether a picture has more than black axes: coloured pixels."""
    pixels = imread(path)[..., :3]
    return np.mean(np.ptp(pixels, axis=2) > 0.2) > 0.002


def test_table_has_the_figures_of_the_evaluation(folder, undrawn):
    text = write_report(folder).read_text()
    (table,) = tables(text)
    evaluation = Evaluation.load(folder)
    assert table[0][0] == "dataset" and [row[0] for row in table[1:]] == ["Pets", "Zoo", "mean over 4 corrupted sets"]
    for row, found in zip(table[1:3], evaluation.datasets.values(), strict=False):
        top1 = re.fullmatch(r"([\d.]+) ± ([\d.]+)", row[2])
        share = found.metrics["accuracy"]
        assert float(top1[1]) == pytest.approx(100 * share, abs=0.051)
        assert float(top1[2]) == pytest.approx(196 * (share * (1 - share) / 300) ** 0.5, abs=0.051)
        assert float(row[4]) == pytest.approx(found.metrics["nll"], abs=0.00051)
        assert float(row[6]) == pytest.approx(found.metrics["ece"], abs=0.00051)
    corrupted = [found.metrics["brier"] for found in evaluation.datasets.values() if found.corruption]
    assert float(table[3][5]) == pytest.approx(np.mean(corrupted), abs=0.00051) and table[3][1] == "1,200"


def test_pictures_are_drawn_and_described(folder):
    text = write_report(folder).read_text()
    shown = dict(re.findall(r"!\[(.+)\]\((\S+\.png)\)", text))
    assert list(shown.values()) == ["reliability.png", "corruptions.png", "confusions.png"]
    assert all(is_drawn(folder / name) for name in shown.values())
    told = " ".join(shown)
    assert "Zoo" in told and "the mean is 38.2 %" in told and any(name in told for name in NAMES)


@pytest.fixture
def figures(monkeypatch):
    """Name of a picture -> its figure, of pictures that are laid out but not drawn."""
    found = {}
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: found.update({path.name: figure}))
    return found


def test_the_legend_lies_beside_the_bars(folder, figures):
    write_report(folder)
    (figure,) = [figures["reliability.png"]]
    assert len(figure.legends) == 1 and not any(axis.get_legend() for axis in figure.axes)


def test_confusions_of_two_images_or_more_in_words(folder, figures):
    predictions = Evaluation.load(folder).predictions(folder, "pets")
    label = np.zeros(len(predictions), int)
    taken = label.copy()
    taken[:3], taken[3:5], taken[5] = 1, 2, 3
    replace(predictions, label=label, prediction=taken).save(folder / "predictions" / "pets.parquet")
    datasets = Evaluation.load(folder).datasets
    ids = [f"n{number:08}" for number in (1440764, 1443537, 1484850, *range(1491361, 1491368))]
    known = ["n01440764", "n01443537", "n01484850", "n01491361", "n01494475", *["n01496331"] * 5]
    for names, shown in (
        (known, "tench \N{RIGHTWARDS ARROW} goldfish"),
        (ids, "n01440764 \N{RIGHTWARDS ARROW} n01443537"),
    ):
        edited(folder, datasets={"pets": replace(datasets["pets"], class_names=names)})
        assert f"2 times or more; most often {shown}, 3 times" in write_report(folder).read_text()
        (axis,) = figures["confusions.png"].axes
        assert len(axis.get_yticklabels()) == 2 and axis.get_yticklabels()[0].get_text() == shown
        assert all(tick == round(tick) for tick in axis.get_xticks())


def test_an_empty_canvas_is_not_taken_for_a_picture(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots()
    figure.savefig(tmp_path / "empty.png")
    assert not is_drawn(tmp_path / "empty.png")


def test_pictures_of_an_earlier_evaluation_go(folder, undrawn):
    write_report(folder)
    datasets = Evaluation.load(folder).datasets
    edited(folder, datasets={"pets": datasets["pets"]})
    text = write_report(folder).read_text()
    assert "corrupt" not in text and not (folder / "corruptions.png").exists()


def test_corrupted_sets_alone(folder, undrawn):
    datasets = Evaluation.load(folder).datasets
    edited(folder, datasets={name: found for name, found in datasets.items() if found.corruption})
    text = write_report(folder).read_text()
    assert len(tables(text)[0]) == 2 and "corruptions.png" in text and "reliability.png" not in text


def test_summary_notes_and_what_is_missing_are_told(folder, undrawn):
    datasets = Evaluation.load(folder).datasets
    metrics = {
        **datasets["zoo"].metrics,
        "ece": None,
    }
    datasets["zoo"] = replace(datasets["zoo"], metrics=metrics, notes="only <b>mammals</b> | birds")
    edited(folder, datasets=datasets, summary={"mce": 0.875}, skipped={"sketch": "not at hand"})
    text = write_report(folder).read_text()
    assert "mean corruption error (baseline: 100 %): 87.5 %" in text and "sketch: not at hand" in text
    assert tables(text)[0][2][6] == "\N{EN DASH}" and "<b>" not in text and "only" in text
    edited(folder, datasets={})
    assert "sketch: not at hand" in write_report(folder).read_text()


def test_no_data_set_is_an_error(folder):
    edited(folder, datasets={})
    with pytest.raises(ValueError, match="results for no dataset; run recipes/evaluate.py"):
        write_report(folder)


def test_names_of_figures_over_several_data_sets():
    assert summary_name("mce").startswith("mean corruption error")
    assert summary_name("cifar10c_relative_mce").startswith("cifar10c relative mean corruption error")
    assert summary_name("some_figure") == "some figure"


def test_corruptions_by_name_and_severity(folder):
    datasets = Evaluation.load(folder).datasets
    found = corruption_accuracies(datasets)
    assert {name: list(row) for name, row in found.items()} == {"fog": [1, 5], "snow": [1, 5]}
    assert found["snow"][5] == datasets["pets-snow-5"].metrics["accuracy"]
    datasets["zoo-fog-2"] = replace(datasets["pets-fog-1"], corruption=Corruption("fog", 2))
    assert list(corruption_accuracies(datasets)) == ["pets: fog", "pets: snow", "zoo: fog"]


def test_the_clean_form_of_corrupted_sets(folder):
    datasets = Evaluation.load(folder).datasets
    assert clean_of(datasets) == "pets"
    assert clean_of({name: found for name, found in datasets.items() if name != "pets"}) is None


def test_figures_as_text():
    assert metric_text("accuracy", 0.41284) == "41.3" and metric_text("nll", 2.2078) == "2.208"
    assert metric_text("accuracy", -0.05, signed=True) == "\N{MINUS SIGN}5.0"
    assert metric_text("ece", 0.05, signed=True) == "+0.050"
    assert metric_text("ece", None) == metric_text("ece", float("nan")) == "\N{EN DASH}"
