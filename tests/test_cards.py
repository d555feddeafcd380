"""Dataset cards: they say what is in the folder, their code runs, and no name can change their structure."""

import dataclasses
import json
import re
import runpy
import shlex
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image as PILImage
from recipe_modules import load_recipe
from tiny import tiny_dataset, tiny_teacher
from transformers import HfArgumentParser

from hf_reinforce import (
    KDTrainingArguments,
    ReinforcementConfig,
    load_policy,
    reinforce,
    write_dataset_card,
    write_preview,
)
from hf_reinforce.cards import markdown, statistics
from hf_reinforce.cards.dataset_card import RECIPES, Configuration, current_card, describe, keep_metadata, render
from hf_reinforce.cards.preview import PREVIEW_FILE
from hf_reinforce.licenses import is_hub_id, is_imagenet, read_license, recorded_name

ROOT = Path(__file__).parent.parent
HUB_CARDS = ROOT / "hub_cards"
CARDS = ("cifar100-plus", "flowers102-plus", "food101-plus", "imagenet-plus")
OPTIONS = {"top_k": 3, "shard_size": 64, "seed": 5, "device": "cpu", "source_name": "somebody/pets", "num_workers": 1}

# Identifiers that the Hub documents for `license`, as far as image datasets and models use them.
LICENSES = {
    *("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc-by-2.0", "cc-by-nc-2.0", "cc0-1.0"),
    *("cc-by-nc-sa-4.0", "bsd-3-clause", "openrail", "gpl-3.0", "odc-by", "unknown", "other"),
}


@pytest.fixture(scope="module")
def data():
    return tiny_dataset(70, (20, 36))


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """A repository of two configurations, one of them with its picture."""
    folder = tmp_path_factory.mktemp("cards") / "pets-plus"
    reinforce(data, tiny_teacher(), load_policy("randaug", 16), folder, num_samples=2, **OPTIONS)
    two = type(tiny_teacher())([tiny_teacher(5, 16, seed).members[0] for seed in (1, 2)])
    reinforce(data, two, load_policy("mixing", 16), folder, num_samples=5, **OPTIONS)
    write_preview(folder / "mixing", data)
    write_dataset_card(folder)
    return folder


@pytest.fixture
def card(folder):
    return DatasetCard.load(folder / "README.md")


@pytest.fixture
def copied(folder, tmp_path):
    """A repository with the configuration `randaug` alone, which a test may change."""
    shutil.copytree(folder / "randaug", tmp_path / "pets-plus" / "randaug")
    return tmp_path / "pets-plus"


def pixels(path):
    """A picture as an array [H, W, 3]."""
    with PILImage.open(path) as image:
        return np.asarray(image.convert("RGB"))


def section(card, heading):
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", card.text, re.M | re.S)[1]


def cells(text):
    """The tables of a text, as lists of lines of cells."""
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.M)
    found = [[[cell.strip() for cell in line.strip("|").split("|")] for line in t.splitlines()] for t in tables]
    for header, ruler, *body in found:
        assert set("".join(ruler)) == {"-"} and all(len(line) == len(header) for line in (ruler, *body))
    return [[header, *body] for header, _, *body in found]


def table(card, heading="Configurations"):
    """Cells of the first table of a section: those of each column by the names of the lines, by configuration."""
    header, *body = cells(section(card, heading))[0]
    return {name.strip("`"): {line[0]: line[index] for line in body} for index, name in enumerate(header[1:], start=1)}


def command_of(card):
    """The words of the command that trains a student, behind the name of the recipe."""
    (command,) = re.findall(r"```bash\n(.*?)```", card.text, re.S)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["accelerate", "launch", "recipes/train_kd.py"]
    return words[3:]


