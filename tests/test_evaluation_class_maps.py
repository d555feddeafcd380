"""From a model's classes to those of a dataset: each way of saying so, on examples that are looked up by hand."""

import logging

import pytest
import torch

from hf_reinforce.models.classes import imagenet_classes, load_table, make_class_map, tables, wordnet_ids

IN_WORDS = (
    "tench,English springer,cassette player,chain saw,church,French horn,garbage truck,gas pump,golf ball,parachute"
)
IMAGENETTE = IN_WORDS.split(",")
INDICES = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
OWN = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(scope="module")
def descriptions():
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(index) for index in range(1000)]


def groups(class_map):
    return [list(group) for group in class_map.groups]


def test_examples_of_imagenet():
    classes = imagenet_classes()
    assert len(classes) == 1000 and classes[0] == "n01440764" and classes[217] == "n02102040"
    names = ["tench", "Tinca_tinca", "goldfish, Carassius auratus", "n04557648", "crane (n02012849)"]
    assert wordnet_ids(names) == ["n01440764", "n01440764", "n01443537", "n04557648", "n02012849"]
    assert wordnet_ids(["crane", "no such thing"]) == [None, None]  # a bird and a machine
    assert wordnet_ids(["cardigan"]) == ["n02963159"]  # and not the Welsh corgi, whose synonym it is


@pytest.mark.parametrize("named", ["ids", "descriptions", "nothing"])
def test_imagenette_by_name_for_models_with_any_names(named, descriptions):
    names = {"ids": imagenet_classes(), "descriptions": descriptions, "nothing": None}[named]
    restricted = make_class_map(names, 1000, IMAGENETTE, range(10))
    assert groups(restricted) == [[index] for index in INDICES]
    assert restricted.names == tuple(IMAGENETTE) and restricted.targets[3] == (3,)
    assert "WordNet ids; restricted to 10 classes" in restricted.description
    full = make_class_map(names, 1000, IMAGENETTE, range(10), scoring="full")
    assert full.groups is None and [full.targets[label] for label in range(10)] == [(index,) for index in INDICES]
    assert len(full.names) == 1000 and "all 1000 classes" in full.description


def test_all_of_imagenet_matches_although_two_classes_are_called_crane(descriptions):
    assert descriptions[134] == descriptions[517] == "crane"
    for own, theirs in ((imagenet_classes(), descriptions), (descriptions, imagenet_classes()), (None, descriptions)):
        class_map = make_class_map(own, 1000, theirs, range(1000))
        assert class_map.groups is None and class_map.targets[517] == (517,)


def test_restriction_is_the_conditional_distribution():
    class_map = make_class_map(OWN, 5, ["dog", "bee"], [0, 1])
    assert groups(class_map) == [[3], [1]] and "class names" in class_map.description
    answers = torch.log_softmax(torch.randn(4, 5), -1)
    expected = answers.exp()[:, [3, 1]]
    torch.testing.assert_close(class_map(answers).exp(), expected / expected.sum(-1, keepdim=True))
    full = make_class_map(OWN, 5, ["dog", "bee"], [0, 1], scoring="full")
    assert full(answers) is answers and full.targets == {0: (3,), 1: (1,)}


def test_of_several_classes_of_the_model_the_most_probable_counts():
    class_map = make_class_map(OWN, 5, ["pet", "insect"], [0, 1], {"insect": ["ant", "bee"], "pet": ["cat"]})
    assert groups(class_map) == [[2], [0, 1]] and "the most probable of several" in class_map.description
    p = torch.softmax(torch.randn(3, 5), -1)
    expected = torch.stack([p[:, 2], p[:, :2].amax(-1)], -1)
    torch.testing.assert_close(class_map(p.log()).exp(), expected / expected.sum(-1, keepdim=True))
    full = make_class_map(OWN, 5, ["pet", "insect"], [0, 1], {"insect": ["ant", "bee"], "pet": [2]}, scoring="full")
    assert full.targets == {0: (2,), 1: (0, 1)}  # either of them is right


def test_labels_that_are_indices():
    class_map = make_class_map(imagenet_classes(), 1000, None, [701, 0, 217], scoring="restricted")
    assert groups(class_map) == [[0], [217], [701]] and class_map.targets == {0: (0,), 217: (1,), 701: (2,)}
    assert class_map.names == ("n01440764", "n02102040", "n03888257") and class_map.scoring == "restricted"
    # ImageNetV2: folders called 0 to 999, which a loader sorts as words.
    folders = make_class_map(OWN, 5, sorted(map(str, range(5))), range(5), "index")
    assert folders.groups is None
    words = make_class_map([*OWN] * 4, 20, ["0", "10", "2"], [0, 1, 2], "index")
    assert groups(words) == [[0], [10], [2]]


