import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from tiny import NAMES, TinyNet, tiny_teacher
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
)

from hf_reinforce.models.cifar_networks import CIFAR_MEAN, CIFAR_STD
from hf_reinforce.models.networks import TEACHER_KINDS, Member, weight_hash
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.models.teachers import Teacher, load_teacher

CLASSES = NAMES[:5]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


class Case(NamedTuple):
    """A teacher of one network, and what it should be made of."""

    load: Callable[[], Teacher]
    model: nn.Module
    preprocessing: Preprocessing
    kind: str
    class_names: tuple[str, ...] | None
    folder: Path | None


def small_resnet(seed=0, num_classes=5):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        overlay = {"input_size": (3, 32, 32), "mean": MEAN, "std": STD, "interpolation": "bilinear", "crop_pct": 0.9}
        model = timm.create_model("test_resnet", num_classes=num_classes, pretrained_cfg_overlay=overlay)
        model.fc.weight.data.normal_(std=0.5)
    return model.eval()


def of_module(folder):
    preprocessing = Preprocessing(16, MEAN, STD, "bilinear")
    net = TinyNet(5, 3)
    return Case(lambda: load_teacher(net, preprocessing=preprocessing), net, preprocessing, "module", None, None)


def of_timm(folder):
    model = small_resnet()
    save_for_hf(model, folder, safe_serialization=True, model_config={"label_names": list(CLASSES)})
    preprocessing = Preprocessing(32, MEAN, STD, "bilinear", 0.9)
    return Case(lambda: load_teacher(str(folder)), model, preprocessing, "timm", CLASSES, folder)


def of_transformers(folder):
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = ResNetForImageClassification(config).eval()
        model.classifier[-1].weight.data.normal_(std=0.5)
    model.save_pretrained(folder)
    size = {"height": 24, "width": 24}
    ViTImageProcessor(size=size, image_mean=MEAN, image_std=STD, resample=3).save_pretrained(folder)
    preprocessing = Preprocessing(24, MEAN, STD, "bicubic", 1.0, crop_mode="squash", crop_rounding="down")
    return Case(lambda: load_teacher(str(folder)), model, preprocessing, "transformers", CLASSES, folder)