def check_metadata(card):
    """What the Hub asks of a card's metadata, as far as it can be known without it."""
    found = yaml.safe_load(str(card).split("---\n")[1])
    allowed = resources.files("datasets.utils") / "resources"
    assert DatasetCardData(**found).to_dict() == DatasetCard(str(card)).data.to_dict() == found
    assert set(found["size_categories"]) <= set(json.loads((allowed / "size_categories.json").read_text()))
    assert set(found["annotations_creators"]) <= set(
        json.loads((allowed / "creators.json").read_text())["annotations"]
    )
    assert found["task_categories"] == ["image-classification"] and all(isinstance(tag, str) for tag in found["tags"])
    licenses = found.get("license", [])
    assert ({licenses} if isinstance(licenses, str) else set(licenses)) <= LICENSES
    assert ("license_name" in found) == ("license_link" in found) == (licenses == "other")
    assert all(is_hub_id(name) for name in found.get("source_datasets", []))
    for config in found["configs"]:
        (files,) = config["data_files"]
        assert files["path"] == f"{config['config_name']}/{files['split']}-*.parquet"
    return found


def described(folder, teacher=None, statistics=None, **source):
    """The configuration `randaug` with other facts about its source, its teacher and its statistics."""
    item = describe(folder, ["randaug"])["randaug"]
    target = dataclasses.replace(item.config.classes, teachers=({**item.config.teachers[0], **(teacher or {})},))
    source = dataclasses.replace(item.config.source, **source)
    config = dataclasses.replace(item.config, targets=(target,), source=source)
    measured = dataclasses.replace(item.statistics, **(statistics or {}))
    return {"randaug": dataclasses.replace(item, config=config, statistics=measured)}


# What is in the folder


def test_metadata_and_text(folder, card):
    found = check_metadata(card)
    assert (found["pretty_name"], found["size_categories"]) == ("pets-plus", ["n<1K"])
    assert found["source_datasets"] == ["somebody/pets"] and "dataset-reinforcement" in found["tags"]
    assert "license" not in found and "extra_gated_prompt" not in found
    assert not re.search(r"{{|{%|%}|}}|None|nan", card.text) and card.text.lstrip().startswith("# pets-plus")
    assert not re.search(r"[^\n]\n#+ ", card.text.split("## Citation")[0]), "a heading needs an empty line above it"
    for name, count in (("randaug", 1), ("mixing", 2)):
        teachers = ReinforcementConfig.load(folder / name).teachers
        assert len(teachers) == count
        for teacher in teachers:
            line = next(line for line in card.text.splitlines() if teacher["weight_hash"] in line)
            assert line.startswith("| `TinyNet` | 16 px | float32 |") and "not stated" in line
    assert "mean of their probabilities" in section(card, "Teacher") and "pip install ." in section(card, "Load")
    columns = ("source_row", "image_hash", "augmentation_params", "teacher_logits", "label", "value", "tail")
    assert all(f"`{name}`" in section(card, "Columns") for name in columns)
    mixing, randaug = section(card, "Augmentations").split("`randaug`:")
    assert mixing.lstrip().startswith("`mixing`:\n\n1. random crop of 8 % to 100 % of the area")
    for operation, where in [
        ("RandAugment", randaug),
        ("RandomErasing", randaug),
        ("MixUp", mixing),
        ("CutMix", mixing),
    ]:
        assert re.search(rf"^\d. {operation}", where, re.M) and (mixing + randaug).count(operation) == 1