@pytest.mark.parametrize(
    ("names", "labels", "classes"),
    [(None, [1, 3], None), (None, [1, 3], "index"), (["bee", "dog"], [0, 1], None), (["1", "3"], [0, 1], "index")],
)
def test_classes_that_merely_occur_do_not_restrict_the_model(names, labels, classes, caplog):
    class_map = make_class_map(OWN, 5, names, labels, classes, declared=False)
    assert class_map.groups is None and class_map.names == OWN and class_map.scoring == "full"
    assert [class_map.targets[label] for label in labels] == [(1,), (3,)]
    assert class_map.description.endswith("all 5 classes of the model compete, of which 2 occur") and not caplog.text
    with caplog.at_level(logging.WARNING):
        asked = make_class_map(OWN, 5, names, labels, classes, "restricted", declared=False)
    assert groups(asked) == [[1], [3]]
    for words in (asked.description, caplog.text):
        assert "the 2 classes that occur in the dataset out of the model's 5" in words


def test_classes_that_are_declared_or_listed_restrict_the_model(caplog):
    for class_map in (
        make_class_map(OWN, 5, ["bee", "dog"], [0]),
        make_class_map(OWN, 5, ["1", "3"], [0], "index"),
        make_class_map(OWN, 5, None, [0], ["bee", "dog"], declared=False),
        make_class_map(OWN, 5, None, [0], {"bee": 1, "dog": 3}, declared=False),
        make_class_map(OWN, 5, ["bee"], [0], {"bee": 1, "dog": 3}, declared=False),
    ):
        assert groups(class_map) == [[1], [3]] and class_map.targets == {0: (0,), 1: (1,)}
        assert "restricted to 2 classes of the dataset out of the model's 5" in class_map.description
    assert make_class_map(None, 1000, None, [7], "imagenet_r", declared=False).scoring == "restricted"
    assert not caplog.text


def test_lists_and_files(tmp_path):
    assert groups(make_class_map(OWN, 5, ["x", "y"], [0, 1], ["dog", 0])) == [[3], [0]]
    (tmp_path / "map.yaml").write_text("y: ant\nx: [cat, dog]\n")
    (tmp_path / "map.json").write_text('["bee", "n02123045"]')
    assert groups(make_class_map(OWN, 5, ["x", "y"], [0, 1], str(tmp_path / "map.yaml"))) == [[2, 3], [0]]
    assert groups(make_class_map(["n02123045", "bee"], 2, None, [0, 1], str(tmp_path / "map.json"))) == [[1], [0]]
    for text, expected in (("3", "must hold a list of classes or a mapping"), ("{", "neither JSON nor YAML")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=expected):
            load_table(str(tmp_path / "bad.json"))


def test_published_tables():
    assert tables() == ["imagenet", "imagenet_a", "imagenet_r", "objectnet"]
    known, sizes = set(imagenet_classes()), {"imagenet": 1000, "imagenet_a": 200, "imagenet_r": 200}
    for name in tables():
        table = load_table(name)
        entries = table if isinstance(table, list) else [own for ids in table.values() for own in ids]
        assert set(entries) <= known and len(set(entries)) == len(entries), name
        assert len(table) == sizes.get(name, len(table))
        assert list(table) == sorted(table), name  # the order of folders, which labels without names count
    objectnet = load_table("objectnet")
    assert len(objectnet) == 113 and objectnet["bicycle"] == ["n03792782", "n02835271"]
    found = groups(make_class_map(None, 1000, None, range(113), "objectnet"))
    assert found[sorted(objectnet).index("bicycle")] == [671, 444]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((OWN, 5, ["ant", "yak"], [0]), "1 of the dataset's 2 classes .yak. are not found.* or --class_map"),
        ((None, 3, ["ant", "yak"], [0]), "among the model's 3 .no names."),
        (
            (OWN, 5, None, [0, 5]),
            "labels go up to 5, the model has classes 0 to 4. .*--classes_from FILE .*enough classes",
        ),
        ((OWN, 5, ["2", "9"], [0], "index"), "names of the classes go up to 9, the model has classes 0 to 4"),
        ((OWN, 5, ["x"], [0], [5]), "The class map names 5, but the model has ant, .*indices 0 to 4"),
        ((OWN, 5, ["x"], [0], "no_table"), "neither imagenet, .* nor a file"),
        ((OWN, 5, ["x", "y"], [0], ["ant"]), "The class map has 1 classes, but the dataset has 2 classes"),
        ((OWN, 5, ["x", "y"], [0], {"x": "ant"}), "no entry for 1 classes of the dataset: y; it has x"),
        (
            (OWN, 5, ["x"], [0], ["yak"]),
            "names 'yak', but the model has ant, bee.* --classes_from",
        ),
        ((None, 5, ["x"], [0], ["yak"]), "the model has no names, and indices 0 to 4"),
        ((OWN, 5, None, [3], ["ant", "bee"]), "has 2 classes, but the dataset has the label 3"),
        ((OWN, 5, ["x"], [0], "index"), "class names that are numbers, such as '17'; found x"),
        ((OWN, 5, ["ant"], [0], None, "some"), "scoring must be one of restricted, full"),
    ],
)
def test_mistakes_are_one_sentence(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        make_class_map(*arguments)