def of_timm_wrapper(folder):
    cfg = {"input_size": (3, 32, 32), "mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 0.95}
    config = TimmWrapperConfig(
        architecture="test_resnet",
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
        pretrained_cfg=cfg,
    )
    model = TimmWrapperForImageClassification(config).eval()
    model.timm_model.load_state_dict(small_resnet(2).state_dict())
    model.save_pretrained(folder)
    preprocessing = Preprocessing(32, MEAN, STD, "bicubic", 0.95)
    return Case(lambda: load_teacher(str(folder)), model, preprocessing, "transformers", CLASSES, folder)


def of_checkpoint(suffix, save):
    def build(folder):
        model = small_resnet(4)
        folder.mkdir()
        file = folder / f"weights{suffix}"
        save(model.state_dict(), file)
        cfg = timm.create_model("test_resnet").pretrained_cfg
        preprocessing = Preprocessing(160, cfg["mean"], cfg["std"], cfg["interpolation"], cfg["crop_pct"])

        def load():
            return load_teacher("test_resnet", checkpoint=str(file))

        return Case(load, model, preprocessing, "timm", None, folder)

    return build


def of_micronet(folder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = timm.create_model("cifar_micronet_v1", num_classes=5).eval()
        model.head.weight.data.normal_(std=200)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": "MicroNet", "variant": "v1", "num_classes": 5}
    (folder / "config.json").write_text(json.dumps(config))
    preprocessing = Preprocessing(32, CIFAR_MEAN, CIFAR_STD, "bilinear", 1.0)
    return Case(lambda: load_teacher(str(folder)), model, preprocessing, "micronet", None, folder)


CASES = {
    "module": of_module,
    "timm": of_timm,
    "transformers": of_transformers,
    "timm wrapper": of_timm_wrapper,
    "safetensors": of_checkpoint(".safetensors", save_file),
    "pth": of_checkpoint(".pth", torch.save),
    "micronet": of_micronet,
}
FOLDERS = [name for name in CASES if name != "module"]


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
    answer = case.load()(views)
    assert answer.dtype == torch.float32 and answer.shape == (4, 5)
    torch.testing.assert_close(answer.exp().sum(-1), torch.ones(4))
    torch.testing.assert_close(answer, by_hand(case, views), atol=2e-5, rtol=1e-5)
    assert answer.exp().std(0).max() > 0.005, "the views should not all get the same answer"


@pytest.mark.parametrize("name", CASES)
def test_answers_do_not_depend_on_the_batch_or_the_type_of_the_pixels(make, views, name):
    teacher = make(name).load()
    answer = teacher(views)
    torch.testing.assert_close(teacher(views[2:3]), answer[2:3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(teacher(views.flip(0)).flip(0), answer, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(teacher(views.float()), answer, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_description(make, name):
    case = make(name)
    teacher = case.load()
    (described,) = json.loads(json.dumps(teacher.describe()))
    named = {"module": "TinyNet", "safetensors": "test_resnet", "pth": "test_resnet"}.get(name, str(case.folder))
    assert described["name"] == named
    assert described["kind"] == case.kind
    classes = {
        "module": "TinyNet",
        "transformers": "ResNetForImageClassification",
        "micronet": "cifar_micronet_v1",
    }
    assert described["architecture"] == classes.get(name, "test_resnet")
    assert described["weight"] == 1.0 and described["dtype"] == "float32" and described["revision"] is None
    assert described["preprocessing"] == json.loads(json.dumps(case.preprocessing.record()))
    assert described["weight_hash"] == weight_hash(case.model) and len(described["weight_hash"]) == 16
    assert teacher.class_names == case.class_names
    assert teacher.num_classes == 5


def test_a_folder_is_not_recorded_as_a_hub_id(make, monkeypatch, tmp_path):
    shutil.copytree(make("timm").folder, tmp_path / "me" / "net")
    monkeypatch.chdir(tmp_path)
    assert load_teacher("me/net").describe()[0]["name"] == "./me/net"


@pytest.mark.parametrize("name", CASES)
def test_networks_are_in_evaluation_mode_without_gradients(make, name):
    (member,) = make(name).load().members
    assert not any(module.training for module in member.model.modules())
    assert not any(parameter.requires_grad for parameter in member.model.parameters())


@pytest.mark.parametrize("name", FOLDERS)
def test_a_named_teacher_travels_by_name(make, views, name):
    teacher = make(name).load()
    packed = pickle.dumps(teacher)
    assert len(packed) < 3000
    moved = pickle.loads(packed)
    assert moved.describe() == teacher.describe()
    torch.testing.assert_close(moved(views), teacher(views), rtol=0, atol=0)


def test_a_module_travels_with_its_weights(make, views):
    teacher = make("module").load()
    moved = pickle.loads(pickle.dumps(teacher))
    assert moved.describe() == teacher.describe()
    torch.testing.assert_close(moved(views), teacher(views), rtol=0, atol=0)


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


@pytest.mark.parametrize("name", FOLDERS)
def test_changed_weights_change_the_hash_and_do_not_travel(make, tmp_path, monkeypatch, name):
    case = make(name)
    folder = shutil.copytree(case.folder, tmp_path / "copy")
    file = next(folder.glob("*.safetensors"), None) or folder / "weights.pth"
    checkpoint = {"checkpoint": str(file)} if file.stem == "weights" else {}
    named = "test_resnet" if checkpoint else str(folder)
    teacher = load_teacher(named, **checkpoint)
    packed = pickle.dumps(teacher)
    state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    key = next(key for key in state if key.endswith("bias"))
    state[key] = state[key] + 1e-3
    if file.suffix == ".safetensors":
        save_file(state, file, metadata={"format": "pt"})
    else:
        torch.save(state, file)
    changed = load_teacher(named, **checkpoint)
    assert changed.describe()[0]["weight_hash"] != teacher.describe()[0]["weight_hash"]
    with pytest.raises(ValueError, match="weights of .* have changed"):
        pickle.loads(packed)


def test_weight_hash_sees_values_names_and_buffers():
    def norm(**changes):
        module = nn.BatchNorm1d(3)
        for key, value in changes.items():
            getattr(module, key).data.fill_(value)
        return weight_hash(module)

    assert norm() == norm()
    renamed = nn.ModuleDict({"a": nn.Linear(2, 2)}), nn.ModuleDict({"b": nn.Linear(2, 2)})
    renamed[1].load_state_dict({f"b{key[1:]}": value for key, value in renamed[0].state_dict().items()})
    hashes = {norm(), norm(weight=2), norm(bias=2), norm(running_var=2), norm(num_batches_tracked=2)}
    assert len(hashes) == 5
    assert weight_hash(renamed[0]) != weight_hash(renamed[1])


# Ensembles


def test_an_ensemble_is_the_weighted_mean_of_probabilities(make, views):
    cases = [make("timm"), make("transformers")]
    teacher = load_teacher([str(case.folder) for case in cases], weights=[1.0, 3.0])
    first, second = (by_hand(case, views).exp() for case in cases)
    torch.testing.assert_close(teacher(views).exp(), 0.25 * first + 0.75 * second, atol=1e-5, rtol=1e-5)
    assert [item["preprocessing"]["image_size"] for item in teacher.describe()] == [32, 24]
    assert [item["weight"] for item in teacher.describe()] == [1.0, 3.0]
    even = load_teacher([str(case.folder) for case in cases])
    torch.testing.assert_close(even(views).exp(), (first + second) / 2, atol=1e-5, rtol=1e-5)


def test_an_ensemble_of_modules_and_folders(make, views):
    case = make("timm")
    net = small_resnet(7)
    teacher = load_teacher([net, str(case.folder)])
    assert [member.kind for member in teacher.members] == ["module", "timm"]
    mean = (by_hand(case._replace(model=net), views).exp() + by_hand(case, views).exp()) / 2
    torch.testing.assert_close(teacher(views).exp(), mean, atol=1e-5, rtol=1e-5)


def test_temperature_softens_every_member_before_the_mean(make, views):
    cases = [make("timm"), make("transformers")]
    teacher = load_teacher([str(case.folder) for case in cases], temperature=3.0)
    softened = [(by_hand(case, views) / 3).softmax(-1) for case in cases]
    torch.testing.assert_close(teacher(views).exp(), sum(softened) / 2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arguments", [{"temperature": 0.0}, {"temperature": -1.0}, {"weights": [0.0]}])
def test_weights_and_temperature_are_positive(arguments):
    with pytest.raises(ValueError, match="positive"):
        load_teacher(TinyNet(5, 0), preprocessing=Preprocessing(16), **arguments)


def test_one_weight_for_each_member():
    with pytest.raises(ValueError, match="2 members, 1 weights"):
        load_teacher([TinyNet(5, 0), TinyNet(5, 1)], preprocessing=Preprocessing(16), weights=[1.0])


def test_a_teacher_has_a_member():
    with pytest.raises(ValueError, match="at least one member"):
        load_teacher([])


def test_members_of_different_class_counts_are_refused(make):
    folder = str(make("timm").folder)
    with pytest.raises(ValueError, match="class counts are .*timm: 5, TinyNet: 7"):
        load_teacher([folder, TinyNet(7, 0)], preprocessing=Preprocessing(16))


def test_members_of_the_same_name_and_different_class_counts_are_refused():
    with pytest.raises(ValueError, match="class counts"):
        load_teacher([TinyNet(5, 0), TinyNet(7, 0)], preprocessing=Preprocessing(16))


# Classes


def named_teacher(names=CLASSES, num_classes=5):
    member = tiny_teacher(num_classes).members[0]
    return Teacher([dataclasses.replace(member, class_names=names)])


def test_equal_classes_are_accepted():
    assert named_teacher().with_classes(CLASSES).class_map is None
    assert named_teacher().with_classes(CLASSES).class_names == CLASSES


def test_names_may_differ_in_case_and_underscores():
    teacher = named_teacher(("golden retriever", "Great_White_Shark"), 2)
    assert teacher.with_classes(["Golden_Retriever", "great white shark"]).num_classes == 2


@pytest.mark.parametrize("names", [None, tuple(f"LABEL_{i}" for i in range(5))])
def test_a_teacher_without_names_is_judged_by_its_count(names):
    assert named_teacher(names).with_classes(("p", "q", "r", "s", "t")).class_map is None
    with pytest.raises(ValueError, match=r"Dataset \(2\): p, q. Teacher \(5\): no names."):
        named_teacher(names).with_classes(("p", "q"))


@pytest.mark.parametrize(
    "names", [("bee", "ant", "cat", "dog", "yak"), ("a", "b", "c", "d", "e"), CLASSES[:4], (*CLASSES, "fox")]
)
def test_other_classes_are_refused_with_both_lists(names):
    with pytest.raises(ValueError) as caught:
        named_teacher().with_classes(names)
    message = str(caught.value)
    assert f"Dataset ({len(names)}): {', '.join(names)}." in message
    assert f"Teacher (5): {', '.join(CLASSES)}." in message
    assert "TinyNet" in message and "class_map" in message


def test_long_lists_of_classes_are_shortened():
    with pytest.raises(ValueError, match=r"Dataset \(300\): c0, c1, .*\(292 more\)"):
        named_teacher().with_classes([f"c{i}" for i in range(300)])


def test_every_member_is_checked():
    members = (*named_teacher().members, *named_teacher(("a", "b", "c", "d", "e")).members)
    with pytest.raises(ValueError, match="a, b, c, d, e"):
        Teacher(members).with_classes(CLASSES)


def test_identity_means_other_names_in_the_same_order(views):
    teacher = named_teacher().with_classes(("p", "q", "r", "s", "t"), "identity")
    assert torch.equal(teacher(views), named_teacher()(views))
    with pytest.raises(ValueError, match=r"Dataset \(4\)"):
        named_teacher().with_classes(("p", "q", "r", "s"), "identity")


@pytest.mark.parametrize(
    "class_map", [[4, 0, 2], (4, 0, 2), {"p": "eel", "q": 0, "r": "cat"}, {"r": 2, "q": "ant", "p": 4, "unused": 1}]
)
def test_a_class_map_restricts_the_logits_before_the_softmax(views, class_map):
    teacher = named_teacher().with_classes(("p", "q", "r"), class_map)
    assert teacher.class_map == (4, 0, 2) and teacher.num_classes == 3
    assert teacher.class_names == ("eel", "ant", "cat")
    whole = named_teacher()(views)
    torch.testing.assert_close(teacher(views), whole[:, [4, 0, 2]].log_softmax(-1))


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ([0, 1], "has 2 entries"),
        ([0, 1, 5], r"\[0, 5\)"),
        ([0, -1, 2], r"\[0, 5\)"),
        ({"p": 0, "q": 1}, "no entry for the dataset's classes r"),
        ({"p": "ant", "q": "unicorn", "r": 0}, "'unicorn', which no member"),
        ("by name", "not 'by name'"),
    ],
)
def test_a_wrong_class_map_is_refused(class_map, message):
    with pytest.raises(ValueError, match=message):
        named_teacher().with_classes(("p", "q", "r"), class_map)


def test_a_class_map_that_is_listed_is_recorded_although_it_changes_nothing():
    assert named_teacher().with_classes(CLASSES, [0, 1, 2, 3, 4]).class_map == (0, 1, 2, 3, 4)
    assert named_teacher().with_classes(CLASSES, "identity").class_map is None


def test_without_labels_the_classes_are_the_teachers_own():
    assert named_teacher().with_classes(None).num_classes == 5
    assert named_teacher().with_classes(None, "identity").class_map is None
    assert named_teacher().with_classes(None, [3, 1]).class_names == ("dog", "bee")
    with pytest.raises(ValueError, match="needs a dataset with ClassLabel names"):
        named_teacher().with_classes(None, {"p": "ant"})


# Precision


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_bfloat16_answers_float32_close_to_the_full_precision(make, views, name):
    full = make(name).load()
    half = make(name).load().to("cpu", "bfloat16")
    assert {parameter.dtype for parameter in half.members[0].model.parameters()} == {torch.bfloat16}
    answer = half(views)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer.exp().sum(-1), torch.ones(4))
    assert 0 < (answer - full(views)).abs().max() < 0.1
    (described,) = half.describe()
    assert described["dtype"] == "bfloat16"
    assert described["weight_hash"] == full.describe()[0]["weight_hash"], "the hash is of the weights as loaded"


# What is refused


class Payload:
    """An object whose unpickling leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_with_objects_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "executed"
    file = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(5, 96), "extra": Payload(trace)}, file)
    with pytest.raises(ValueError, match="weights.pth"):
        load_teacher("test_resnet", checkpoint=str(file))
    assert not trace.exists()


def test_a_timm_folder_with_a_pickle_is_refused_and_not_run(make, tmp_path):
    trace = tmp_path / "executed"
    folder = shutil.copytree(make("timm").folder, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    torch.save({**small_resnet().state_dict(), "extra": Payload(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(Exception):  # noqa: B017 the library's own
        load_teacher(str(folder))
    assert not trace.exists()


def test_remote_code_is_not_run(make, tmp_path):
    trace = tmp_path / "executed"
    folder = shutil.copytree(make("transformers").folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "custom-classifier"
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_teacher(str(folder))
    assert not trace.exists()


def test_a_missing_folder(tmp_path):
    missing = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no image classifier .*nowhere.*checkpoint="):
        load_teacher(missing)


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(ValueError, match="neither a folder with a config.json"):
        load_teacher(str(tmp_path))


def test_a_bare_architecture_needs_a_checkpoint():
    with pytest.raises(ValueError, match="checkpoint="):
        load_teacher("test_resnet")


def test_an_unknown_architecture(make):
    with pytest.raises(ValueError, match="'no_such_net' is not a timm architecture"):
        load_teacher("no_such_net", checkpoint=str(make("safetensors").folder / "weights.safetensors"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_missing_checkpoint(tmp_path, suffix):
    with pytest.raises(ValueError, match="There is no checkpoint"):
        load_teacher("test_resnet", checkpoint=str(tmp_path / f"nowhere{suffix}"))


def test_a_checkpoint_of_something_else(tmp_path):
    file = str(tmp_path / "weights.safetensors")
    save_file({"weight": torch.zeros(3, 3)}, file)
    with pytest.raises(ValueError, match="'fc.weight'.*test_resnet"):
        load_teacher("test_resnet", checkpoint=file)


def test_a_checkpoint_of_another_architecture(tmp_path):
    file = str(tmp_path / "weights.safetensors")
    save_file({"fc.weight": torch.zeros(5, 96), "fc.bias": torch.zeros(5)}, file)
    with pytest.raises(ValueError, match="weights.safetensors"):
        load_teacher("test_resnet", checkpoint=file)


def test_a_broken_checkpoint(tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match="weights.safetensors"):
        load_teacher("test_resnet", checkpoint=str(file))


def test_a_module_needs_its_preprocessing():
    with pytest.raises(ValueError, match="preprocessing of the teacher TinyNet is unknown"):
        load_teacher(TinyNet(5, 0))


def test_a_folder_without_a_processor_needs_its_preprocessing(make, tmp_path, views):
    folder = shutil.copytree(make("transformers").folder, tmp_path / "copy")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="preprocessing"):
        load_teacher(str(folder))
    teacher = load_teacher(str(folder), preprocessing=make("transformers").preprocessing)
    torch.testing.assert_close(teacher(views), make("transformers").load()(views))


def test_another_rescaling_is_part_of_the_normalisation(make, tmp_path):
    folder = shutil.copytree(make("transformers").folder, tmp_path / "copy")
    ViTImageProcessor(size={"height": 24, "width": 24}, rescale_factor=1 / 127.5).save_pretrained(folder)
    found = load_teacher(str(folder)).members[0].preprocessing  # (x / 127.5 - 0.5) / 0.5
    assert (found.mean, found.std) == ((0.25,) * 3, (0.25,) * 3)


def test_a_processor_with_a_centre_crop_and_without_normalisation(make, tmp_path):
    from transformers import MobileNetV2ImageProcessor

    folder = shutil.copytree(make("transformers").folder, tmp_path / "copy")
    processor = MobileNetV2ImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, do_normalize=False, resample=2
    )
    processor.save_pretrained(folder)
    (member,) = load_teacher(str(folder)).members
    expected = Preprocessing(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", 0.8, crop_rounding="down")
    assert member.preprocessing == expected


def test_a_member_hashes_its_weights_itself():
    net = TinyNet(5, 0)
    member = Member(net, Preprocessing(16), "net", "module")
    assert member.weight_hash == weight_hash(net)