@pytest.mark.parametrize(("name", "num_samples"), [("randaug", 2), ("mixing", 5)])
def test_the_tables_tell_what_is_in_the_files(folder, card, tmp_path, name, num_samples):
    shards = sorted((folder / name).glob("*.parquet"))
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    loaded = load_dataset(str(folder), name, split="train", cache_dir=str(tmp_path))
    assert loaded.with_format("arrow")[:].to_pylist() == rows
    mass, entropy, agreed = [], [], []
    for row in rows:
        for answer in row["teacher_logits"]:
            masses = np.exp(np.array([*answer["value"], answer["tail"]], dtype=np.float64))
            masses /= masses.sum()
            mass.append(masses[:-1].sum())
            entropy.append(-sum(p * np.log(p) for p in masses if p > 0))
            agreed.append(answer["label"][0] == row["label"])
    size = sum(shard.stat().st_size for shard in shards)
    line, targets = table(card)[name], table(card, "Targets")[name]
    assert (line["images"], line["images left out"]) == ("70", "0")
    assert line["reinforcements per image (N)"] == str(num_samples)
    assert line["targets"] == "`teacher_logits`: the 3 most likely of 5 classes"
    assert line["bytes per reinforcement"] == f"{size / len(mass):.1f}" and line["size"] == f"{size / 1e6:,.1f} MB"
    assert targets["measured on"] == f"70 images, {70 * num_samples} targets"
    assert float(targets["mass in the top K"]) == pytest.approx(np.mean(mass), abs=6e-4)
    assert float(targets["entropy (nats)"]) == pytest.approx(np.mean(entropy), abs=6e-4)
    shown = targets["teacher's accuracy over the views"].removesuffix(" %")
    assert float(shown) == pytest.approx(100 * np.mean(agreed), abs=0.06) and 0 < np.mean(agreed) < 1


def test_statistics_are_of_rows_from_everywhere(folder, monkeypatch):
    monkeypatch.setattr(statistics, "_MAX_TARGETS", 60)
    monkeypatch.setattr(statistics, "_BATCH_TARGETS", 14)  # 7 rows: the step goes on across batches
    shards = sorted((folder / "randaug").glob("*.parquet"))
    found, images = statistics.measure(shards, ReinforcementConfig.load(folder / "randaug"))
    expected = [*range(0, 64, 3), 64, 67]  # rows 0, 3, ... of the first shard of 64, then 0 and 3 of the second of 6
    assert images["row"].tolist() == expected and (found.num_rows, found.measured_rows) == (70, len(expected))


