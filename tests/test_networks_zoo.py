"""Networks that nobody should be taught or judged by: each is refused in one sentence that names it."""

import copy
import io
import json
import logging
import re
import shutil
import subprocess
import sys

import pytest
import timm
import torch
from datasets import Dataset, Features, Image
from golden.make import HERE as GOLDEN
from PIL import Image as PILImage
from recipe_modules import RECIPES as RECIPE_FILES
from recipe_modules import load_recipe
from safetensors.torch import load_file, save_file
from scenes import write_scenes
from timm.models import save_for_hf
from tiny import MEAN, NAMES, STD, TinyNet, tiny_dataset
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from hf_reinforce import load_teacher
from hf_reinforce.models.networks import named_member
from hf_reinforce.models.preprocessing import Preprocessing

CLASSES = NAMES[:5]
SIZE = {"height": 32, "width": 32}
LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca2\n"
)
LABELS = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: index for index, name in enumerate(CLASSES)}}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", **LABELS}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 16,
    **LABELS,
}


def transformers_folder(folder, model=None, safe=True):
    """A sound classifier of transformers, or another of its networks, with a processor."""
    torch.manual_seed(0)
    model = model or ResNetForImageClassification(ResNetConfig(**RESNET))
    model.save_pretrained(folder)
    ViTImageProcessor(size=SIZE, image_mean=MEAN, image_std=STD).save_pretrained(folder)
    if not safe:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()


def timm_folder(folder, architecture="test_resnet", **arguments):
    """A sound classifier of timm."""
    torch.manual_seed(0)
    labels = {"label_names": list(CLASSES)} if arguments.get("num_classes", 5) == 5 else {}
    model = timm.create_model(architecture, **{"num_classes": 5, **arguments})
    save_for_hf(model, folder, safe_serialization=True, model_config=labels)


def wrapper_folder(folder):
    """A sound classifier of timm in transformers' wrapper."""
    cfg = {"input_size": (3, 32, 32), "mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 0.95}
    config = TimmWrapperConfig(architecture="test_resnet", pretrained_cfg=cfg, **LABELS)
    TimmWrapperForImageClassification(config).save_pretrained(folder)


SOUND = {"transformers": transformers_folder, "timm": timm_folder, "wrapper": wrapper_folder}


def change_weights(folder, change):
    """Rewrites the weights: `change` takes the tensors by name and returns those to be stored."""
    file = folder / "model.safetensors"
    state = {key: value.clone() for key, value in change(load_file(file)).items()}
    save_file(state, file, metadata={"format": "pt"})


def without(*endings):
    return lambda state: {key: value for key, value in state.items() if not key.endswith(endings)}


def prefixed(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


def reshaped(ending):
    return lambda state: {key: value[:3] if key.endswith(ending) else value for key, value in state.items()}


def with_nan(state):
    return {key: value * torch.nan if value.ndim > 1 else value for key, value in state.items()}


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


BAD = {}


def bad(message):
    """Decorates a function that makes a bad network in a folder; it may return arguments of `load_teacher`."""

    def note(make):
        BAD[make.__name__] = make, message
        return make

    return note


@bad(r"missing \(classifier.bias, classifier.weight\).*not the network's \(.*pooler")
def a_backbone(folder):
    transformers_folder(folder, ViTModel(ViTConfig(**VIT)))


@bad(r"missing \(classifier.bias, classifier.weight\).*not the network's \(logit_scale, text_model")
def the_whole_of_clip(folder):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = small | {"image_size": 32, "patch_size": 16}
    text = small | {"vocab_size": 50}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8, **LABELS)
    transformers_folder(folder, CLIPModel(config))


@bad("missing .*not the network's .*do not begin with 'module.'")
def a_wrapper_of_several_devices(folder):
    transformers_folder(folder)
    change_weights(folder, prefixed("module."))


@bad("do not begin with '_orig_mod.'")
def a_compiled_network(folder):
    transformers_folder(folder)
    change_weights(folder, prefixed("_orig_mod."))


@bad("do not begin with 'model.'")
def a_lightning_module(folder):
    timm_folder(folder)
    change_weights(folder, prefixed("model."))


@bad(r"2 are missing \(.*running_mean")
def lost_statistics(folder):
    transformers_folder(folder)
    change_weights(folder, without("embedder.embedder.normalization.running_mean", "classifier.1.bias"))


@bad(r"2 are of another shape \(classifier.1.bias 3 for 5, classifier.1.weight 3x16 for 5x16\)")
def a_head_for_three_classes(folder):
    transformers_folder(folder)
    change_weights(folder, reshaped(("classifier.1.weight", "classifier.1.bias")))


@bad(r"are not the network's \(vit\.")
def more_layers_than_the_configuration_says(folder):
    transformers_folder(folder, ViTForImageClassification(ViTConfig(**VIT)))
    change_config(folder, num_hidden_layers=1)


@bad(r"are missing \(vit\.")
def fewer_layers_than_the_configuration_says(folder):
    transformers_folder(folder, ViTForImageClassification(ViTConfig(**VIT)))
    change_config(folder, num_hidden_layers=3)


@bad(r"1 are missing \(fc.bias\)")
def a_timm_network_with_a_hole(folder):
    timm_folder(folder)
    change_weights(folder, without("fc.bias"))


@bad(r"2 are missing \(fc.bias, fc.weight\)")
def a_timm_network_with_an_option_for_more_classes(folder):
    timm_folder(folder)
    change_config(folder, model_args={"num_classes": 7})


@bad(r"1 are missing \(base_layer.1.weight\)")
def a_timm_network_that_is_loaded_loosely(folder):
    timm_folder(folder, "dla46x_c")
    change_weights(folder, without("base_layer.1.weight"))


@bad(r"1 are not the network's \(extra.weight\)")
def a_timm_network_with_something_else(folder):
    timm_folder(folder, "dla46x_c")
    change_weights(folder, lambda state: state | {"extra.weight": torch.zeros(3)})


@bad(r"1 are missing \(timm_model.fc.weight\)")
def a_wrapped_timm_network_with_a_hole(folder):
    wrapper_folder(folder)
    change_weights(folder, without("fc.weight"))


@bad("no classifier")
def a_timm_network_without_a_head(folder):
    timm_folder(folder, num_classes=0)


@bad("no classifier")
def a_wrapper_without_a_head(folder):
    wrapper_folder(folder)
    change_config(folder, num_classes=0, id2label={}, label2id={}, num_labels=0)


@bad("holds an adapter of PEFT")
def a_network_beside_its_adapter(folder):
    transformers_folder(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))


