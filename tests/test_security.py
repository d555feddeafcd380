"""What `SECURITY.md` promises and no other test shows: nothing is executed, leads out or gives a secret away."""

import ast
import io
import logging
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image
from test_config import example
from tiny import encode_image, tiny_dataset, tiny_image, tiny_teacher

from hf_reinforce import KDTrainer, KDTrainingArguments, ReinforcementConfig, images, load_reinforced, reinforce
from hf_reinforce.augmentations.policies import named_policy
from hf_reinforce.cards import markdown
from hf_reinforce.cards.dataset_card import write_dataset_card
from hf_reinforce.cards.model_card import write_model_card
from hf_reinforce.images import ImageError
from hf_reinforce.models.classes import class_words, make_class_map, printable
from hf_reinforce.models.students import create_student

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "hf_reinforce").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")])
TOKEN = "hf_" + "Secret" * 6

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pty"}
NAMES = {"eval", "exec", "compile", "__import__"}
CALLS = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "pandas.read_pickle"}
ALLOWED = {
    ("hf_reinforce/importers/ml_dr/unpickling.py", "pickle"): "an unpickler that builds numbers and containers only",
}


def constant(call, name):
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def dangers(source):
    """What could execute something that data say, by name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.module
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in NAMES | CALLS:
                yield name
            if name == "torch.load" and constant(node, "weights_only") is not True:
                yield name
            if name in ("np.load", "numpy.load") and constant(node, "allow_pickle"):
                yield name
            found = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if found.get("shell", "False") != "False":
                yield "shell"
            if found.get("trust_remote_code", "False") != "False":
                yield "trust_remote_code"


def test_nothing_executes_what_it_reads():
    found = {
        (path.relative_to(ROOT).as_posix(), danger)
        for path in SOURCES
        for danger in dangers(path.read_text(encoding="utf-8"))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval(x)",
        "import torch; torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(t)",
        "subprocess.run(c, shell=True)",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=options.trust)",
    ],
)
def test_what_executes_is_found(source):
    assert list(dangers(source))


def test_names_of_columns_are_not_executed(tmp_path):
    name = "'] + [__import__('os').system('touch harmed')] + ['"
    dataset = tiny_dataset(12).rename_column("label", name)
    reinforce(dataset, tiny_teacher(), named_policy("rrc", 16), tmp_path, num_samples=1, top_k=2, label_column=name)
    assert "labels" in load_reinforced(str(tmp_path), source=dataset)[0]
    assert not Path("harmed").exists()


# Paths

OUTSIDE = ["../../outside", "/etc/passwd", "a/b", "..\\outside"]


@pytest.mark.parametrize("name", [*OUTSIDE, "..", ".", "", "-rf", "a\0b", "a\n", "\x1b[31m"])
def test_names_of_policies_stay_in_the_folder(name):
    data = example().to_dict()
    data["policy"]["name"] = name
    with pytest.raises(ValueError, match="policy's name makes a folder"):
        ReinforcementConfig.from_dict(data)


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_of_splits_and_shards_stay_in_the_folder(name):
    for place in ("split", "checksums"):
        data = example().to_dict()
        if place == "split":
            data["source"]["split"] = name
        else:
            data["checksums"] = {name: "0" * 64}
        with pytest.raises(ValueError, match=place):
            ReinforcementConfig.from_dict(data)


def test_a_local_file_that_a_data_set_names_is_read_as_an_image_only(tmp_path):
    (tmp_path / "secret.txt").write_text("password")
    (tmp_path / "photo.png").write_bytes(encode_image(tiny_image(0)))
    encoded = images.read_encoded({"bytes": None, "path": str(tmp_path / "secret.txt")})
    with pytest.raises(ImageError) as error:
        images.decode(encoded)
    assert "password" not in str(error.value)
    assert images.decode(images.read_encoded({"bytes": None, "path": str(tmp_path / "photo.png")})).ndim == 3


# Secrets


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a student that was trained with a token, and all that was logged."""
    tmp_path, logged = tmp_path_factory.mktemp("trained"), io.StringIO()
    handler, level = logging.StreamHandler(logged), logging.root.level
    logging.root.addHandler(handler)
    logging.root.setLevel(logging.DEBUG)
    try:
        reinforce(tiny_dataset(12), tiny_teacher(), named_policy("rrc", 16), tmp_path / "plus", num_samples=1, top_k=2)
        dataset = load_reinforced(str(tmp_path / "plus"), source=tiny_dataset(12))
        args = KDTrainingArguments(
            output_dir=str(tmp_path / "student"), hub_token=TOKEN, max_steps=1, use_cpu=True, save_steps=1
        )
        trainer = KDTrainer(create_student("resnet10t", num_labels=5, image_size=16), args, train_dataset=dataset)
        trainer.train()
        trainer.save_model()
        trainer.save_state()
        write_dataset_card(tmp_path / "plus")
        write_model_card(trainer, base_model="resnet10t", dataset_name="me/plus")
    finally:
        logging.root.removeHandler(handler)
        logging.root.setLevel(level)
    return tmp_path, logged.getvalue()


def test_no_file_and_no_log_of_a_training_holds_the_token(trained):
    """Neither do the cards."""
    folder, logged = trained
    assert "Secret" not in logged and len(logged) > 100
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path.name for path in files if b"Secret" in path.read_bytes()] == []


def test_a_checkpoint_opens_without_unpickling_objects(trained):
    folder, _ = trained
    assert list(folder.rglob("model.safetensors")) and not list(folder.rglob("pytorch_model.bin"))
    for path in folder.rglob("optimizer.pt"):
        torch.load(path, weights_only=True)


# Text


ESCAPES = ["\x1b[2J\x1b]0;title\x07ant", "ant\u202eeeb", "a\rb", "a\x9b31m"]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_do_not_reach_the_terminal_as_commands(name):
    assert printable(name).isprintable() and "\\" in printable(name)
    assert all(word.isprintable() for word in class_words([name, "bee"]))
    with pytest.raises(ValueError) as error:
        make_class_map(["cat", "dog"], 2, [name, "bee"], [0, 1])
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ESCAPES)
def test_names_do_not_reach_a_card_as_commands(name):
    for escape in (markdown.text, markdown.code, markdown.python_string, markdown.shell_word):
        assert escape(name).isprintable()
    assert ast.literal_eval(markdown.python_string(name)) == name
    assert printable("Ameisenbär 熊") == "Ameisenbär 熊"


def test_paths_in_messages_are_written_out(tmp_path):
    image = {"bytes": b"none", "path": "\x1b[31mred.jpg"}
    dataset = Dataset.from_dict({"image": [image]}, features=Features({"image": Image()}))
    with pytest.raises(ImageError) as error:
        reinforce(dataset, tiny_teacher(), named_policy("rrc", 16), tmp_path, num_samples=1, top_k=2)
    assert str(error.value).isprintable() and str(error.value).startswith("Row 0 ")


def test_the_threat_model_names_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/test_\w+\.py)(?:::(\w+))?`", text)
    assert len(named) > 8
    for file, test in named:
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), (file, test)
