import dataclasses
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Image, load_dataset
from huggingface_hub import DatasetCard
from PIL import Image as PILImage
from tiny import tiny_dataset, tiny_teacher

from hf_reinforce import schema
from hf_reinforce.cards import statistics, write_dataset_card
from hf_reinforce.config import ReinforcementConfig
from hf_reinforce.generation import reinforce
from hf_reinforce.policies import named_policy
from hf_reinforce.preview import PREVIEW_FILE, draw

OPTIONS = {"top_k": 3, "shard_size": 64, "seed": 5, "device": "cpu", "source_name": "somebody/pets"}


@pytest.fixture(scope="module")
def data():
    return tiny_dataset(70, (20, 36))


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """A repository of two configurations, with its pictures."""
    folder = tmp_path_factory.mktemp("cards") / "pets-plus"
    reinforce(data, tiny_teacher(), named_policy("randaug", 16), folder, num_samples=2, **OPTIONS)
    two = type(tiny_teacher())([tiny_teacher(5, 16, seed).members[0] for seed in (1, 2)])
    reinforce(data, two, named_policy("mixing", 16), folder, num_samples=5, **OPTIONS)
    return folder


@pytest.fixture
def card(folder):
    return DatasetCard.load(folder / "README.md")


def shards(folder):
    return sorted(folder.glob("*.parquet"))


def rows(folder):
    return [row for shard in shards(folder) for row in pq.read_table(shard).to_pylist()]


def pixels(path):
    """A picture as an array [H, W, 3]."""
    with PILImage.open(path) as image:
        return np.asarray(image.convert("RGB"))


def table(card):
    """Cells of the card's table of configurations, by the configuration's name."""
    lines = card.text.split("## Configurations")[1].split("## ")[0].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    header, ruler, *body = cells
    assert all(set(cell) == {"-"} for cell in ruler)
    assert all(len(line) == len(header) for line in cells)
    return {line[0].strip("`"): dict(zip(header, line, strict=True)) for line in body}


def test_metadata(card):
    data = card.data
    assert data.pretty_name == "pets-plus"
    assert data.task_categories == ["image-classification"]
    assert data.size_categories == ["n<1K"]
    assert data.source_datasets == ["somebody/pets"]
    assert {"dataset-reinforcement", "knowledge-distillation"} <= set(data.tags)


def test_configurations_point_to_their_files(folder, card):
    configs = {config["config_name"]: config["data_files"] for config in card.data.configs}
    assert set(configs) == {"mixing", "randaug"}
    for name, files in configs.items():
        (pattern,) = files
        assert pattern["split"] == "train"
        assert sorted(folder.glob(pattern["path"])) == shards(folder / name) and shards(folder / name)


@pytest.mark.parametrize(("name", "num_samples"), [("randaug", 2), ("mixing", 5)])
def test_each_configuration_loads_by_its_name(folder, tmp_path, name, num_samples):
    loaded = load_dataset(str(folder), name, split="train", cache_dir=str(tmp_path))
    assert loaded.with_format("arrow")[:].to_pylist() == rows(folder / name)
    assert loaded.features[schema.AUGMENTATION_PARAMS].length == num_samples