@bad("holds an adapter of PEFT")
def an_adapter_alone(folder):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))


@bad("must number its classes 0 to 4, but has the indices 1, 2, 3, 4, 5")
def classes_that_are_counted_from_one(folder):
    transformers_folder(folder)
    change_config(folder, id2label={str(index + 1): name for index, name in enumerate("abcde")})


@bad("contradict each other about the class 'a' \\(0 and 4\\)")
def names_that_contradict_each_other(folder):
    transformers_folder(folder)
    names = dict(enumerate("abcde"))
    change_config(folder, id2label=names, label2id={name: 4 - index for index, name in names.items()})


@bad("model.safetensors is a pointer of git-lfs")
def a_pointer(folder):
    transformers_folder(folder)
    (folder / "model.safetensors").write_bytes(LFS)


@bad("model.safetensors is a pointer of git-lfs")
def a_pointer_of_timm(folder):
    timm_folder(folder)
    (folder / "model.safetensors").write_bytes(LFS)


@bad("pytorch_model.bin is a pointer of git-lfs")
def a_pointer_to_pickled_weights(folder):
    transformers_folder(folder, safe=False)
    (folder / "pytorch_model.bin").write_bytes(LFS)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@bad("cut short or damaged")
def weights_that_are_cut_short(folder):
    transformers_folder(folder)
    cut(folder / "model.safetensors")


@bad("cut short or damaged")
def weights_of_timm_that_are_cut_short(folder):
    timm_folder(folder)
    cut(folder / "model.safetensors")


@bad("cut short or damaged")
def pickled_weights_that_are_cut_short(folder):
    transformers_folder(folder, safe=False)
    cut(folder / "pytorch_model.bin")


@bad("cut short or damaged")
def empty_weights(folder):
    transformers_folder(folder)
    (folder / "model.safetensors").write_bytes(b"")


@bad("cannot be loaded")
def no_weights(folder):
    transformers_folder(folder)
    (folder / "model.safetensors").unlink()


@bad("cannot be loaded")
def no_weights_of_timm(folder):
    timm_folder(folder)
    (folder / "model.safetensors").unlink()