def test_an_unfinished_or_damaged_configuration(copied):
    before = describe(copied)
    (copied / "randaug" / "a.parquet").write_text("no Parquet", encoding="utf-8")
    assert describe(copied) == before, "only shards are described"
    shard = copied / "randaug" / "train-00001-of-00002.parquet"
    content = shard.read_bytes()
    pages = bytes(len(content) // 2) + content[len(content) // 2 :]  # the footer is whole
    for damaged in (content[:-20], pages, b""):
        shard.write_bytes(damaged)
        with pytest.raises(
            ValueError, match="train-00001-of-00002.parquet is damaged .*Delete it and run the command"
        ):
            describe(copied)
    for file in (copied / "randaug").glob("train-*"):
        file.unlink()
    with pytest.raises(ValueError, match="has no rows; run the command that reinforces it again"):
        describe(copied)
    dataclasses.replace(ReinforcementConfig.load(copied / "randaug"), complete=False).save(copied / "randaug")
    for path in (copied, copied / "nothing"):
        with pytest.raises(FileNotFoundError, match="no finished configuration"):
            write_dataset_card(path)
    assert not (copied / "README.md").exists()


def test_the_card_of_a_folder_is_kept_while_it_describes_it(copied):
    assert "randaug" in str(current_card(copied, ["randaug"])) and not (copied / "README.md").exists()
    write_dataset_card(copied)
    first = (copied / "README.md").read_bytes()
    write_dataset_card(copied)
    assert (copied / "README.md").read_bytes() == first
    (copied / "README.md").write_text(first.decode() + "\nMy own words.\n")
    assert "My own words." in str(current_card(copied, ["randaug"]))
    config = ReinforcementConfig.load(copied / "randaug")
    dataclasses.replace(config, seed=6).save(copied / "randaug")  # reinforced again
    assert "My own words." not in str(current_card(copied, ["randaug"]))


def test_two_sources_are_described_both(folder):
    (first,) = described(folder, name="me/pets", license="mit").values()
    (second,) = described(folder, name="me/birds", license="cc-by-4.0", split="test").values()
    second = dataclasses.replace(second, config=dataclasses.replace(second.config, embed_images=True))
    card = render("both", {"birds": second, "pets": first})
    found = check_metadata(card)
    assert found["source_datasets"] == ["me/birds", "me/pets"] and found["license"] == ["cc-by-4.0", "mit"]
    assert [config["data_files"][0]["split"] for config in found["configs"]] == ["test", "train"]
    assert "datasets/me/birds) and [me/pets](" in card.text.split("## ")[0]
    images_of = {name: line["images of"].split("]")[0] for name, line in table(card).items()}
    assert images_of == {"birds": "[me/birds", "pets": "[me/pets"}
    load = section(card, "Load")
    assert "The images of `pets` are **not** in the dataset" in load and "they stay in [me/pets]" in load
    assert 'load_reinforced("both", "pets")' in load
    licences = {line[0].split("]")[0]: line[1] for line in cells(section(card, "Licence"))[0][1:]}
    assert licences["[me/birds"] == "cc-by-4.0" and licences["[me/pets"] == "mit"


@pytest.mark.parametrize("count", [999, 1000, 10**6 - 1, 10**6, 10**9])
def test_size_categories(folder, count):
    card = render("pets-plus", described(folder, statistics={"num_rows": count}))
    (size,) = check_metadata(card)["size_categories"]
    numbers = {"n": 1, "K": 10**3, "M": 10**6, "B": 10**9}
    bounds = [int(number) * numbers[unit or "n"] for number, unit in re.findall(r"(\d+)([KMB]?)", size)]
    assert (bounds[0] if len(bounds) == 2 else 0) <= count < bounds[-1]


# Pictures


def test_the_preview(folder, card):
    assert re.findall(r"!\[.*?\]\((.*?)\)", card.text) == ["mixing/preview.png"]
    for part in np.array_split(pixels(folder / "mixing" / PREVIEW_FILE), 3):  # each third shows an image
        assert part.std() > 10 and len(np.unique(part[::3, ::3].reshape(-1, 3), axis=0)) > 100


def test_a_stream_without_labels(tmp_path):
    images = tiny_dataset(6, (20, 36), labels=0).to_iterable_dataset()
    stream = reinforce(images, tiny_teacher(), load_policy("mixing", 16), tmp_path, num_samples=1, **OPTIONS)
    write_preview(stream, images)
    write_dataset_card(tmp_path)
    assert pixels(stream / PREVIEW_FILE).std() > 20
    card = DatasetCard.load(tmp_path / "README.md")
    assert table(card)["mixing"]["images"] == "6"
    assert table(card, "Targets")["mixing"]["teacher's accuracy over the views"] == "no labels"


def test_embedded_images_hostile_classes_and_a_source_in_memory(data, tmp_path):
    names = ["$x^{2$", r"\frac{", "<b>", "a|b", "a`b" * 20]
    renamed = data.cast_column("label", type(data.features["label"])(names=names)).select(range(5))
    options = {**OPTIONS, "source_name": None, "embed_images": True}
    reinforce(renamed, tiny_teacher(), load_policy("rrc", 16), tmp_path, num_samples=1, **options)
    write_preview(tmp_path / "rrc")
    write_dataset_card(tmp_path)
    assert pixels(tmp_path / "rrc" / PREVIEW_FILE).std() > 20
    card = DatasetCard.load(tmp_path / "README.md")
    assert "The images are in the dataset." in card.text and "None" not in card.text
    assert card.data.source_datasets is None


# Licences


@pytest.mark.parametrize(
    ("source", "teacher", "license"),
    [
        (None, "mit", None),
        ("cc-by-4.0", None, "cc-by-4.0"),
        ("cc-by-4.0", "cc-by-4.0", "cc-by-4.0"),
        ("cc-by-4.0, mit", "cc-by-nc-4.0", ["cc-by-4.0", "mit", "cc-by-nc-4.0"]),
        ("unknown", "mit", ["unknown", "mit"]),
    ],
)
def test_licence_is_the_sources_and_the_teachers(folder, source, teacher, license):
    card = render("pets-plus", described(folder, {"license": teacher}, license=source))
    assert check_metadata(card).get("license") == license
    assert list(dict(cells(section(card, "Licence"))[0][1:]).values()) == [
        source or "not stated",
        teacher or "not stated",
    ]


def test_imagenet_is_gated(folder):
    card = render("imagenet-plus", described(folder, name="ILSVRC/imagenet-1k", license="other"))
    found = check_metadata(card)
    assert (found["license"], found["license_name"]) == ("other", "imagenet")
    assert found["license_link"] == "https://www.image-net.org/download.php"
    assert "non-commercial research" in found["extra_gated_prompt"]
    assert "ImageNet terms of access" in section(card, "Licence")


def test_imagenet_is_known_by_its_name():
    names = ["ILSVRC/imagenet-1k", "timm/imagenet-w21-wds", "/data/imagenet/train", "me/ILSVRC2012", "x/tiny-imagenet"]
    assert all(map(is_imagenet, names))
    assert not any(map(is_imagenet, [None, "me/pets", "me/notimagenet", "imagine/net"]))


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: mit\n---\n# Pets\n", "mit"),
        ("---\nlicense: [mit, cc-by-4.0]\n---\n", "mit, cc-by-4.0"),
        ("---\ntags: [pets]\n---\n", None),
        ("---\nlicense: {a: 1}\n---\n", None),
        ("---\nlicense: [unclosed\n---\n", None),
        ("no metadata", None),
        (None, None),
    ],
)
def test_licence_is_read_from_a_folders_card(tmp_path, readme, expected):
    if readme is not None:
        (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    assert read_license(str(tmp_path), "model") == expected
    for name in (None, "resnet18", "nobody/has-this", "/not/here", "a//b", ""):
        assert read_license(name, "dataset", "main") is None


def test_reinforce_records_licences(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n", encoding="utf-8")
    teacher, name = tiny_teacher(), str(tmp_path / "source")
    teacher = type(teacher)([dataclasses.replace(teacher.members[0], name=name, kind="timm")])
    options = {**OPTIONS, "source_name": name, "num_samples": 1}
    config = ReinforcementConfig.load(reinforce(tiny_dataset(4), teacher, load_policy("rrc", 16), tmp_path, **options))
    assert config.source.license == config.teachers[0]["license"] == "cc-by-4.0"


@pytest.mark.parametrize(
    ("theirs", "mine", "expected"),
    [
        ("mit", "mit", "mit"),
        ("mit", "cc-by-4.0", ["mit", "cc-by-4.0"]),
        (["mit", "cc-by-4.0"], "cc-by-nc-4.0", ["mit", "cc-by-4.0", "cc-by-nc-4.0"]),
        (None, "mit", "mit"),
        ("mit", None, "mit"),
    ],
)
def test_metadata_fit_the_configurations_that_only_the_hub_has(theirs, mine, expected):
    def card(name, license, **data):
        data |= {"license": license} if license else {}
        metadata = DatasetCardData(configs=[{"config_name": name, "data_files": []}], **data)
        return DatasetCard(f"---\n{metadata.to_yaml()}\n---\n")

    on_hub = card("old", theirs, source_datasets=["me/a"], tags=["mine"], extra_gated_prompt="Ask me.")
    options = {"source_datasets": ["me/b"], "size_categories": ["n<1K"], "pretty_name": "folder"}
    new, alone = card("new", mine, **options), card("old", mine, **options)
    assert keep_metadata(new, on_hub) == ["old"]
    found = new.data.to_dict()
    assert found.get("license") == expected and found["source_datasets"] == ["me/a", "me/b"]
    assert found["tags"] == ["mine"] and found["extra_gated_prompt"] == "Ask me."
    assert [config["config_name"] for config in found["configs"]] == ["new", "old"]
    assert keep_metadata(alone, on_hub) == []
    assert alone.data.to_dict()["license"] == (mine or theirs)  # the configuration was made again


# Names


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "| x | y |",
        "a`b``c",
        "[click](https://evil.example)",
        "![](x)",
        "*bold* _low_ ~~no~~",
        "line\n\n# heading\n- item",
        "---\nlicense: mit\n---",
        "$x^{2$ {{ 7 * 7 }} {% raw %}",
        "&lt;b&gt; \\ \" ' %",
    ],
)
def test_names_change_nothing_but_themselves(folder, name):
    teacher = dict.fromkeys(("name", "license", "dtype", "weight_hash", "architecture", "revision"), name)
    (item,) = described(folder, teacher, name=name, label_column=name, split=name).values()
    target = dataclasses.replace(item.config.classes, class_names=tuple(f"{name}{index}" for index in range(5)))
    item = dataclasses.replace(item, config=dataclasses.replace(item.config, targets=(target,)))
    card, tame = render(name, {name: item}), render("pets-plus", described(folder)).text
    front = yaml.safe_load(str(card).split("\n---\n")[0].removeprefix("---\n"))
    assert front["pretty_name"] == front["configs"][0]["config_name"] == name
    body = card.text
    outside = re.sub(r"^```.*?^```$", "", body, flags=re.M | re.S)
    opened = ("<script", "<b>", "![](x)", "(https://evil", "*bold*", "~~no~~", "\n# heading", "\n- item", "| x |")
    assert not [sign for sign in opened if sign in re.sub(r"`[^`\n]*`", "", outside)]
    # The structure is that of a card with tame names: the same headings, blocks and tables.
    assert re.findall(r"^## .*$", body, re.M) == re.findall(r"^## .*$", tame, re.M)
    assert body.count("```") == tame.count("```") and len(re.findall(r"^# ", outside, re.M)) == 1
    widths = [
        [len(found[0]) for found in cells(text)] for text in (outside, re.sub(r"```.*?```", "", tame, flags=re.S))
    ]
    assert widths[0] == widths[1]
    for code in re.findall(r"^```python\n(.*?)^```$", body, re.M | re.S):
        compile(code, "card", "exec")
    words = command_of(card)
    for flag in ("--dataset_name", "--dataset_config_name"):
        assert words[words.index(flag) + 1] == " ".join(name.split())


