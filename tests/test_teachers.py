"""Teachers of every kind: what they answer, what is recorded of them, and which classes they answer with."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from saved_networks import CLASSES, timm_folder, timm_network, transformers_folder, wrapper_folder
from tiny import MEAN, STD, TinyNet, tiny_teacher
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from hf_reinforce.models.cifar_networks import CIFAR_MEAN, CIFAR_STD
from hf_reinforce.models.networks import TEACHER_KINDS
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.models.teachers import Teacher, load_teacher
from hf_reinforce.models.weights import weight_hash


class Case(NamedTuple):
    """A teacher of one network, and what it should be made of."""

    load: Callable[[], Teacher]
    model: nn.Module
    preprocessing: Preprocessing
    kind: str
    architecture: str
    class_names: tuple[str, ...] | None
    folder: Path | None


def of_module(folder):
    preprocessing, net = Preprocessing(16, MEAN, STD, "bilinear"), TinyNet(5, 3)
    load = lambda: load_teacher(net, preprocessing=preprocessing)
    return Case(load, net, preprocessing, "module", "TinyNet", None, None)


def of_timm(folder):
    preprocessing = Preprocessing(32, MEAN, STD, "bilinear", 0.9)
    load = lambda: load_teacher(str(folder))
    return Case(load, timm_folder(folder), preprocessing, "timm", "test_resnet", CLASSES, folder)


def of_transformers(folder):
    preprocessing = Preprocessing(24, MEAN, STD, "bicubic", 1.0, crop_mode="squash", crop_rounding="down")
    model, load = transformers_folder(folder, seed=1), lambda: load_teacher(str(folder))
    return Case(load, model, preprocessing, "transformers", "ResNetForImageClassification", CLASSES, folder)


def of_wrapper(folder):
    preprocessing = Preprocessing(32, MEAN, STD, "bilinear", 0.9)
    load = lambda: load_teacher(str(folder))
    return Case(load, wrapper_folder(folder), preprocessing, "transformers", "test_resnet", CLASSES, folder)


def of_checkpoint(name, save):
    def build(folder):
        model, cfg = timm_network(seed=4), timm.create_model("test_resnet").pretrained_cfg
        folder.mkdir()
        save(model.state_dict(), folder / name)
        preprocessing = Preprocessing(160, cfg["mean"], cfg["std"], cfg["interpolation"], cfg["crop_pct"])
        load = lambda: load_teacher("test_resnet", checkpoint=str(folder / name))
        return Case(load, model, preprocessing, "timm", "test_resnet", None, folder)

    return build


def of_micronet(folder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = timm.create_model("cifar_micronet_v1", num_classes=5).eval()
        model.head.weight.data.normal_(std=200)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text('{"architecture": "MicroNet", "variant": "v1", "num_classes": 5}')
    preprocessing = Preprocessing(32, CIFAR_MEAN, CIFAR_STD, "bilinear", 1.0)
    return Case(lambda: load_teacher(str(folder)), model, preprocessing, "micronet", "cifar_micronet_v1", None, folder)


CASES = {
    "module": of_module,
    "timm": of_timm,
    "transformers": of_transformers,
    "timm wrapper": of_wrapper,
    "safetensors": of_checkpoint("weights.safetensors", save_file),
    "pth": of_checkpoint("weights.pth", torch.save),
    "micronet": of_micronet,
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = CASES[name](tmp_path_factory.mktemp("teachers") / name)
        return made[name]

    return get


@pytest.fixture
def views(photo):
    """Four uint8 views [4, 3, 40, 40]."""
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    return torch.stack([image[:, y : y + 40, x : x + 40] for y, x in ((0, 0), (20, 90), (80, 30), (95, 150))])


def by_hand(case, views):
    """Log-probabilities without any of the package's code."""
    wanted = case.preprocessing
    mode = InterpolationMode(wanted.interpolation)
    images = F.resize(views.float() / 255, [wanted.image_size] * 2, interpolation=mode, antialias=True).clamp(0, 1)
    with torch.no_grad():
        output = case.model(F.normalize(images, wanted.mean, wanted.std))
    return torch.log_softmax(getattr(output, "logits", output), -1)