@bad(r"config\.json.*is no JSON")
def a_broken_configuration(folder):
    transformers_folder(folder)
    cut(folder / "config.json")


@bad(r"config\.json.*is no JSON")
def a_configuration_that_is_no_text(folder):
    timm_folder(folder)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")


@bad(r"config\.json describes no image classifier")
def a_configuration_that_is_a_list(folder):
    transformers_folder(folder)
    (folder / "config.json").write_text("[1, 2]")


@bad(r"config\.json describes no image classifier")
def a_configuration_of_something_else(folder):
    transformers_folder(folder)
    (folder / "config.json").write_text('{"layers": 3}')


@bad("cannot be loaded")
def a_network_of_texts(folder):
    transformers_folder(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')


@bad("cannot be loaded")
def an_unknown_network(folder):
    transformers_folder(folder)
    change_config(folder, model_type="no_such_network")


@bad("cannot be loaded")
def an_unknown_network_of_timm(folder):
    timm_folder(folder)
    change_config(folder, architecture="no_such_network")


@bad("trust_remote_code")
def code_of_its_own(folder):
    remote_code(folder)


@bad("not finite")
def weights_that_are_no_numbers(folder):
    transformers_folder(folder)
    change_weights(folder, with_nan)


@bad("not finite")
def weights_of_timm_that_are_no_numbers(folder):
    timm_folder(folder)
    change_weights(folder, with_nan)


@bad("images of 4 channels")
def images_of_four_channels(folder):
    transformers_folder(folder, ResNetForImageClassification(ResNetConfig(num_channels=4, **RESNET)))


@bad("images of 1 channels with the means")
def grey_images_with_the_means_of_colours(folder):
    timm_folder(folder, in_chans=1)
    cfg = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    change_config(folder, pretrained_cfg=cfg | {"mean": MEAN, "std": STD})


@bad("names for 4 classes .*answers with 5")
def a_name_too_few(folder):
    timm_folder(folder)
    change_config(folder, label_names=CLASSES[:4])


@bad(r"no 'fc.weight'.*missing \(.*\(module\..*do not begin with 'module.'")
def a_checkpoint_of_several_devices(folder):
    return checkpoint(folder, prefixed("module."))


@bad("do not begin with '_orig_mod.'")
def a_checkpoint_of_a_compiled_network(folder):
    return checkpoint(folder, prefixed("_orig_mod."))


@bad(r"1 are missing \(fc.bias\)")
def a_checkpoint_with_a_hole(folder):
    return checkpoint(folder, without("fc.bias"))


@bad(r"1 are of another shape \(conv1")
def a_checkpoint_of_another_width(folder):
    return checkpoint(folder, reshaped("conv1.0.weight"))


@bad("tensors by name, but a dict with the keys epoch, state_dict")
def a_checkpoint_of_a_training(folder):
    return checkpoint(folder, lambda state: {"epoch": 3, "state_dict": state})


@bad("pointer of git-lfs")
def a_checkpoint_that_is_a_pointer(folder):
    arguments = checkpoint(folder, dict)
    (folder / "weights.pth").write_bytes(LFS)
    return arguments


@bad("cut short or damaged")
def a_checkpoint_that_is_cut_short(folder):
    arguments = checkpoint(folder, dict)
    cut(folder / "weights.pth")
    return arguments


def checkpoint(folder, change):
    folder.mkdir()
    torch.save(change(timm.create_model("test_resnet", num_classes=5).state_dict()), folder / "weights.pth")
    return {"name_or_path": "test_resnet", "checkpoint": str(folder / "weights.pth")}


def remote_code(folder):
    """A repository that brings code of its own; it leaves a file `executed` where it runs."""
    transformers_folder(folder)
    maps = {"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Model"}
    change_config(folder, model_type="of-its-own", auto_map=maps | {"AutoImageProcessor": "code.Processor"})
    trace = str(folder / "executed")
    (folder / "code.py").write_text(f"open({trace!r}, 'w').close()\n")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """`zoo(name)`: arguments of `load_teacher` and part of the message."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("zoo") / name
            make, message = BAD[name]
            made[name] = {"name_or_path": str(folder), **(make(folder) or {})}, message
        return made[name]

    return get


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pets")
    tiny_dataset(6).to_parquet(folder / "train.parquet")
    return folder


def check(text, arguments, message):
    assert re.search(message, text), text
    assert "\n" not in text and len(text) < 1200, text
    assert arguments["name_or_path"] in text, "the network should be named"
    assert "Traceback" not in text


@pytest.mark.parametrize("name", BAD)
def test_a_bad_network_is_no_teacher(zoo, name, caplog, capfd):
    arguments, message = zoo(name)
    with pytest.raises(ValueError) as caught:
        load_teacher(**arguments)
    check(str(caught.value), arguments, message)
    assert "REPORT" not in caplog.text + "".join(capfd.readouterr()), "what is raised is not reported as well"


def run(monkeypatch, recipe, *flags, answers=""):
    """Runs a recipe here; what it ends with."""
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *map(str, flags)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(answers))
    with pytest.raises(SystemExit) as caught:
        load_recipe(recipe).main()
    return str(caught.value)


@pytest.mark.parametrize("name", BAD)
def test_the_recipes_end_in_one_line_and_write_nothing(zoo, pets, name, monkeypatch, tmp_path):
    arguments, message = zoo(name)
    network = arguments["name_or_path"]
    weights = arguments.get("checkpoint")
    flags = ["--dataset_name", pets, "--split", "train", "--device", "cpu", "--num_workers", 0]
    given = ["--model_checkpoint", weights] if weights else []
    out = tmp_path / "evaluation"
    found = run(
        monkeypatch, "evaluate", *flags, "--model_name_or_path", network, *given, "--output_dir", out
    ).removeprefix("error: ")
    check(found, arguments, message)
    assert not list(out.rglob("*.*"))
    given = ["--teacher_checkpoint", weights] if weights else []
    flags += ["--policy", "rrc", "--image_size", 32, "--num_samples", 1, "--top_k", 2]
    for extra in ((), ("--estimate", True)):
        out = tmp_path / "reinforced"
        found = run(
            monkeypatch, "reinforce", *flags, *extra, "--teacher_name_or_path", network, *given, "--output_dir", out
        ).removeprefix("error: ")
        check(found, arguments, message)
        assert not out.exists()


@pytest.mark.parametrize("name", ["a_backbone", "a_timm_network_with_a_hole", "a_timm_network_without_a_head"])
def test_one_bad_member_spoils_an_ensemble(zoo, name, tmp_path):
    arguments, message = zoo(name)
    transformers_folder(tmp_path / "sound")
    with pytest.raises(ValueError) as caught:
        load_teacher([str(tmp_path / "sound"), arguments["name_or_path"]])
    check(str(caught.value), arguments, message)


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_network_is_loaded_without_a_word(kind, tmp_path, caplog, capfd):
    SOUND[kind](tmp_path / kind)
    with caplog.at_level(logging.INFO):
        first, second = (load_teacher(str(tmp_path / kind)).describe()[0]["weight_hash"] for _ in range(2))
    assert first == second
    said = caplog.text + "".join(capfd.readouterr())
    assert "REPORT" not in said and "sharded" not in said


@pytest.mark.parametrize("kind", SOUND)
def test_counters_of_batches_may_be_missing_or_left_over(kind, tmp_path):
    folder = tmp_path / kind
    SOUND[kind](folder)
    whole = load_teacher(str(folder))
    change_weights(folder, without("num_batches_tracked"))
    views = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    torch.testing.assert_close(load_teacher(str(folder))(views), whole(views), rtol=0, atol=0)
    change_weights(folder, lambda state: state | {"old.num_batches_tracked": torch.tensor(3)})
    if kind != "timm":  # which is strict by itself
        torch.testing.assert_close(load_teacher(str(folder))(views), whole(views), rtol=0, atol=0)


def test_wrapped_names_that_timm_knows_are_loaded_right(tmp_path):
    timm_folder(tmp_path / "net")
    expected = load_teacher(str(tmp_path / "net")).describe()[0]["weight_hash"]
    change_weights(tmp_path / "net", prefixed("module."))
    assert load_teacher(str(tmp_path / "net")).describe()[0]["weight_hash"] == expected


def test_a_body_without_a_head_is_enough_where_the_head_is_not_used(zoo):
    body = named_member(zoo("a_backbone")[0]["name_or_path"], None, None, head=False)
    assert type(body.model).__name__ == "ViTForImageClassification"
    for name in ("a_wrapper_of_several_devices", "lost_statistics", "fewer_layers_than_the_configuration_says"):
        with pytest.raises(ValueError, match="missing"):
            named_member(zoo(name)[0]["name_or_path"], None, None, head=False)
    with pytest.raises(ValueError, match="not the network's"):
        named_member(zoo("more_layers_than_the_configuration_says")[0]["name_or_path"], None, None, head=False)


# -- what a network answers with -----------------------------------------------------------------------------------


class Answering(nn.Module):
    """A network whose logits are wrapped in some way."""

    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = TinyNet(5, 0), wrap

    def forward(self, images):
        return self.wrap(self.net(images))


PREPROCESSING = Preprocessing(16, MEAN, STD, "bilinear")


@pytest.mark.parametrize(
    "wrap", [lambda logits: {"loss": None, "logits": logits}, lambda logits: (logits,), lambda logits: {"out": logits}]
)
def test_logits_that_cannot_be_mistaken_are_taken(wrap):
    views = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8)
    plain, wrapped = (load_teacher(net, preprocessing=PREPROCESSING) for net in (TinyNet(5, 0), Answering(wrap)))
    torch.testing.assert_close(wrapped(views), plain(views))


@pytest.mark.parametrize(
    ("wrap", "found"),
    [
        (lambda logits: (logits, logits), "logits .*but returns a tuple of"),
        (lambda logits: {"scores": logits, "others": logits}, "logits .*but returns a dict of"),
        (lambda logits: logits[:, :, None, None], r"logits .*but returns a Tensor of \(1, 5, 1, 1\)"),
        (lambda logits: logits[0], r"logits .*but returns a Tensor of \(5,\)"),
        (lambda logits: logits[:, :1], "one number"),
        (lambda logits: None, "logits .*but returns a NoneType"),
        (lambda logits: logits.argmax(-1, keepdim=True), "logits .*but returns a Tensor"),
    ],
)
def test_other_answers_are_refused(wrap, found):
    with pytest.raises(ValueError, match=f"The network Answering .*answers? with {found}"):
        load_teacher(Answering(wrap), preprocessing=PREPROCESSING)


def test_a_network_that_cannot_answer():
    for model in (ViTForImageClassification(ViTConfig(**VIT)), timm.create_model("vit_tiny_patch16_224", depth=1)):
        with pytest.raises(ValueError, match=f"{type(model).__name__} cannot answer to a view of 48x48 pixels"):
            load_teacher(model, preprocessing=Preprocessing(48))


def test_a_network_saved_to_answer_with_tuples(tmp_path):
    transformers_folder(tmp_path / "net")
    expected = load_teacher(str(tmp_path / "net"))
    change_config(tmp_path / "net", return_dict=False)
    views = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    torch.testing.assert_close(load_teacher(str(tmp_path / "net"))(views), expected(views))


def test_a_grey_network_sees_the_luma_of_the_views(tmp_path):
    model = ResNetForImageClassification(ResNetConfig(num_channels=1, **RESNET)).eval()
    model.save_pretrained(tmp_path / "grey")
    ViTImageProcessor(size=SIZE, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path / "grey")
    teacher = load_teacher(str(tmp_path / "grey"))
    assert teacher.describe()[0]["preprocessing"]["mean"] == (0.5,)
    views = torch.randint(0, 256, (4, 3, 32, 32)).float()
    grey = 0.299 * views[:, :1] + 0.587 * views[:, 1:2] + 0.114 * views[:, 2:]
    with torch.no_grad():
        expected = model((grey / 255 - 0.5) / 0.25).logits.log_softmax(-1)
    torch.testing.assert_close(teacher(views), expected, atol=1e-5, rtol=1e-5)
    timm_folder(tmp_path / "timm", in_chans=1)
    assert load_teacher(str(tmp_path / "timm")).describe()[0]["preprocessing"]["mean"] == (0.5,)
    module = load_teacher(model, preprocessing=Preprocessing(32, (0.5,), (0.25,)))
    torch.testing.assert_close(module(views), expected, atol=1e-5, rtol=1e-5)


def test_the_callers_module_stays_as_it_is():
    model = timm.create_model("test_resnet", num_classes=5)
    model.conv1.requires_grad_(False)
    model.layer1.eval()
    flags = [(p.requires_grad, p.dtype, p.data_ptr()) for p in model.parameters()]
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    teacher = load_teacher(model).to("cpu", "bfloat16")
    views = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    answer = teacher(views)
    assert [(p.requires_grad, p.dtype, p.data_ptr()) for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for parameter in model.parameters():
        parameter.data.fill_(0)
    torch.testing.assert_close(teacher(views), answer, rtol=0, atol=0)


# -- code of a repository ------------------------------------------------------------------------------------------

TRAINING = ["--output_dir", "OUT", "--use_cpu", "True"]
VIEWS = ["--policy", "rrc", "--image_size", "32"]
RECIPES = {
    "reinforce": ["--teacher_name_or_path", "NET", "--dataset_name", "PETS", "--output_dir", "OUT", *VIEWS],
    "evaluate": ["--model_name_or_path", "NET", "--dataset_name", "PETS", "--split", "train", "--device", "cpu"],
    "verify": ["--teacher_name_or_path", "NET", "--dataset_name", "GOLDEN", "--dataset_config_name", "rrc"],
    "linear_probe": ["--model_name_or_path", "NET", "--dataset_name", "PETS", "--eval_split", "train"],
    "finetune": ["--model_name_or_path", "NET", "--dataset_name", "PETS", *TRAINING, *VIEWS],
    "train_kd": ["--model_name_or_path", "NET", "--dataset_name", "PETS", "--method", "plain", *TRAINING, *VIEWS],
    "train_kd online": [
        *("--model_name_or_path", "test_resnet", "--teacher_name_or_path", "NET", "--dataset_name", "PETS"),
        *("--method", "online", *TRAINING, *VIEWS),
    ],
    "segment": [
        *("--model_name_or_path", "NET", "--dataset_name", "MASKS", "--num_labels", "3", *TRAINING),
        *("--image_column_name", "image", "--mask_column_name", "label", "--per_device_train_batch_size", "2"),
    ],
    "detect": [
        *("--model_name_or_path", "NET", "--train_images", "SCENES/images/train", *TRAINING),
        *("--train_annotations", "SCENES/train.json"),
    ],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", RECIPES)
def test_nobody_is_asked_whether_code_may_run(recipe, pets, monkeypatch, tmp_path):
    net, out = tmp_path / "net", tmp_path / "out"
    remote_code(net)
    folders = {"NET": net, "PETS": pets, "OUT": out, "GOLDEN": GOLDEN / "plus"}
    flags = list(RECIPES[recipe])
    if recipe == "verify":
        (tmp_path / "images").mkdir()
        shutil.copy(GOLDEN / "images.parquet", tmp_path / "images" / "train.parquet")
        flags += ["--source_name_or_path", tmp_path / "images"]
    if recipe == "segment":
        folders["MASKS"] = masks(tmp_path / "masks")
    if recipe == "detect":
        write_scenes(tmp_path, "train", 2, size=32)
    flags = [folders.get(flag, str(flag).replace("SCENES", str(tmp_path))) for flag in flags]
    ended = run(monkeypatch, recipe.partition(" ")[0], *flags, answers="y\n" * 20)
    assert sys.stdin.tell() == 0, "nothing should be read from the terminal"
    assert not (net / "executed").exists()
    assert "trust_remote_code" in ended and str(net) in ended and "\n" not in ended
    assert not list(out.rglob("*.safetensors"))


def masks(folder):
    images = tiny_dataset(2)["image"]
    columns = {"image": images, "label": [PILImage.new("L", image.size) for image in images]}
    rows = Dataset.from_dict(columns, features=Features({"image": Image(), "label": Image()}))
    for split in ("train", "validation", "test"):
        rows.to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.mark.slow
def test_nobody_is_asked_on_a_terminal_either(pets, tmp_path):
    remote_code(tmp_path / "net")
    for recipe in ("reinforce", "evaluate"):
        folders = {"NET": str(tmp_path / "net"), "PETS": str(pets), "OUT": str(tmp_path / "out")}
        command = [sys.executable, RECIPE_FILES / f"{recipe}.py", *(folders.get(f, f) for f in RECIPES[recipe])]
        done = subprocess.run(command, input="y\n" * 20, capture_output=True, text=True)
        assert done.returncode == 1 and "trust_remote_code" in done.stderr.splitlines()[-1]
        assert not (tmp_path / "net" / "executed").exists() and "Traceback" not in done.stderr


def test_the_zoo_is_large():
    assert len(BAD) >= 40