@pytest.mark.parametrize(
    ("value", "text", "code"),
    [
        ("aquarium_fish", "aquarium_fish", "`aquarium_fish`"),
        ("_low_", "&#95;low&#95;", "`_low_`"),
        ("a|b", "a&#124;b", "<code>a&#124;b</code>"),
        ("http://x.example", "http&#58;//x.example", "`http://x.example`"),
        ("Ameisenbär", "Ameisenbär", "`Ameisenbär`"),
        ("a\u202eb", "a&#8238;b", "<code>a&#8238;b</code>"),
    ],
)
def test_escapes(value, text, code):
    assert (markdown.text(value), markdown.code(value)) == (text, code)


def test_a_folder_in_the_way_makes_a_hub_id_no_folder(folder, tmp_path, monkeypatch):
    (tmp_path / "me" / "data").mkdir(parents=True)
    assert is_hub_id("me/data") and recorded_name("me/data") == "me/data"
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("me/data"), "a rule of the name alone"
    assert recorded_name("me/data") == "./me/data" and not is_hub_id("./me/data")
    assert recorded_name("me") == "me" and recorded_name(str(tmp_path)) == str(tmp_path)
    for name in ("./pets", "/data/pets", "data/sets/pets", "pets"):
        assert "source_datasets" not in check_metadata(render("x", described(folder, name=name)))


