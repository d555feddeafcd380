"""The report of an evaluation: its tables, its picture, and what it says where something is missing."""

import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from simulated import write_evaluation

from hf_reinforce.evaluation import pictures
from hf_reinforce.evaluation.report import metric_text, summary_name, write_report
from hf_reinforce.evaluation.results import Corruption, Evaluation

DASH = "\N{EN DASH}"


@pytest.fixture
def folder(tmp_path):
    """The evaluation of a student on two datasets, one of them also corrupted."""
    kinds = [("fog", 1), ("fog", 5), ("snow", 1), ("snow", 5)]
    return write_evaluation(tmp_path / "student", ("pets", "zoo"), kinds) / "evaluation"


@pytest.fixture
def figures(monkeypatch):
    """Pictures that are laid out but not drawn, which takes most of the time."""
    found = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: (found.append(figure), path.touch()))
    return found


def edited(folder, **changes):
    """The report after fields of the evaluation on the disk have changed."""
    replace(Evaluation.load(folder), **changes).save(folder)
    return write_report(folder).read_text()


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


def test_tables_have_the_figures_of_the_evaluation(folder, figures):
    table, corrupted = tables(write_report(folder).read_text())
    datasets = Evaluation.load(folder).datasets
    assert table[0][0] == "dataset" and [row[0] for row in table[1:]] == ["Pets", "Zoo", "mean over 4 corrupted sets"]
    for row, found in zip(table[1:3], datasets.values(), strict=False):
        top1 = re.fullmatch(r"([\d.]+) ± ([\d.]+)", row[2])
        share = found.metrics["accuracy"]
        assert float(top1[1]) == pytest.approx(100 * share, abs=0.051)
        assert float(top1[2]) == pytest.approx(196 * (share * (1 - share) / 300) ** 0.5, abs=0.051)
        assert float(row[4]) == pytest.approx(found.metrics["nll"], abs=0.00051)
        assert float(row[6]) == pytest.approx(found.metrics["ece"], abs=0.00051)
    brier = [found.metrics["brier"] for found in datasets.values() if found.corruption]
    assert float(table[3][5]) == pytest.approx(np.mean(brier), abs=0.00051) and table[3][1] == "1,200"
    assert corrupted[0] == ["corruption", "1", "5", "mean"] and [row[0] for row in corrupted[1:]] == ["fog", "snow"]
    shown = [100 * datasets[f"pets-snow-{severity}"].metrics["accuracy"] for severity in (1, 5)]
    assert [float(cell) for cell in corrupted[2][1:]] == pytest.approx([*shown, np.mean(shown)], abs=0.051)
    datasets["zoo-fog-2"] = replace(datasets["pets-fog-1"], corruption=Corruption("fog", 2))
    corrupted = tables(edited(folder, datasets=datasets))[1]
    assert [row[0] for row in corrupted[1:]] == ["pets: fog", "pets: snow", "zoo: fog"] and corrupted[3][1] == DASH
    (axes, *_) = [figure.axes for figure in figures]
    assert len(figures[0].legends) == 1 and not any(axis.get_legend() for axis in axes), "it lies beside the bars"


def test_the_picture_is_drawn_and_described(folder, tmp_path):
    ((words, name),) = re.findall(r"!\[(.+)\]\((\S+\.png)\)", write_report(folder).read_text())
    assert name == "reliability.png" and is_drawn(folder / name) and "Zoo" in words
    empty = Figure()
    empty.subplots()
    empty.savefig(tmp_path / "empty.png")
    assert not is_drawn(tmp_path / "empty.png")


def test_what_is_missing_is_told(folder, figures):
    datasets = Evaluation.load(folder).datasets
    text = edited(folder, datasets={name: found for name, found in datasets.items() if found.corruption})
    assert len(tables(text)[0]) == 2 and "reliability.png" not in text
    metrics = {**datasets["zoo"].metrics, "ece": None}
    datasets["zoo"] = replace(datasets["zoo"], metrics=metrics, notes="only <b>mammals</b> | birds")
    text = edited(folder, datasets=datasets, summary={"mce": 0.875}, skipped={"sketch": "not at hand"})
    assert "mean corruption error (baseline: 100 %): 87.5 %" in text and "sketch: not at hand" in text
    assert tables(text)[0][2][6] == DASH and "<b>" not in text and "only" in text
    assert (folder / "reliability.png").exists() and "sketch: not at hand" in edited(folder, datasets={})
    assert not (folder / "reliability.png").exists(), "it is of an earlier evaluation"
    with pytest.raises(ValueError, match="results for no dataset; run recipes/evaluate.py"):
        edited(folder, skipped={})


def test_figures_as_text():
    assert summary_name("mce").startswith("mean corruption error") and summary_name("some_figure") == "some figure"
    assert summary_name("cifar10c_relative_mce").startswith("cifar10c relative mean corruption error")
    assert metric_text("accuracy", 0.41284) == "41.3" and metric_text("nll", 2.2078) == "2.208"
    assert metric_text("accuracy", -0.05, signed=True) == "\N{MINUS SIGN}5.0"
    assert metric_text("ece", 0.05, signed=True) == "+0.050"
    assert metric_text("ece", None) == metric_text("ece", float("nan")) == DASH
