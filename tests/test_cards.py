import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Image, load_dataset
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image as PILImage
from recipe_modules import load_recipe
from tiny import tiny_dataset, tiny_teacher

from hf_reinforce import schema
from hf_reinforce.augmentations.policies import POLICY_NAMES, named_policy
from hf_reinforce.cards import markdown, statistics
from hf_reinforce.cards.dataset_card import RECIPES, current_card, describe, keep_metadata, render, write_dataset_card
from hf_reinforce.cards.preview import PREVIEW_FILE, STATISTICS_FILE, draw, write_preview
from hf_reinforce.cards.statistics import BINS, measure
from hf_reinforce.cards.tables import Configuration, Remarks
from hf_reinforce.generation.reinforce import reinforce
from hf_reinforce.licenses import is_hub_id, is_imagenet, read_license, recorded_name
from hf_reinforce.store.config import ReinforcementConfig

ROOT = Path(__file__).parent.parent

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
    for name in ("randaug", "mixing"):
        write_preview(folder / name, data)
    write_dataset_card(folder)
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


def section(card, heading):
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", card.text, re.M | re.S)[1]


def cells(text):
    """The tables of a text, as lists of lines of cells."""
    found, previous = [], False
    for line in text.splitlines():
        if line.startswith("|"):
            if not previous:
                found.append([])
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))])
        previous = line.startswith("|")
    for header, ruler, *body in found:
        assert all(set(cell) == {"-"} for cell in ruler)
        assert all(len(line) == len(header) for line in (ruler, *body))
    return [[header, *body] for header, ruler, *body in found]