# Code


def test_the_code_of_the_card_runs(folder, card, data, monkeypatch):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr("hf_reinforce.hub.load.load_source", lambda name, *arguments: data)
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", card.text, re.S):
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(namespace["reinforced"]) == len(namespace["train_dataset"]) == 70
    recipe = load_recipe("train_kd")
    parser = HfArgumentParser([recipe.DataArguments, recipe.ModelArguments, KDTrainingArguments], allow_abbrev=False)
    words = command_of(card)
    assert parser.parse_known_args(words)[1] == [] and words[words.index("--dataset_name") + 1] == "pets-plus"


def test_the_command_names_the_recipe_of_its_source(folder):
    for side, first in ((32, "recipes/cifar100_plus/student.yaml"), (224, "--method")):
        (item,) = described(folder, name="uoft-cs/cifar100").values()
        config = dataclasses.replace(item.config, policy=load_policy("randaug", side))
        words = command_of(render("x", {"randaug": Configuration(config)}))
        assert words[0] == first and ("--learning_rate" in words) == (side == 224)
    for (source, side), name in RECIPES.items():
        recipes = [yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / "recipes" / name).glob("*.yaml")]
        made = [recipe for recipe in recipes if "num_samples" in recipe]
        assert made and {(recipe["dataset_name"], recipe["image_size"]) for recipe in made} == {(source, side)}
        student = yaml.safe_load((ROOT / "recipes" / name / "student.yaml").read_text(encoding="utf-8"))
        assert student["method"] == "reinforced" and student["output_dir"] != "outputs/student"