def test_every_kind_has_a_case(make):
    assert {make(name).kind for name in CASES} == {*TEACHER_KINDS, "module"}


@pytest.mark.parametrize("name", CASES)
def test_answers_are_the_log_probabilities_of_the_network(make, views, name):
    case = make(name)
    teacher = case.load()
    answer = teacher(views)
    assert answer.dtype == torch.float32 and answer.shape == (4, 5)
    torch.testing.assert_close(answer, by_hand(case, views), atol=2e-5, rtol=1e-5)
    assert answer.exp().std(0).max() > 0.005, "the views should not all get the same answer"
    torch.testing.assert_close(teacher(views[2:3]), answer[2:3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(teacher(views.float()), answer, atol=1e-6, rtol=0)
    (member,) = teacher.members
    assert not any(module.training for module in member.model.modules())
    assert not any(parameter.requires_grad for parameter in member.model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_what_is_recorded_and_travels(make, views, name):
    case = make(name)
    teacher = case.load()
    (described,) = json.loads(json.dumps(teacher.describe()))
    assert described == {
        "name": {"module": "TinyNet", "safetensors": "test_resnet", "pth": "test_resnet"}.get(name, str(case.folder)),
        "kind": case.kind,
        "architecture": case.architecture,
        "revision": None,
        "weight_hash": weight_hash(case.model),
        "dtype": "float32",
        "weight": 1.0,
        "preprocessing": json.loads(json.dumps(case.preprocessing.record())),
    }
    assert teacher.class_names == case.class_names and teacher.num_classes == 5
    packed = pickle.dumps(teacher)
    assert len(packed) < 3000 or name == "module", "a named teacher travels by name"
    moved = pickle.loads(packed)
    assert moved.describe() == teacher.describe()
    torch.testing.assert_close(moved(views), teacher(views), rtol=0, atol=0)


def test_a_folder_is_not_recorded_as_a_hub_id(make, monkeypatch, tmp_path):
    shutil.copytree(make("timm").folder, tmp_path / "me" / "net")
    monkeypatch.chdir(tmp_path)
    assert load_teacher("me/net").describe()[0]["name"] == "./me/net"


def test_what_travels_keeps_its_dtype_temperature_weight_and_preprocessing(make, views):
    folder = str(make("timm").folder)
    preprocessing = Preprocessing(48, STD, MEAN, "bicubic")
    teacher = load_teacher([folder, folder], preprocessing=preprocessing, weights=[1.0, 3.0], temperature=2.0)
    teacher = teacher.with_classes(None, [4, 0, 2]).to("cpu", "bfloat16")
    moved = pickle.loads(pickle.dumps(teacher))
    assert moved.describe() == teacher.describe()
    assert (moved.temperature, moved.class_map) == (2.0, (4, 0, 2))
    assert next(moved.members[0].model.parameters()).dtype == torch.bfloat16
    torch.testing.assert_close(moved(views), teacher(views), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["timm", "transformers", "safetensors", "micronet"])
def test_changed_weights_change_the_hash_and_do_not_travel(make, tmp_path, name):
    folder = shutil.copytree(make(name).folder, tmp_path / "copy")
    file = next(folder.glob("*.safetensors"))
    arguments = {"checkpoint": str(file)} if name == "safetensors" else {}
    load = lambda: load_teacher("test_resnet" if arguments else str(folder), **arguments)
    teacher = load()
    packed, state = pickle.dumps(teacher), load_file(file)
    key = next(key for key in state if key.endswith("bias"))
    save_file(state | {key: state[key] + 1e-3}, file, metadata={"format": "pt"})
    assert load().describe()[0]["weight_hash"] != teacher.describe()[0]["weight_hash"]
    with pytest.raises(ValueError, match="weights of .* have changed"):
        pickle.loads(packed)


def test_weight_hash_sees_values_names_and_buffers():
    def norm(**changes):
        module = nn.BatchNorm1d(3)
        for key, value in changes.items():
            getattr(module, key).data.fill_(value)
        return weight_hash(module)

    assert norm() == norm()
    assert len({norm(), norm(weight=2), norm(bias=2), norm(running_var=2), norm(num_batches_tracked=2)}) == 5
    first, second = nn.ModuleDict({"a": nn.Linear(2, 2)}), nn.ModuleDict({"b": nn.Linear(2, 2)})
    second.load_state_dict({f"b{key[1:]}": value for key, value in first.state_dict().items()})
    assert weight_hash(first) != weight_hash(second)


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_bfloat16_answers_float32_close_to_the_full_precision(make, views, name):
    full, half = make(name).load(), make(name).load().to("cpu", "bfloat16")
    answer = half(views)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer.exp().sum(-1), torch.ones(4))
    assert 0 < (answer - full(views)).abs().max() < 0.1
    (described,) = half.describe()
    assert described["dtype"] == "bfloat16"
    assert described["weight_hash"] == full.describe()[0]["weight_hash"], "the hash is of the weights as loaded"


# Ensembles.


@pytest.mark.parametrize(("weights", "temperature"), [((1.0, 3.0), 1.0), (None, 1.0), (None, 3.0)])
def test_an_ensemble_is_the_weighted_mean_of_softened_probabilities(make, views, weights, temperature):
    cases = [make("timm"), make("transformers")]
    teacher = load_teacher([str(case.folder) for case in cases], weights=weights, temperature=temperature)
    first, second = ((by_hand(case, views) / temperature).softmax(-1) for case in cases)
    share = weights[0] / sum(weights) if weights else 0.5
    torch.testing.assert_close(teacher(views).exp(), share * first + (1 - share) * second, atol=1e-5, rtol=1e-5)
    assert [item["preprocessing"]["image_size"] for item in teacher.describe()] == [32, 24]
    assert [item["weight"] for item in teacher.describe()] == list(weights or (1.0, 1.0))


NET, PREPROCESSING = TinyNet(5, 0), {"preprocessing": Preprocessing(16)}


@pytest.mark.parametrize(
    ("networks", "arguments", "message"),
    [
        *((NET, {"temperature": value, **PREPROCESSING}, "positive") for value in (0.0, -1.0, float("nan"))),
        *((NET, {"weights": [value], **PREPROCESSING}, "positive") for value in (0.0, float("inf"))),
        ([NET, NET], {"weights": [1.0], **PREPROCESSING}, "2 members, 1 weights"),
        ([], {}, "at least one member"),
        ([NET, nn.Sequential(TinyNet(7, 0))], PREPROCESSING, "class counts are TinyNet: 5, Sequential: 7"),
        (NET, {}, "preprocessing of the teacher TinyNet is unknown"),
        ("nowhere", {}, "no image classifier .*nowhere.*checkpoint="),
        ("test_resnet", {}, "no image classifier .*neither a folder with a config.json.*checkpoint="),
        ("no_such_net", {"checkpoint": "FILE"}, "no_such_net from .* cannot be loaded .*Unknown model"),
        (nn.Sequential(), PREPROCESSING, r"returns a Tensor of \(2, 3, 16, 16\)"),
        (timm.create_model("vit_tiny_patch16_224", depth=1), PREPROCESSING, "cannot take views of 16x16 pixels"),
    ],
)
def test_what_is_no_teacher(make, networks, arguments, message):
    if "checkpoint" in arguments:
        arguments = {"checkpoint": str(make("safetensors").folder / "weights.safetensors")}
    with pytest.raises(ValueError, match=message):
        load_teacher(networks, **arguments)


# Classes.


def named_teacher(names=CLASSES):
    return Teacher([replace(tiny_teacher().members[0], class_names=names)])


@pytest.mark.parametrize(
    ("own", "names"),
    [
        (CLASSES, CLASSES),
        (("Ant", "be e", "CAT", "dog", "e_e_l"), ("ant", "BE_E", "cat", "dog", "E e L")),
        (None, ("p", "q", "r", "s", "t")),
        (tuple(f"LABEL_{index}" for index in range(5)), ("p", "q", "r", "s", "t")),
        (CLASSES, None),
    ],
)
def test_equal_classes_are_accepted(own, names):
    assert named_teacher(own).with_classes(names).class_map is None
    assert named_teacher(own).with_classes(names).class_names == own


@pytest.mark.parametrize(
    ("own", "names", "class_map", "message"),
    [
        (CLASSES, ("bee", "ant", "yak", "dog", "cat"), None, r"Dataset \(5\): bee, ant, yak.*Teacher \(5\): ant, bee"),
        (CLASSES, CLASSES[:4], None, r"TinyNet differ. Dataset \(4\): ant.*class_map"),
        (CLASSES, (*CLASSES, "fox"), None, r"Dataset \(6\)"),
        (CLASSES, [f"c{i}" for i in range(300)], None, r"Dataset \(300\): c0, c1, .*\(292 more\)"),
        (None, ("p", "q"), None, r"Dataset \(2\): p, q. Teacher \(5\): no names."),
        (CLASSES, ("p", "q", "r", "s"), "identity", r"Dataset \(4\)"),
        (CLASSES, ("p", "q", "r"), [0, 1], "class map has 2 classes, but the dataset has 3 classes"),
        (CLASSES, ("p", "q", "r"), [0, 1, 5], "class map names 5, but the model has .*indices 0 to 4"),
        (CLASSES, ("p", "q", "r"), [0, [1, 2], 2], "one class of TinyNet for each"),
        (CLASSES, ("p", "q", "r"), {"p": 0, "q": 1}, "no entry for 1 classes of the dataset: r"),
        (CLASSES, ("p", "q", "r"), {"p": "ant", "q": "unicorn", "r": 0}, "class map names 'unicorn'"),
        (CLASSES, ("p", "q", "r"), "by name", "not 'by name'"),
        (CLASSES, None, {"p": "ant"}, "where the dataset has ClassLabel names"),
    ],
)
def test_other_classes_are_refused(own, names, class_map, message):
    with pytest.raises(ValueError, match=message):
        named_teacher(own).with_classes(names, class_map)


def test_identity_means_other_names_in_the_same_order(views):
    teacher = named_teacher().with_classes(("p", "q", "r", "s", "t"), "identity")
    assert torch.equal(teacher(views), named_teacher()(views)) and teacher.class_map is None
    listed = named_teacher().with_classes(CLASSES, [0, 1, 2, 3, 4])
    assert listed.class_map == (0, 1, 2, 3, 4), "what is listed is recorded although it changes nothing"


@pytest.mark.parametrize(
    "class_map", [[4, 0, 2], (4, 0, 2), {"p": "eel", "q": 0, "r": "cat"}, {"r": 2, "q": "ant", "p": 4, "unused": 1}]
)
def test_a_class_map_restricts_the_logits_before_the_softmax(views, class_map):
    teacher = named_teacher().with_classes(("p", "q", "r"), class_map)
    assert teacher.class_map == (4, 0, 2) and teacher.num_classes == 3
    assert teacher.class_names == ("eel", "ant", "cat")
    torch.testing.assert_close(teacher(views), named_teacher()(views)[:, [4, 0, 2]].log_softmax(-1))


# What files hold.


class Payload:
    """An object whose unpickling leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["checkpoint", "timm", "transformers"])
def test_a_pickle_with_objects_is_refused_and_not_run(make, kind, tmp_path):
    trace, folder = tmp_path / "executed", tmp_path / "net"
    shutil.copytree(make("timm" if kind == "checkpoint" else kind).folder, folder)
    state = load_file(folder / "model.safetensors") | {"extra": Payload(trace)}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    arguments = {"checkpoint": str(folder / "pytorch_model.bin")} if kind == "checkpoint" else {}
    with pytest.raises(ValueError, match="net"):
        load_teacher("test_resnet" if arguments else str(folder), **arguments)
    assert not trace.exists()


def test_a_folder_without_a_processor_needs_its_preprocessing(make, tmp_path, views):
    folder = shutil.copytree(make("transformers").folder, tmp_path / "copy")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="preprocessing"):
        load_teacher(str(folder))
    teacher = load_teacher(str(folder), preprocessing=make("transformers").preprocessing)
    torch.testing.assert_close(teacher(views), make("transformers").load()(views))