def table(card, heading="Configurations"):
    """Cells of the first table of a section: those of each column by the names of the lines, by configuration."""
    header, *body = cells(section(card, heading))[0]
    return {name.strip("`"): {line[0]: line[index] for line in body} for index, name in enumerate(header[1:], start=1)}


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
    answers = [(row["label"], answer) for row in found for answer in row["teacher_logits"]]
    mass, entropy, agreed = [], [], []
    for label, answer in answers:
        masses = np.exp(np.array([*answer["value"], answer["tail"]], dtype=np.float64))
        masses /= masses.sum()
        mass.append(masses[:-1].sum())
        entropy.append(-sum(p * np.log(p) for p in masses if p > 0))
        agreed.append(answer["label"][0] == label)
    size = sum(shard.stat().st_size for shard in shards(folder / name))
    line, targets = table(card)[name], table(card, "Targets")[name]
    assert line["images"] == "70"
    assert line["coverage of the source's rows"] == "70 of 70 (100 %), 0 skipped"
    assert line["reinforcements per image (N)"] == str(len(answers) // 70)
    assert line["stored classes (K)"] == "3 of 5"
    assert line["bytes per reinforcement"] == f"{size / len(answers):.1f}"
    assert line["size"] == f"{size / 1e6:,.1f} MB"
    assert targets["measured on"] == f"70 images, {len(answers)} targets"
    assert float(targets["mass in the top K"]) == pytest.approx(np.mean(mass), abs=6e-4)
    assert float(targets["entropy (nats)"]) == pytest.approx(np.mean(entropy), abs=6e-3)
    shown = targets["teacher's accuracy over the views"].removesuffix(" %")
    assert float(shown) == pytest.approx(100 * np.mean(agreed), abs=0.06)
    assert 0 < np.mean(agreed) < 1 and 0.5 < np.mean(mass) < 1


def test_statistics(folder):
    config = ReinforcementConfig.load(folder / "mixing")
    found, images = measure(shards(folder / "mixing"), config)
    assert (found.num_rows, found.measured_rows) == (70, 70)
    hits = np.zeros((5, 2))
    best, confidences = [], []
    for row in rows(folder / "mixing"):
        mean = np.zeros(5)
        for params, answer in zip(row[schema.AUGMENTATION_PARAMS], row["teacher_logits"], strict=True):
            masses = np.exp(np.array([*answer["value"], answer["tail"]], dtype=np.float64))
            if params["mixup"] is params["cutmix"] is None:
                mean[answer["label"]] += (masses / masses.sum())[:-1]
            confidences.append((masses / masses.sum())[0])
            hits[row["label"]] += answer["label"][0] == row["label"], 1
        if mean.any():
            best.append(mean.argmax() == row["label"])
    assert images["compared"].sum() == len(best) < 70
    assert found.agreement_of_mean == pytest.approx(np.mean(best))
    assert found.confidence == pytest.approx(np.mean(confidences))
    assert found.class_agreement == pytest.approx(hits[:, 0] / hits[:, 1])
    assert found.confidence_counts == np.histogram(confidences, BINS, (0, 1))[0].tolist()
    assert sum(found.confidence_counts) == 350 and sum(found.confidence_hits) == hits[:, 0].sum()

    without = dataclasses.replace(config, source=dataclasses.replace(config.source, label_column=None))
    found, _ = measure(shards(folder / "mixing"), without)
    assert found.agreement is found.agreement_of_mean is found.confidence_hits is found.class_agreement is None


def test_statistics_are_of_rows_from_everywhere(folder, monkeypatch):
    monkeypatch.setattr(statistics, "_MAX_TARGETS", 60)
    config = ReinforcementConfig.load(folder / "randaug")
    assert len(shards(folder / "randaug")) == 2
    monkeypatch.setattr(statistics, "_BATCH_TARGETS", 14)  # 7 rows: the step goes on across batches
    # Rows 0, 3, ... of the first shard of 64, then 0 and 3 of the second of 6.
    expected = [*range(0, 64, 3), 64, 67]
    found, images = measure(shards(folder / "randaug"), config)
    assert images["row"].tolist() == expected and (found.num_rows, found.measured_rows) == (70, len(expected))
    assert measure(shards(folder / "randaug"), config, every_row=True)[0].measured_rows == 70


def test_the_text_names_the_teachers_and_the_source(folder, card):
    for name, count in (("randaug", 1), ("mixing", 2)):
        teachers = ReinforcementConfig.load(folder / name).teachers
        assert len(teachers) == count
        for teacher in teachers:
            line = next(line for line in card.text.splitlines() if teacher["weight_hash"] in line)
            assert line.startswith("| `TinyNet` | 16 px | float32 |") and "not stated" in line
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
    both = (PREVIEW_FILE, STATISTICS_FILE)
    assert sorted(pictures) == [f"{name}/{picture}" for name in ("mixing", "randaug") for picture in both]
    for picture in pictures:
        shown = pixels(folder / picture)
        assert min(shown.shape[:2]) > 300
        if picture.endswith(STATISTICS_FILE):
            for part in np.array_split(shown, 2, axis=1):
                assert part.std() > 10
            continue
        # Each third of the picture shows an image: no row of it is left blank.
        for part in np.array_split(shown, 3):
            assert part.std() > 10 and len(np.unique(part[::3, ::3].reshape(-1, 3), axis=0)) > 100


def test_a_preview_is_drawn_of_a_stream_and_without_labels(tmp_path):
    data = tiny_dataset(6, (20, 36), labels=0)
    images = data.to_iterable_dataset()
    stream = reinforce(images, tiny_teacher(), named_policy("mixing", 16), tmp_path, num_samples=1, **OPTIONS)
    write_preview(stream, images)
    write_dataset_card(tmp_path)
    assert pixels(stream / PREVIEW_FILE).std() > 20
    text = (tmp_path / "README.md").read_text()
    card = DatasetCard(text)
    assert table(card)["mixing"]["images"] == "6"
    assert table(card)["mixing"]["coverage of the source's rows"] == "6 of not known, 0 skipped"
    assert table(card, "Targets")["mixing"]["teacher's accuracy over the views"] == "no labels"
    assert pixels(stream / STATISTICS_FILE).std() > 10


def test_draw_chosen_positions(folder, data, tmp_path):
    from hf_reinforce.hub.load import load_reinforced

    dataset = load_reinforced(str(folder), "randaug", source=data)
    draw(dataset, [5], tmp_path / "one.png")
    draw(dataset, [5, 6], tmp_path / "two.png")
    one, two = pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png")
    assert one.shape[1] == two.shape[1] and len(two) == pytest.approx(2 * len(one), rel=0.05)
    assert one.std() > 20


def test_images_that_are_embedded_and_a_source_in_memory(tmp_path):
    options = {**OPTIONS, "source_name": None}
    data = tiny_dataset(4)
    reinforce(data, tiny_teacher(), named_policy("rrc", 16), tmp_path, num_samples=1, embed_images=True, **options)
    write_preview(tmp_path / "rrc")
    write_dataset_card(tmp_path)
    assert pixels(tmp_path / "rrc" / PREVIEW_FILE).std() > 20
    card = DatasetCard.load(tmp_path / "README.md")
    assert "The images are in the dataset." in card.text
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


def test_only_shards_are_described(folder, tmp_path):
    path = Path(shutil.copytree(folder / "randaug", tmp_path / "pets-plus" / "randaug"))
    before = describe(tmp_path / "pets-plus")["randaug"]
    (path / "a.parquet").write_text("no Parquet", encoding="utf-8")
    assert describe(tmp_path / "pets-plus")["randaug"] == before

    shard = path / "train-00001-of-00002.parquet"
    content = shard.read_bytes()
    pages = bytes(len(content) // 2) + content[len(content) // 2 :]  # the footer is whole
    for damaged in (content[:-20], pages, b""):
        shard.write_bytes(damaged)
        with pytest.raises(
            ValueError, match="train-00001-of-00002.parquet is damaged .*Delete it and run the command"
        ):
            describe(tmp_path / "pets-plus")
    for file in shards(path):
        file.unlink()
    with pytest.raises(ValueError, match="randaug has no shards of the split 'train'; run the command"):
        describe(tmp_path / "pets-plus")


def test_a_folder_without_configurations(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished configuration"):
        write_dataset_card(tmp_path)


def test_the_card_is_a_function_of_the_folder(folder):
    before = (folder / "README.md").read_bytes()
    write_dataset_card(folder)
    assert (folder / "README.md").read_bytes() == before


def test_the_card_of_a_folder_is_kept_while_it_describes_it(folder, tmp_path):
    copy_config(folder, tmp_path)
    assert "pets-plus" not in str(current_card(tmp_path, ["randaug"])) and not (tmp_path / "README.md").exists()
    write_dataset_card(tmp_path)
    own = (tmp_path / "README.md").read_text() + "\nMy own words.\n"
    (tmp_path / "README.md").write_text(own)
    assert "My own words." in str(current_card(tmp_path, ["randaug"]))
    config = ReinforcementConfig.load(tmp_path / "randaug")
    dataclasses.replace(config, seed=6).save(tmp_path / "randaug")  # reinforced again
    assert "My own words." not in str(current_card(tmp_path, ["randaug"]))


# Metadata

# Identifiers that the Hub documents for `license`, as far as image datasets and models use them.
LICENSES = {
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "openrail", "gpl", "gpl-2.0", "gpl-3.0", "lgpl-3.0"),
    *("cc", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0"),
    *("cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0"),
    *("cc-by-nc-sa-4.0", "cdla-permissive-2.0", "odc-by", "odbl", "pddl", "agpl-3.0", "mpl-2.0", "unknown", "other"),
}


def allowed(name):
    """Values that `datasets` knows for a key of a card."""
    return json.loads((resources.files("datasets.utils") / "resources" / f"{name}.json").read_text(encoding="utf-8"))


def check_metadata(text):
    """What the Hub asks of a card's metadata, as far as it can be known without it."""
    block = text.split("---\n")[1]
    found = yaml.safe_load(block)
    assert DatasetCardData(**found).to_dict() == found
    assert DatasetCard(text).data.to_dict() == found
    assert set(found["size_categories"]) <= set(allowed("size_categories"))
    assert set(found["annotations_creators"]) <= set(allowed("creators")["annotations"])
    assert found["task_categories"] == ["image-classification"]
    licenses = found.get("license", [])
    assert {licenses} <= LICENSES if isinstance(licenses, str) else set(licenses) <= LICENSES
    assert ("license_name" in found) == ("license_link" in found) == (licenses == "other")
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", name) for name in found.get("source_datasets", []))
    assert all(isinstance(tag, str) for tag in found["tags"])
    for config in found["configs"]:
        (files,) = config["data_files"]
        assert files["path"] == f"{config['config_name']}/{files['split']}-*.parquet"
    return found


def described(folder, **source):
    """The configuration `randaug` with another source, and the teacher's licence."""
    item = describe(folder, ["randaug"])["randaug"]
    license = source.pop("teacher_license", None)
    teachers = tuple({**teacher, **({"license": license} if license else {})} for teacher in item.config.teachers)
    targets = (dataclasses.replace(item.config.classes, teachers=teachers),)
    config = dataclasses.replace(
        item.config, targets=targets, source=dataclasses.replace(item.config.source, **source)
    )
    return {"randaug": dataclasses.replace(item, config=config)}


def test_metadata_is_valid(folder):
    found = check_metadata((folder / "README.md").read_text(encoding="utf-8"))
    assert "license" not in found and "extra_gated_prompt" not in found


@pytest.mark.parametrize(
    ("source", "teacher", "license"),
    [
        (None, "mit", None),
        ("cc-by-4.0", None, "cc-by-4.0"),
        ("cc-by-4.0", "cc-by-4.0", "cc-by-4.0"),
        ("cc-by-4.0", "cc-by-nc-4.0", ["cc-by-4.0", "cc-by-nc-4.0"]),
        ("unknown", "mit", "unknown"),
    ],
)
def test_licence_is_the_sources_and_the_teachers(folder, source, teacher, license):
    card = render("pets-plus", described(folder, license=source, teacher_license=teacher))
    assert check_metadata(str(card)).get("license") == license
    stated = dict(cells(section(card, "Licence"))[0][1:])
    assert list(stated.values()) == [source or "not stated", teacher or "not stated"]


@pytest.mark.parametrize("count", [999, 1000, 10**6 - 1, 10**6, 10**9])
def test_size_categories(folder, count):
    (item,) = described(folder).values()
    item = dataclasses.replace(item, statistics=dataclasses.replace(item.statistics, num_rows=count))
    (size,) = check_metadata(str(render("pets-plus", {"randaug": item})))["size_categories"]
    numbers = {"n": 1, "K": 10**3, "M": 10**6, "B": 10**9}
    bounds = [int(number) * numbers[unit or "n"] for number, unit in re.findall(r"(\d+)([KMB]?)", size)]
    assert (bounds[0] if len(bounds) == 2 else 0) <= count < bounds[-1]


def test_imagenet_is_gated(folder):
    card = render("imagenet-plus", described(folder, name="ILSVRC/imagenet-1k", license="other"))
    found = check_metadata(str(card))
    assert (found["license"], found["license_name"]) == ("other", "imagenet")
    assert found["license_link"] == "https://www.image-net.org/download.php"
    assert "non-commercial research" in found["extra_gated_prompt"]
    assert "ImageNet terms of access" in section(card, "Licence")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(
            (name, True)
            for name in (
                "ILSVRC/imagenet-1k",
                "timm/imagenet-w21-wds",
                "/data/imagenet/train",
                "me/ILSVRC2012",
                "x/tiny-imagenet",
            )
        ),
        *((name, False) for name in (None, "me/pets", "me/notimagenet", "imagine/net")),
    ],
)
def test_imagenet_is_known_by_its_name(name, expected):
    assert is_imagenet(name) == expected


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


@pytest.mark.parametrize("name", [None, "resnet18", "nobody/has-this", "/not/here", "a//b", ""])
def test_a_licence_that_cannot_be_read_is_none(name):
    assert read_license(name, "dataset", "main") is None


def test_reinforce_records_licences(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n", encoding="utf-8")
    teacher = tiny_teacher()
    network = dataclasses.replace(teacher.members[0], name=str(tmp_path / "source"), kind="timm")
    options = {**OPTIONS, "source_name": str(tmp_path / "source")}
    folder = reinforce(
        tiny_dataset(4), type(teacher)([network]), named_policy("rrc", 16), tmp_path, num_samples=1, **options
    )
    config = ReinforcementConfig.load(folder)
    assert config.source.license == config.teachers[0]["license"] == "cc-by-4.0"


# Text

HOSTILE = (
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
)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_change_nothing_but_themselves(folder, name):
    (item,) = described(folder, name=name, label_column=name, split=name).values()
    classes = tuple(f"{name}{index}" for index in range(5))
    teacher = dict.fromkeys(("name", "license", "dtype", "weight_hash", "architecture", "revision"), name)
    teacher = {**item.config.teachers[0], **teacher}
    target = dataclasses.replace(item.config.classes, class_names=classes, teachers=(teacher,))
    config = dataclasses.replace(item.config, targets=(target,))
    card = render(name, {name: dataclasses.replace(item, config=config, pictures=())})
    plain = render("pets-plus", described(folder))
    text = str(card)
    front = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert front["pretty_name"] == front["configs"][0]["config_name"] == name
    body = card.text
    outside = re.sub(r"^```.*?^```$", "", body, flags=re.M | re.S)
    for opened in (
        "<script",
        "<b>",
        "![](x)",
        "(https://evil",
        "*bold*",
        "~~no~~",
        "\n# heading",
        "\n- item",
        "| x |",
    ):
        assert opened not in re.sub(r"`[^`\n]*`", "", outside)
    # The structure is that of a card with tame names: the same headings, blocks and tables.
    tame = plain.text
    assert re.findall(r"^## .*$", body, re.M) == re.findall(r"^## .*$", tame, re.M)
    assert body.count("```") == tame.count("```")
    assert [len(found[0]) for found in cells(outside)] == [
        len(found[0]) for found in cells(re.sub(r"```.*?```", "", tame))
    ]
    assert len(re.findall(r"^# ", outside, re.M)) == 1
    (load, join) = re.findall(r"^```python\n(.*?)^```$", body, re.M | re.S)
    for code in (load, join):
        compile(code, "card", "exec")
    (command,) = re.findall(r"^```bash\n(.*?)^```$", body, re.M | re.S)
    words = shlex.split(command.replace("\\\n", " "))
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


def test_a_hostile_class_name_can_be_drawn(data, tmp_path, monkeypatch):
    names = ("$x^{2$", r"\frac{", "<b>", "a|b", "a`b" * 20)
    renamed = data.cast_column("label", type(data.features["label"])(names=list(names))).select(range(5))
    folder = reinforce(renamed, tiny_teacher(), named_policy("rrc", 16), tmp_path, num_samples=1, **OPTIONS)
    write_preview(folder, renamed)
    assert pixels(folder / PREVIEW_FILE).std() > 20


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_operation_has_its_words(name):
    policy = named_policy(name, 32)
    steps = [operation.describe() for operation in policy.operations]
    assert len(steps) == len(policy.operations)
    assert not any(re.search(r"[{}\[\]()]{2}|None|: \d|, \w+ [\d(]", step.split(" (")[0]) for step in steps[:1])
    assert ("MixUp" in " ".join(steps)) == ("mixing" in name)


def test_each_policy_is_listed(card):
    mixing, randaug = section(card, "Augmentations").split("`randaug`:")
    assert mixing.lstrip().startswith("`mixing`:\n\n1. random crop of 8 % to 100 % of the area")
    for operation, where in (
        ("RandAugment", randaug),
        ("RandomErasing", randaug),
        ("MixUp", mixing),
        ("CutMix", mixing),
    ):
        assert re.search(rf"^\d. {operation}", where, re.M)
        assert (mixing + randaug).count(operation) == 1


def test_every_column_of_a_reinforcement_is_explained(card):
    explained = section(card, "Columns")
    fields = ("label", "value", "tail")
    assert all(f"`{name}`" in explained for name in (*schema.REINFORCEMENT_COLUMNS, "teacher_logits", *fields))


def test_the_code_of_the_card_runs(folder, card, data, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(
        "hf_reinforce.hub.load.load_source", lambda name, *arguments, **options: data_of(name, data, options)
    )
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", card.text, re.S):
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(namespace["reinforced"]) == len(namespace["train_dataset"]) == 70


def data_of(name, data, options):
    """What `load_source` returns, without a Hub."""
    return data if name == "somebody/pets" else load_dataset(name, **options)


def test_the_command_of_the_card_has_flags_that_exist(card):
    from transformers import HfArgumentParser

    from hf_reinforce import KDTrainingArguments

    (command,) = re.findall(r"```bash\n(.*?)```", card.text, re.S)
    words = shlex.split(command.replace("\\\n", " "))
    recipe = load_recipe("train_kd")
    parser = HfArgumentParser([recipe.DataArguments, recipe.ModelArguments, KDTrainingArguments], allow_abbrev=False)
    _, unknown = parser.parse_known_args(words[words.index("recipes/train_kd.py") + 1 :])
    assert not unknown and words[:2] == ["accelerate", "launch"]
    assert words[words.index("--dataset_name") + 1] == "pets-plus"


def words_of_the_command(card):
    (command,) = re.findall(r"```bash\n(.*?)```", card.text, re.S)
    words = shlex.split(command.replace("\\\n", " "))
    return words[words.index("recipes/train_kd.py") + 1 :]


def test_the_command_of_the_card_trains(card, data, folder, tmp_path, monkeypatch):
    recipe = load_recipe("train_kd")
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(
        "hf_reinforce.hub.load.load_source", lambda name, *arguments, **options: data_of(name, data, options)
    )
    words = [*words_of_the_command(card), "--max_steps", "1", "--use_cpu", "True", "--output_dir", tmp_path]
    words += ["--model_name_or_path", "test_resnet", "--dataset_config_name", "randaug"]
    monkeypatch.setattr(sys, "argv", ["train_kd.py", *map(str, words)])
    recipe.main()
    assert (tmp_path / "model.safetensors").exists()


def test_the_command_names_the_recipe_of_its_source(folder):
    for side, first in ((32, "recipes/cifar100_plus/student.yaml"), (224, "--method")):
        (item,) = described(folder, name="uoft-cs/cifar100").values()
        config = dataclasses.replace(item.config, policy=named_policy("randaug", side))
        words = words_of_the_command(render("x", {"randaug": Configuration(config)}))
        assert words[0] == first and ("--learning_rate" in words) == (side == 224)


def test_recipes_of_cards_are_those_of_their_sources():
    for (source, side), name in RECIPES.items():
        recipes = [yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / "recipes" / name).glob("*.yaml")]
        made = [recipe for recipe in recipes if "num_samples" in recipe]
        assert made and {(recipe["dataset_name"], recipe["image_size"]) for recipe in made} == {(source, side)}
        student = yaml.safe_load((ROOT / "recipes" / name / "student.yaml").read_text(encoding="utf-8"))
        assert student["method"] == "reinforced" and student["output_dir"] != "outputs/student"


def test_the_card_says_how_to_get_the_package(card):
    assert "pip install ." in section(card, "Load") and "no release on a package index" in section(card, "Load")


def test_architecture_is_shown_where_the_name_does_not_tell(folder):
    (item,) = described(folder).values()
    teachers = [
        {**item.config.teachers[0], "name": name, "kind": "transformers", "architecture": "resnet10t"}
        for name in ("./outputs/teacher", "me/resnet10t.mine")
    ]
    target = dataclasses.replace(item.config.classes, teachers=tuple(teachers))
    config = dataclasses.replace(item.config, targets=(target,))
    shown = section(render("pets-plus", {"randaug": dataclasses.replace(item, config=config)}), "Teacher")
    assert "| `./outputs/teacher` (`resnet10t`) |" in shown
    assert "| [me/resnet10t.mine](https://huggingface.co/me/resnet10t.mine) |" in shown


def test_a_folder_in_the_way_makes_a_hub_id_no_folder(tmp_path, monkeypatch):
    (tmp_path / "me" / "data").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert is_hub_id("me/data") and recorded_name("me/data") == "me/data"
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("me/data"), "a rule of the name alone"
    assert recorded_name("me/data") == "./me/data" and not is_hub_id("./me/data")
    assert recorded_name("me") == "me" and recorded_name(str(tmp_path)) == str(tmp_path)


def test_two_sources_are_described_both(folder):
    (first,) = described(folder, name="me/pets", license="mit").values()
    (second,) = described(folder, name="me/birds", license="cc-by-4.0", split="test").values()
    second = dataclasses.replace(second, config=dataclasses.replace(second.config, embed_images=True))
    card = render("both", {"birds": second, "pets": first})
    found = check_metadata(str(card))
    assert found["source_datasets"] == ["me/birds", "me/pets"] and found["license"] == ["cc-by-4.0", "mit"]
    assert [config["data_files"][0]["split"] for config in found["configs"]] == ["test", "train"]
    assert "datasets/me/birds) and [me/pets](" in card.text.split("## ")[0]
    assert {name: cells["images of"].split("]")[0] for name, cells in table(card).items()} == {
        "birds": "[me/birds",
        "pets": "[me/pets",
    }
    load = section(card, "Load")
    assert "The images of `pets` are **not** in the dataset" in load and "they stay in [me/pets]" in load
    assert 'load_reinforced("both", "pets")' in load
    licences = {line[0].split("]")[0]: line[1] for line in cells(section(card, "Licence"))[0][1:]}
    assert licences["[me/birds"] == "cc-by-4.0" and licences["[me/pets"] == "mit"


@pytest.mark.parametrize(
    ("theirs", "mine", "expected"),
    [
        ("mit", "mit", "mit"),
        ("mit", "cc-by-4.0", ["mit", "cc-by-4.0"]),
        (["mit", "cc-by-4.0"], "cc-by-nc-4.0", ["mit", "cc-by-4.0", "cc-by-nc-4.0"]),
        ("mit", "unknown", "unknown"),
        ("other", "cc-by-4.0", "other"),
        (None, "mit", "mit"),
        ("mit", None, "mit"),
    ],
)
def test_metadata_fit_the_configurations_that_only_the_hub_has(theirs, mine, expected):
    def card(name, **data):
        data = {key: value for key, value in data.items() if value is not None}
        return DatasetCard.from_template(
            DatasetCardData(configs=[{"config_name": name, "data_files": []}], **data),
            template_str="---\n{{card_data}}\n---",
        )

    on_hub = card(
        "old",
        license=theirs,
        source_datasets=["me/a"],
        tags=["mine"],
        extra_gated_prompt="Ask me.",
    )
    options = {"source_datasets": ["me/b"], "size_categories": ["n<1K"], "pretty_name": "folder"}
    new = card("new", license=mine, **options)
    assert keep_metadata(new, on_hub) == ["old"]
    found = new.data.to_dict()
    assert found.get("license") == expected and found["source_datasets"] == ["me/a", "me/b"]
    assert found["tags"] == ["mine"] and found["extra_gated_prompt"] == "Ask me."
    assert [config["config_name"] for config in found["configs"]] == ["new", "old"]
    alone = card("old", license=mine, **options)
    assert keep_metadata(alone, on_hub) == []
    assert alone.data.to_dict()["license"] == (mine or theirs)  # the configuration was made again


def test_remarks(folder):
    remarks = Remarks("`plan.yaml`", {"TinyNet": "TinyNet is small."}, "@misc{pets}")
    card = render("pets-plus", described(folder), remarks)
    assert "has not been generated yet" in card.text.split("## ")[0] and "`plan.yaml`" in card.text
    assert "TinyNet is small." in section(card, "Teacher") and "@misc{pets}" in section(card, "Citation")


# The cards of hub_cards/

HUB_CARDS = ROOT / "hub_cards"
CARDS = ("cifar100-plus", "flowers102-plus", "food101-plus", "imagenet-plus")


@pytest.fixture(scope="module")
def rendered():
    """The cards as `hub_cards/render.py` renders them now."""
    code = "import json, render; print(json.dumps({name: render.card(name) for name in render.CARDS}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=HUB_CARDS, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_hub_cards_are_up_to_date(rendered):
    assert sorted(rendered) == list(CARDS) == sorted(path.parent.name for path in HUB_CARDS.glob("*/README.md"))
    for name, text in rendered.items():
        there = (HUB_CARDS / name / "README.md").read_bytes()
        assert text.encode() == there, f"hub_cards/{name} is out of date; run: python hub_cards/render.py"
    assert "python hub_cards/render.py\n" in (HUB_CARDS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CARDS)
def test_hub_card_is_valid(name):
    text = (HUB_CARDS / name / "README.md").read_text(encoding="utf-8")
    card, found = DatasetCard(text), check_metadata(text)
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert pixels(HUB_CARDS / name / picture).std() > 10
    assert ("extra_gated_prompt" in found) == (name == "imagenet-plus")
    assert not re.search(r"{{|{%|%}|}}(?!\n)|\bNone\b|\bnan\b", section(card, "Targets"))
    for link in re.findall(r"\]\(https://huggingface.co/(?:datasets/)?([^)]*)\)", text):
        assert re.fullmatch(r"[\w-]+/[\w.-]+", link) and not link.startswith("outputs/")


@pytest.mark.parametrize("name", [name for name in CARDS if name != "cifar100-plus"])
def test_planned_card_says_so_and_invents_nothing(name):
    card = DatasetCard.load(HUB_CARDS / name / "README.md")
    assert "has not been generated yet" in card.text.split("## ")[0]
    values = {value for line in table(card, "Targets").values() for value in line.values()}
    assert values == {"not measured yet"}
    for line in table(card).values():
        for heading in ("coverage of the source's rows", "bytes per reinforcement", "size"):
            assert line[heading] == "not measured yet"
    assert "not measured yet" in section(card, "Limitations and bias")


def test_planned_cards_follow_the_recipes():
    card = DatasetCard.load(HUB_CARDS / "imagenet-plus" / "README.md")
    assert [config["config_name"] for config in card.data.configs] == ["rrc", "mixing", "randaug", "mixing_randaug"]
    recipe = yaml.safe_load((ROOT / "recipes" / "imagenet_plus" / "rrc.yaml").read_text(encoding="utf-8"))
    line = table(card)["rrc"]
    assert line["reinforcements per image (N)"] == str(recipe["num_samples"])
    assert line["stored classes (K)"] == f"{recipe['top_k']} of 1,000" and line["images"] == "1,281,167"
    for teacher in recipe["teacher_name_or_path"]:
        assert teacher in section(card, "Teacher")


def test_licences_of_the_plan_say_where_they_are_stated():
    known = yaml.safe_load((HUB_CARDS / "sources.yaml").read_text(encoding="utf-8"))
    for entry in (*known["sources"].values(), *known["teachers"].values()):
        assert bool(entry["stated_in"]) == (entry["license"] is not None)


def test_measured_card_states_what_was_measured():
    card = DatasetCard.load(HUB_CARDS / "cifar100-plus" / "README.md")
    assert "not measured yet" not in card.text and "has not been generated yet" not in card.text
    (item,) = json.loads((HUB_CARDS / "cifar100-plus" / "measured.json").read_text())["configurations"].values()
    line = table(card, "Targets")["small_randaug"]
    assert line["teacher's accuracy over the views"] == f"{100 * item['statistics']['agreement']:.1f} %"
    assert line["measured on"] == "50,000 images, 200,000 targets"