@pytest.mark.parametrize("name", ["randaug", "mixing"])
def test_the_table_tells_what_is_in_the_files(folder, card, name):
    found = rows(folder / name)
    answers = [(row["label"], answer) for row in found for answer in row[schema.TEACHER_LOGITS]]
    mass, entropy, agreed = [], [], []
    for label, answer in answers:
        masses = np.exp(np.array([*answer[schema.VALUE], answer[schema.TAIL]], dtype=np.float64))
        masses /= masses.sum()
        mass.append(masses[:-1].sum())
        entropy.append(-sum(p * np.log(p) for p in masses if p > 0))
        agreed.append(answer[schema.LABEL][0] == label)
    size = sum(shard.stat().st_size for shard in shards(folder / name))
    line = table(card)[name]
    assert line["images"] == "70"
    assert line["reinforcements per image (N)"] == str(len(answers) // 70)
    assert line["stored classes (K)"] == "3"
    assert line["bytes per reinforcement"] == f"{size / len(answers):.1f}"
    assert float(line["mass in the top K"]) == pytest.approx(np.mean(mass), abs=6e-4)
    assert float(line["entropy (nats)"]) == pytest.approx(np.mean(entropy), abs=6e-3)
    assert float(line["top-1 = label"].removesuffix(" %")) == pytest.approx(100 * np.mean(agreed), abs=0.06)
    assert 0 < np.mean(agreed) < 1 and 0.5 < np.mean(mass) < 1


def test_statistics(folder):
    config = ReinforcementConfig.load(folder / "randaug")
    found = statistics(folder / "randaug", config)
    assert found.num_rows == 70
    assert found.num_bytes == sum(shard.stat().st_size for shard in shards(folder / "randaug"))
    assert 0 < found.captured_mass < 1 and 0 < found.entropy < np.log(5)
    without = dataclasses.replace(config, source=dataclasses.replace(config.source, label_column=None))
    assert statistics(folder / "randaug", without).agreement is None


def test_the_text_names_the_teachers_and_the_source(folder, card):
    for name, count in (("randaug", 1), ("mixing", 2)):
        teachers = ReinforcementConfig.load(folder / name).teachers
        assert len(teachers) == count
        for teacher in teachers:
            line = next(line for line in card.text.splitlines() if teacher["weight_hash"] in line)
            assert line.startswith("- TinyNet") and "16 pixels" in line
    assert "mean of their probabilities" in card.text
    assert "somebody/pets" in card.text
    assert 'load_dataset("pets-plus", "mixing", split="train")' in card.text
    assert 'load_reinforced("pets-plus", "mixing")' in card.text


def test_nothing_of_the_template_is_left(card):
    assert not re.search(r"{{|{%|%}|}}|None|nan", card.text)
    assert card.text.lstrip().startswith("# pets-plus")
    assert not re.search(r"[^\n]\n#+ ", card.text.split("## Citation")[0]), "a heading needs an empty line above it"


def test_pictures_of_the_card_exist(folder, card):
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", card.text)
    assert sorted(pictures) == [f"mixing/{PREVIEW_FILE}", f"randaug/{PREVIEW_FILE}"]
    for picture in pictures:
        shown = pixels(folder / picture)
        assert min(shown.shape[:2]) > 300
        # Each third of the picture shows an image: no row of it is left blank.
        for part in np.array_split(shown, 3):
            assert part.std() > 10 and len(np.unique(part[::3, ::3].reshape(-1, 3), axis=0)) > 100


def test_a_preview_is_drawn_of_a_stream_and_without_labels(tmp_path):
    data = tiny_dataset(6, (20, 36), labels=0)
    stream = reinforce(
        data.to_iterable_dataset(), tiny_teacher(), named_policy("mixing", 16), tmp_path, num_samples=1, **OPTIONS
    )
    assert pixels(stream / PREVIEW_FILE).std() > 20
    text = (tmp_path / "README.md").read_text()
    assert "no labels" in text and table(DatasetCard(text))["mixing"]["images"] == "6"


def test_draw_chosen_positions(folder, data, tmp_path):
    from hf_reinforce.hub import load_reinforced

    dataset = load_reinforced(str(folder), "randaug", source=data)
    draw(dataset, [5], tmp_path / "one.png")
    draw(dataset, [5, 6], tmp_path / "two.png")
    one, two = pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png")
    assert one.shape[1] == two.shape[1] and len(two) == pytest.approx(2 * len(one), rel=0.05)
    assert one.std() > 20


def test_images_that_are_embedded_and_a_source_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_reinforce.run.write_preview", lambda *arguments: None)
    options = {**OPTIONS, "source_name": None}
    data = tiny_dataset(4)
    reinforce(data, tiny_teacher(), named_policy("rrc", 16), tmp_path, num_samples=1, embed_images=True, **options)
    card = DatasetCard.load(tmp_path / "README.md")
    assert "The images are in the data set." in card.text
    assert card.data.source_datasets is None
    assert not re.search(r"\bNone\b", card.text)
    loaded = load_dataset(str(tmp_path), "rrc", split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features["image"] == Image()


@pytest.mark.parametrize("name", ["./pets", "/data/pets", "data/sets/pets", "pets"])
def test_a_source_that_is_a_folder_is_no_link(folder, tmp_path, name):
    copy_config(folder, tmp_path, source_name=name)
    write_dataset_card(tmp_path)
    assert DatasetCard.load(tmp_path / "README.md").data.source_datasets is None


def copy_config(folder, target, complete=True, source_name="somebody/pets"):
    """The configuration `randaug` alone, in another folder."""
    (target / "randaug").mkdir(parents=True)
    for shard in shards(folder / "randaug"):
        (target / "randaug" / shard.name).write_bytes(shard.read_bytes())
    config = ReinforcementConfig.load(folder / "randaug")
    source = dataclasses.replace(config.source, name=source_name)
    dataclasses.replace(config, complete=complete, source=source).save(target / "randaug")


def test_an_unfinished_configuration_is_left_out(folder, tmp_path):
    copy_config(folder, tmp_path, complete=False)
    with pytest.raises(FileNotFoundError, match="no finished configuration"):
        write_dataset_card(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_a_folder_without_configurations(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished configuration"):
        write_dataset_card(tmp_path)


def test_the_card_is_a_function_of_the_folder(folder):
    before = (folder / "README.md").read_bytes()
    write_dataset_card(folder)
    assert (folder / "README.md").read_bytes() == before