# The cards of hub_cards/


def test_hub_cards_are_up_to_date():
    card = runpy.run_path(str(HUB_CARDS / "render.py"))["card"]
    assert list(CARDS) == sorted(path.parent.name for path in HUB_CARDS.glob("*/README.md"))
    for name in CARDS:
        there = (HUB_CARDS / name / "README.md").read_text(encoding="utf-8")
        assert card(name) == there, f"hub_cards/{name} is out of date; run: python hub_cards/render.py"
    assert "python hub_cards/render.py\n" in (HUB_CARDS / "README.md").read_text(encoding="utf-8")
    known = yaml.safe_load((HUB_CARDS / "sources.yaml").read_text(encoding="utf-8"))
    for entry in (*known["sources"].values(), *known["teachers"].values()):
        assert bool(entry["stated_in"]) == (entry["license"] is not None)


@pytest.mark.parametrize("name", CARDS)
def test_hub_card_is_valid_and_invents_nothing(name):
    card = DatasetCard.load(HUB_CARDS / name / "README.md")
    assert ("extra_gated_prompt" in check_metadata(card)) == (name == "imagenet-plus")
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert pixels(HUB_CARDS / name / picture).std() > 10
    assert all(map(is_hub_id, re.findall(r"\]\(https://huggingface.co/(?:datasets/)?([^)]*)\)", card.text)))
    planned = name != "cifar100-plus"
    assert ("has not been generated yet" in card.text.split("## ")[0]) == planned
    assert ("not measured yet" in card.text) == planned
    if planned:
        values = {value for line in table(card, "Targets").values() for value in line.values()}
        values |= {line[of] for line in table(card).values() for of in ("bytes per reinforcement", "size")}
        assert values == {"not measured yet"}
        return
    (item,) = json.loads((HUB_CARDS / name / "measured.json").read_text())["configurations"].values()
    line = table(card, "Targets")["small_randaug"]
    assert line["teacher's accuracy over the views"] == f"{100 * item['statistics']['agreement']:.1f} %"
    assert line["measured on"] == "50,000 images, 200,000 targets"


def test_planned_cards_follow_the_recipes():
    card = DatasetCard.load(HUB_CARDS / "imagenet-plus" / "README.md")
    assert [config["config_name"] for config in card.data.configs] == ["rrc", "mixing", "randaug", "mixing_randaug"]
    recipe = yaml.safe_load((ROOT / "recipes" / "imagenet_plus" / "rrc.yaml").read_text(encoding="utf-8"))
    line = table(card)["rrc"]
    assert line["reinforcements per image (N)"] == str(recipe["num_samples"]) and line["images"] == "1,281,167"
    assert all(teacher in section(card, "Teacher") for teacher in recipe["teacher_name_or_path"])
